"""Padded input with lengths and resets: the table of rows that the engine follows, and its states.

A reset cuts a sequence in segments. To the engine each segment is a sequence of its own; sorted by
length, their rows are a packed batch, whose places in the padded input the table gives. So nothing
is copied, and padding is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import _checks, _errors, _ops
from ._problem import Ragged

Lengths = Tensor | Sequence[int] | int
"""One length for each sequence; a plain number where there is no batch."""

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Segments:
    """How the sequences of a padded batch appear to the engine.

    Args:
        ragged: the rows of the segments.
        owner: (S): the sequence that each segment is of.
        fresh: (2, S), for each direction: the segment starts from zero and not from the
            sequence's initial state.
        last: (2, B), for each direction: the segment whose final state is the sequence's.
        empty: (B): the sequence has no steps.
    """

    ragged: Ragged
    owner: Tensor
    fresh: Tensor | None
    last: Tensor
    empty: Tensor | None

    def enter(self, state: Tensor | None, directions: int) -> Tensor | None:
        """Turn initial states (L*D, B, F) into those of the segments, (L*D, S, F)."""
        if state is None:
            return None
        entered = state.index_select(1, self.owner.to(state.device))
        if self.fresh is None:
            return entered
        by_direction = entered.view(state.shape[0] // directions, directions, *entered.shape[1:])
        mask = self.fresh[:directions].unsqueeze(-1).to(state.device)
        return by_direction.masked_fill(mask, 0.0).flatten(0, 1)

    def leave(self, state: Tensor, initial: Tensor | None, directions: int) -> Tensor:
        """Turn final states (L*D, S, F) of segments into those of sequences, (L*D, B, F)."""
        if self.ragged.B == 0:
            shape = (state.shape[0], self.last.shape[1], state.shape[2])
            return state.new_zeros(shape) if initial is None else initial.clone()
        at = self.last[:directions].to(state.device)
        if self.fresh is None:
            left = state.index_select(1, at[0])
        else:
            by_direction = state.view(state.shape[0] // directions, directions, *state.shape[1:])
            which = torch.arange(directions, device=state.device).unsqueeze(1)
            left = by_direction[:, which, at].flatten(0, 1)
        if self.empty is None:
            return left
        mask = self.empty.unsqueeze(-1).to(state.device)
        if initial is None:
            return left.masked_fill(mask, 0.0)
        return torch.where(mask, initial, left)


def describe(
    owner: str,
    x: Tensor,
    batch_first: bool,
    lengths: Lengths | None,
    reset_mask: Tensor | None,
) -> Segments:
    """Describe the sequences of a padded batch.

    Args:
        owner: the class that error messages speak of.
        x: input, (T, B, I), or (B, T, I) if ``batch_first``, or (T, I) without a batch.
        batch_first: see there.
        lengths: B numbers in [0, T]; a number without a batch; ``None``: all are T.
        reset_mask: bool, shaped as the input without features; ``None``: no resets.

    Raises:
        TypeError, ValueError: if lengths or mask do not fit the input.
    """
    unbatched = x.dim() == 2
    T, B = (x.shape[0], 1) if unbatched else x.shape[:2]
    if batch_first and not unbatched:
        T, B = B, T
    steps = _steps(owner, T, B, lengths, unbatched)
    mask = None
    if reset_mask is not None:
        form = "(T)" if unbatched else "(B, T)" if batch_first else "(T, B)"
        mask = _mask(owner, reset_mask, tuple(x.shape[:-1]), form)
        mask = mask[:, None] if unbatched else mask.T if batch_first else mask
    try:
        ragged, of, fresh, last, empty = _segments(T, B, steps, mask)
    except ValueError:
        given = None if steps is None else steps.tolist()
        expected = f"be in [0, T] = [0, {T}]"
        raise _errors.segments(owner, "lengths", expected, given) from None
    return Segments(
        ragged,
        torch.from_numpy(of),
        None if mask is None else torch.from_numpy(fresh),
        torch.from_numpy(last),
        torch.from_numpy(steps == 0) if empty and steps is not None else None,
    )


def _segments(
    T: int, B: int, lengths: Ints | None, reset_mask: Bools | None
) -> tuple[Ragged, Ints, Bools, Ints, int]:
    """Cut padded sequences in segments, as :class:`Segments` has them.

    In NumPy: tensors that are made under one of ``torch.func``'s transforms have no address.

    Args:
        T: steps of the padded batch.
        B: sequences of it.
        lengths: contiguous, (B).
        reset_mask: (T, B).

    Returns:
        The rows, owner, fresh and last of the segments; the number of sequences without steps.

    Raises:
        ValueError: if a length is not in [0, T].
    """
    strides = (0, 0) if reset_mask is None else reset_mask.strides
    batch = _ops.core.PaddedBatch(T, B, _array(lengths), _array(reset_mask), *strides)
    steps, count, rows, empty = batch.sizes()
    offsets = np.zeros(max(steps, 1) + 1, np.int64)
    table, owner = np.empty(rows, np.int64), np.empty(count, np.int64)
    fresh, last = np.empty((2, count), np.bool_), np.empty((2, B), np.int64)
    batch.segments(
        _array(offsets), _array(table), _array(owner), _array(fresh), count, _array(last)
    )
    numbers = torch.from_numpy(offsets), max(steps, 1), count, rows, torch.from_numpy(table)
    return Ragged(*numbers, (T, B)), owner, fresh, last, empty


def _array(array: npt.NDArray[Any] | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _readable(tensor: Tensor) -> bool:
    """Tell whether NumPy can read a tensor: it is on the CPU, and its values in its own memory."""
    if type(tensor) not in _checks.PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
        return False
    return tensor.numel() == 0 or tensor.data_ptr() != 0


def _described(tensor: Tensor) -> str:
    kind = f"{tensor.dtype} on {tensor.device}"
    if not tensor.is_cpu or _readable(tensor):
        return kind
    return f"{kind} without its values in memory ({type(tensor).__name__}, {tensor.layout})"


def _mask(owner: str, mask: object, shape: tuple[int, ...], form: str) -> Bools:
    if isinstance(mask, Tensor) and mask.is_cuda:
        mask = mask.cpu()
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or not _readable(mask):
        got = _described(mask) if isinstance(mask, Tensor) else type(mask).__name__
        raise _errors.segments(
            owner, "reset_mask", "be a torch.bool tensor on the CPU", got, kind=True
        )
    if mask.shape != shape:
        raise _errors.segments(
            owner, "reset_mask", f"have shape {form} = {shape}", tuple(mask.shape)
        )
    return mask.numpy()


def _steps(owner: str, T: int, B: int, lengths: Lengths | None, unbatched: bool) -> Ints | None:
    if lengths is None:
        return None
    if isinstance(lengths, Tensor):
        lengths = lengths.cpu() if lengths.is_cuda else lengths
        right = lengths.dtype in (torch.int64, torch.int32) and _readable(lengths)
        got: object = _described(lengths)
        given = lengths.detach().numpy() if right else np.empty(0)
    else:
        got = repr(lengths)
        try:
            given = np.asarray(lengths)
        except (ValueError, TypeError):  # of lists with several lengths
            given = np.empty(1)
        right = np.issubdtype(given.dtype, np.integer) or given.shape == (0,)
    if not right:
        expected_kind = "be ints, or a torch.int64 or int32 tensor on the CPU"
        raise _errors.segments(owner, "lengths", expected_kind, got, kind=True)
    expected = () if unbatched else (B,)
    if given.shape != expected:
        form = "() as there is no batch" if unbatched else f"(B,) = ({B},)"
        raise _errors.segments(owner, "lengths", f"have shape {form}", given.shape)
    return np.ascontiguousarray(given, np.int64).reshape(B)
