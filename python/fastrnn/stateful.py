"""Modules that go on where the call before ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .truncated import detached, mapped

if TYPE_CHECKING:
    from typing_extensions import Self


class Stateful(torch.nn.Module):
    r"""Keep a recurrent module's state from call to call.

    Each call starts from the state in which the one before ended, without its history:

    .. math::
        (o_c, s_c) = f_\theta(x_c, \operatorname{detach}(s_{c-1})), \qquad s_0 = 0

    so that gradients end at the border between calls, and a long sequence may be fed in pieces. Row
    b of every batch continues row b of the one before.

    Args:
        module: called as ``module(input, hx)``: a layer or a cell of fastrnn or ``torch.nn``, or a
            model with the same interface.
        persistent: whether ``state_dict`` has the state. Default: ``False``.

    Shape:
        Those of the module.

    Raises:
        RuntimeError: if a batch has another size than the state; see :meth:`reset`.

    Source:
        ``stateful=True`` of Keras's recurrent layers, with an explicit state.
    """

    def __init__(self, module: torch.nn.Module, persistent: bool = False) -> None:
        super().__init__()
        self.module = module
        self.persistent = persistent
        self._state: Any = None

    @property
    def state(self) -> Any:
        """The state, as the module takes it, detached; ``None`` for zeros. May be assigned."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state = detached(state)

    def forward(self, input: Tensor | PackedSequence, **options: Any) -> Any:
        """Run the module from the kept state and keep the new one.

        Args:
            input: as the module takes it.
            options: handed on to the module.

        Returns:
            What the module returns: of a layer the output and the final states, of a cell those.
        """
        hx = self._state
        if hx is not None:
            self._check_batch(input, hx)
            hx = mapped(_usable, hx)
        result = self.module(input, hx, **options)
        self.state = result if self._is_cell() else result[1]
        return result

    def reset(self, rows: Any = None) -> None:
        """Set the state to zero, of the whole batch or of chosen rows.

        Args:
            rows: row numbers, or a bool for each row of the batch, True for those to reset; a
                tensor or a list. Default: all rows, and the next batch may have any size.

        Raises:
            IndexError: if a row is out of range.
            RuntimeError: if the state has no batch.
        """
        if rows is None or self._state is None:
            self._state = None if rows is None else self._state
            return
        dim = -2
        first = next(_leaves(self._state))
        if first.dim() != (2 if self._is_cell() else 3):
            raise RuntimeError("Stateful: rows must be None, as the state has no batch")
        size = first.shape[dim]
        chosen = torch.as_tensor(rows, device=first.device)
        if chosen.dtype is torch.bool:
            if chosen.shape != (size,):
                raise IndexError(f"Stateful: rows must have shape ({size},), got {chosen.shape}")
            mask = chosen
        else:
            mask = torch.zeros(size, dtype=torch.bool, device=first.device)
            mask[chosen.long()] = True
        self._state = mapped(lambda state: state.masked_fill(mask.unsqueeze(1), 0), self._state)

    def extra_repr(self) -> str:
        """Return the options."""
        return "persistent=True" if self.persistent else ""

    def _is_cell(self) -> bool:
        return isinstance(self.module, torch.nn.RNNCellBase)

    def _check_batch(self, input: Any, hx: Any) -> None:
        """Raise if the batch is not that of the state; what else is wrong the module says."""
        state = next(_leaves(hx))
        if isinstance(input, PackedSequence):
            size = int(input.batch_sizes[0])
        elif self._is_cell() and input.dim() == 2:
            size = input.shape[0]
        elif not self._is_cell() and input.dim() == 3:
            size = input.shape[0 if getattr(self.module, "batch_first", False) else 1]
        else:
            return
        if state.dim() > 1 and state.shape[-2] != size:
            raise RuntimeError(
                f"Stateful: input must have a batch of {state.shape[-2]}, as the state has, got "
                f"{size}; call reset() before a new batch"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._state = mapped(fn, self._state)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.persistent and self._state is not None:
            if isinstance(self._state, Tensor):
                destination[f"{prefix}state"] = self._state
            else:
                for k, state in enumerate(_leaves(self._state)):
                    destination[f"{prefix}state.{k}"] = state

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kw: Any
    ) -> None:
        if self.persistent:
            own = dict(state_dict)
            single = own.pop(f"{prefix}state", None)
            count = 0
            parts = []
            while f"{prefix}state.{count}" in own:
                parts.append(own.pop(f"{prefix}state.{count}"))
                count += 1
            self.state = single if single is not None else (tuple(parts) or None)
            state_dict = own
        super()._load_from_state_dict(state_dict, prefix, *args, **kw)


def _leaves(hx: Any) -> Any:
    if isinstance(hx, Tensor):
        yield hx
    else:
        for state in hx:
            yield from _leaves(state)


def _usable(state: Tensor) -> Tensor:
    """Return a state that autograd can keep, which one from inference mode is not."""
    return (
        state.clone() if state.is_inference() and not torch.is_inference_mode_enabled() else state
    )
