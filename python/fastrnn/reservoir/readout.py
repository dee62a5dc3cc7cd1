"""Readouts: what turns the states of a reservoir into outputs, and how that is learnt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK_ROWS = 4096


class Readout(nn.Module):
    """What all readouts share: a fit in passes over blocks of rows, and checks.

    A fit is ``begin``, then passes of ``update`` for every block, each ended by ``advance``, which
    tells whether the data is needed once more, then ``finalize``. Nothing but a finished
    ``finalize`` changes what ``forward`` computes, so a fit that fails leaves the last one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: Any = None

    @property
    def fitted(self) -> bool:
        """Whether there is a fit to predict with."""
        raise NotImplementedError

    def begin(
        self, features: int, outputs: int, rows: int | None = None, repeat: str = "exact"
    ) -> None:
        """Start a fit.

        Args:
            features: states in a row.
            outputs: targets in a row.
            rows: how many rows will come in each pass, where that is known.
            repeat: what further passes would bring: the very same rows (``"exact"``), rows that
                may differ in order or noise (``"varied"``), or nothing (``"never"``).
        """
        raise NotImplementedError

    def update(self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> None:
        """Take a block of rows, (n, features) and (n, outputs), in the present pass."""
        raise NotImplementedError

    def advance(self) -> bool:
        """End a pass; return whether the rows are needed in another one."""
        return False

    def finalize(self) -> None:
        """Make what was learnt the fit that ``forward`` uses."""
        raise NotImplementedError

    def fit(self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Readout:
        """Fit rows that are in memory.

        Args:
            states: (n, features).
            targets: (n, outputs), or (n,) for one output.
            sample_weight: (n,), at least 0; default ones.

        Returns:
            The readout itself.

        Raises:
            ValueError: if shapes do not fit or values are not finite.
        """
        states, targets, sample_weight = self._rows(states, targets, sample_weight)
        self.begin(states.shape[1], targets.shape[1], states.shape[0])
        try:
            while True:
                for start in range(0, states.shape[0], BLOCK_ROWS):
                    part = slice(start, start + BLOCK_ROWS)
                    weights = None if sample_weight is None else sample_weight[part]
                    self.update(states[part], targets[part], weights)
                if not self.advance():
                    break
            self.finalize()
        finally:
            self.reset()
        return self

    def partial_fit(
        self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> Readout:
        """Add rows to a fit in one pass; ``finalize`` ends it, and more rows may follow even then.

        Args:
            states: (n, features).
            targets: (n, outputs), or (n,) for one output.
            sample_weight: (n,), at least 0; default ones.

        Returns:
            The readout itself.

        Raises:
            ValueError: if shapes do not fit or values are not finite.
        """
        states, targets, sample_weight = self._rows(states, targets, sample_weight)
        if self._pending is None:
            self.begin(states.shape[1], targets.shape[1], repeat="never")
        self.update(states, targets, sample_weight)
        return self

    def reset(self) -> None:
        """Forget the rows of an unfinished fit, or those that ``partial_fit`` would add to."""
        self._pending = None

    def _rows(
        self, states: Tensor, targets: Tensor, sample_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        owner = type(self).__name__
        if states.dim() != 2 or states.shape[0] == 0:
            raise ValueError(
                f"{owner}: states must have shape (n, features) with n >= 1, got "
                f"{tuple(states.shape)}"
            )
        if targets.dim() == 1:
            targets = targets.unsqueeze(1)
        if targets.dim() != 2 or targets.shape[0] != states.shape[0]:
            raise ValueError(
                f"{owner}: targets must have shape (n, outputs) with n = {states.shape[0]} as "
                f"states, got {tuple(targets.shape)}"
            )
        check_finite(owner, "states", states)
        check_finite(owner, "targets", targets)
        return states.detach(), targets.detach(), check_weights(owner, sample_weight, states)

    def _require_fit(self) -> None:
        if not self.fitted:
            raise ValueError(
                f"{type(self).__name__}: forward needs a fit, and there is none; call fit(), or "
                "partial_fit() and finalize(), first"
            )

    def _require_pending(self) -> Any:
        if self._pending is None:
            raise ValueError(
                f"{type(self).__name__}: finalize needs rows, and none came; call partial_fit() "
                "first"
            )
        return self._pending


def check_finite(owner: str, name: str, values: Tensor) -> None:
    """Raise a ``ValueError`` that names the argument and a column with NaN or infinity."""
    bad = ~torch.isfinite(values.sum(0) if values.dim() > 1 else values.sum())
    if bool(bad.any()):
        finite = torch.isfinite(values.reshape(-1, values.shape[-1])).all(0)
        columns = torch.nonzero(~finite).flatten().tolist()
        if columns:
            raise ValueError(
                f"{owner}: {name} must be finite, got NaN or infinity in column {columns[0]}; "
                "remove or fill these rows"
            )


def check_weights(owner: str, sample_weight: Tensor | None, states: Tensor) -> Tensor | None:
    """Return the weights of rows as float64.

    Raises:
        ValueError: if they are not (n,), negative or not finite.
    """
    if sample_weight is None:
        return None
    rows = states.shape[0]
    if sample_weight.shape != (rows,):
        raise ValueError(
            f"{owner}: sample_weight must have shape (n,) = ({rows},), got "
            f"{tuple(sample_weight.shape)}"
        )
    weights = sample_weight.detach().double()
    if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise ValueError(f"{owner}: sample_weight must be finite and at least 0")
    return weights


class LinearReadout(Readout):
    """A readout y = W s + b, with W (outputs, features) and b (outputs,) as float64 buffers.

    They are empty until the first fit. ``forward`` computes in float64 and returns the dtype of the
    states.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(0, dtype=torch.float64))

    @property
    def fitted(self) -> bool:
        """Whether there is a fit to predict with."""
        return self.bias.numel() > 0

    def forward(self, states: Tensor) -> Tensor:
        """Return W s + b.

        Args:
            states: (..., features).

        Returns:
            (..., outputs), in the dtype of the states.

        Raises:
            ValueError: before the first fit, or if the number of features is another.
        """
        self._require_fit()
        if states.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: states must have {self.weight.shape[1]} features, as in "
                f"the fit, got {tuple(states.shape)}"
            )
        output = nn.functional.linear(states.to(self.weight.dtype), self.weight, self.bias)
        return output.to(states.dtype)

    def _commit(self, weight: Tensor, bias: Tensor) -> None:
        if not bool(torch.isfinite(weight).all()) or not bool(torch.isfinite(bias).all()):
            raise ValueError(
                f"{type(self).__name__}: the fit is not finite; states or targets overflow, or "
                "learning diverged: scale them, or choose a smaller rate"
            )
        self.weight = weight.contiguous().to(self.weight.device)
        self.bias = bias.contiguous().to(self.bias.device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor):
                own = getattr(self, name)
                setattr(self, name, torch.empty(found.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
