"""What a caller fits: one tensor, a list of series, or a loader, as batches of bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP_STEPS = 1 << 16
"""Padded steps of series that run side by side."""


@dataclass(frozen=True)
class Piece:
    """A batch of series, x (T, B, I) and y (T, B, O), or y (B, O) with one target a series."""

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None
    weights: Tensor | None = None  # (T, B) or (B,)

    def steps(self) -> Tensor:
        """Return the length of each series, (B,)."""
        T, B = self.x.shape[:2]
        return torch.full((B,), T) if self.lengths is None else self.lengths


class Reader:
    """Checks and brings to ``Piece`` whatever a fit is given.

    Args:
        input_size: features of x.
        output_size: features of y.
        batch_first: whether three dimensions are (B, T, features).
        pooled: whether y has one row for each series.
        dtype: of x.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        batch_first: bool,
        pooled: bool,
        dtype: torch.dtype,
    ) -> None:
        self.input_size, self.output_size = input_size, output_size
        self.batch_first, self.pooled, self.dtype = batch_first, pooled, dtype

    def pieces(self, x: Any, y: Any, weights: Any) -> Iterator[Piece]:
        """Yield the pieces of one pass.

        Raises:
            ValueError: if shapes, lengths or values are wrong; it names the argument.
        """
        if isinstance(x, Tensor):
            if y is None:
                raise ValueError("ESN: y must be given with x, got None")
            yield self.piece(x, y, weights)
        elif isinstance(x, list | tuple):
            yield from self._listed(x, y, weights)
        elif hasattr(x, "__array__"):
            self.input(x)
        elif isinstance(x, Iterable):
            if y is not None:
                raise ValueError("ESN: y must be None where x is a loader that yields pairs (x, y)")
            for number, item in enumerate(x):
                if not isinstance(item, list | tuple) or len(item) not in (2, 3):
                    raise ValueError(
                        "ESN: x must yield pairs (x, y) or triples (x, y, sample_weight), got "
                        f"{type(item).__name__} at number {number}"
                    )
                yield from self.pieces(*item, *([None] * (3 - len(item))))
        else:
            raise ValueError(
                "ESN: x must be a tensor, a list of tensors or an iterable of pairs, got "
                f"{type(x).__name__}"
            )

    def piece(self, x: Tensor, y: Tensor | int, weights: Tensor | None) -> Piece:
        """Check one tensor of series and its targets."""
        single = x.dim() == 2
        dense = self.input(x)
        y = self._numbers(y, 1 if self.pooled else 2, single)
        T, B = dense.shape[:2]
        if self.pooled:
            y = y.unsqueeze(0) if y.dim() == 1 else y
            expected: tuple[int, ...] = (B, self.output_size)
        else:
            y = self._time_first(y, single)
            expected = (T, B, self.output_size)
        if y.shape != expected:
            form = "(B, O)" if self.pooled else "(T, B, O)"
            raise ValueError(
                f"ESN: y must match x, {form} = {expected} with time first, got {tuple(y.shape)}"
            )
        check_finite("x", dense)
        check_finite("y", y)
        if weights is not None:
            shape = (B,) if self.pooled else (T, B)
            weights = weights.detach().double()
            if single and not self.pooled:
                weights = weights.reshape(-1, 1) if weights.dim() == 1 else weights
            elif self.batch_first and weights.dim() == 2:
                weights = weights.T
            if weights.shape != shape or not bool((weights >= 0).all()):
                raise ValueError(
                    f"ESN: sample_weight must be at least 0 with shape {shape}, time first, got "
                    f"{tuple(weights.shape)}"
                )
        return Piece(dense, y, None, weights)

    def input(self, x: Tensor) -> Tensor:
        """Return x as (T, B, I) in the reservoir's dtype."""
        if not isinstance(x, Tensor):
            raise ValueError(
                f"ESN: x must be a tensor, got {type(x).__name__}; convert an array with "
                "torch.from_numpy(x)"
            )
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            form = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(
                f"ESN: x must have shape (T, I) or {form} with I = {self.input_size}, got "
                f"{tuple(x.shape)}"
            )
        dense = self._time_first(x.detach(), x.dim() == 2)
        if dense.shape[0] == 0 or dense.shape[1] == 0:
            raise ValueError(f"ESN: x must have at least one step, got {tuple(x.shape)}")
        return dense.to(self.dtype)

    def _time_first(self, values: Tensor, single: bool) -> Tensor:
        if single:
            return values.unsqueeze(1)
        return values.transpose(0, 1) if self.batch_first else values

    def _numbers(self, y: Tensor | int, dims: int, single: bool) -> Tensor:
        """Return targets with their last dimension; whole numbers are classes."""
        if isinstance(y, int):
            y = torch.tensor(y)
        if not isinstance(y, Tensor):
            raise ValueError(f"ESN: y must be a tensor, got {type(y).__name__}")
        y = y.detach()
        lead = dims if not single else dims - 1
        if not y.is_floating_point() and y.dim() == lead and self.output_size > 1:
            if y.numel() and (int(y.min()) < 0 or int(y.max()) >= self.output_size):
                raise ValueError(
                    f"ESN: y must hold classes from 0 to {self.output_size - 1}, got "
                    f"{int(y.min())} to {int(y.max())}"
                )
            return torch.nn.functional.one_hot(y.long(), self.output_size).double()
        if y.dim() == lead and self.output_size == 1:
            y = y.unsqueeze(-1)
        return y if y.is_floating_point() else y.double()

    def _listed(self, x: Any, y: Any, weights: Any) -> Iterator[Piece]:
        if not isinstance(y, list | tuple | Tensor) or len(y) != len(x):
            raise ValueError(
                f"ESN: y must have one entry for each of the {len(x)} series of x, got "
                f"{len(y) if isinstance(y, list | tuple | Tensor) else y!r}"
            )
        if not x:
            raise ValueError("ESN: x must hold at least one series, got an empty list")
        if weights is not None and len(weights) != len(x):
            raise ValueError(
                f"ESN: sample_weight must have one entry for each of the {len(x)} series, got "
                f"{len(weights)}"
            )
        singles = []
        for i, (series, target) in enumerate(zip(x, y, strict=True)):
            if not isinstance(series, Tensor) or series.dim() != 2:
                raise ValueError(f"ESN: x must be a list of tensors (T, I); number {i} is not")
            weight = None if weights is None else weights[i]
            if weight is not None and self.pooled:
                weight = torch.as_tensor(weight).reshape(1)
            try:
                singles.append(self.piece(series, target, weight))
            except ValueError as error:
                raise ValueError(f"{error} (series number {i})") from None
        yield from side_by_side(singles, self.pooled)


def side_by_side(singles: list[Piece], pooled: bool) -> Iterator[Piece]:
    """Yield series in padded batches of about the same length."""
    order = sorted(range(len(singles)), key=lambda i: singles[i].x.shape[0])
    group: list[Piece] = []
    for i in order:
        group.append(singles[i])
        if group[-1].x.shape[0] * len(group) >= GROUP_STEPS:
            yield padded(group, pooled)
            group = []
    if group:
        yield padded(group, pooled)


def padded(group: list[Piece], pooled: bool) -> Piece:
    """Return single series as one batch."""
    if len(group) == 1:
        return group[0]

    def pad(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([part.squeeze(1) for part in parts])

    y = [piece.y for piece in group]
    weights = [piece.weights for piece in group if piece.weights is not None]
    return Piece(
        pad([piece.x for piece in group]),
        torch.cat(y) if pooled else pad(y),
        torch.tensor([piece.x.shape[0] for piece in group]),
        None if not weights else torch.cat(weights) if pooled else pad(weights),
    )


def check_finite(name: str, values: Tensor) -> None:
    """Raise a ``ValueError`` that names the argument and its first column with NaN or infinity."""
    finite = torch.isfinite(values).flatten(0, -2).all(0)
    if not bool(finite.all()):
        column = int(torch.nonzero(~finite)[0])
        raise ValueError(
            f"ESN: {name} must be finite, got NaN or infinity in column {column}; remove or fill "
            "these steps"
        )


class Ranges:
    """The smallest and largest value of each column, to find columns that never change."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.rows = 0
        self.low = torch.full((size,), float("inf"), dtype=torch.float64)
        self.high = -self.low

    def update(self, values: Tensor) -> None:
        """Take rows (n, size)."""
        if values.shape[0]:
            self.rows += values.shape[0]
            self.low = torch.minimum(self.low, values.amin(0).double())
            self.high = torch.maximum(self.high, values.amax(0).double())

    def check(self, group: Any) -> None:
        """Raise a ``ValueError`` if a column is constant in the rows of all ranks."""
        if group is not None:
            from torch import distributed

            where = None if group == "world" else group
            distributed.all_reduce(self.low, distributed.ReduceOp.MIN, group=where)
            distributed.all_reduce(self.high, distributed.ReduceOp.MAX, group=where)
        constant = torch.nonzero(self.low == self.high).flatten().tolist()
        if constant and self.rows > 1:
            raise ValueError(
                f"ESN: {self.name} must not be constant, got {float(self.low[constant[0]])} "
                f"throughout column {constant[0]}; leave the column out (a reservoir has a bias "
                "of its own)"
            )
