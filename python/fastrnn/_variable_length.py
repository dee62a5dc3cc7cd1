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

from . import _checks, _errors, _plans
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
    owner: Ints
    fresh: Bools | None
    last: Ints
    empty: Bools | None

    def enter(self, state: Tensor | None, directions: int) -> Tensor | None:
        """Turn initial states (L*D, B, F) into those of the segments, (L*D, S, F)."""
        if state is None:
            return None
        entered = state.index_select(1, _tensor(self.owner, state))
        if self.fresh is None:
            return entered
        by_direction = entered.view(state.shape[0] // directions, directions, *entered.shape[1:])
        mask = _tensor(self.fresh[:directions], state).unsqueeze(-1)
        return by_direction.masked_fill(mask, 0.0).flatten(0, 1)

    def leave(self, state: Tensor, initial: Tensor | None, directions: int) -> Tensor:
        """Turn final states (L*D, S, F) of segments into those of sequences, (L*D, B, F)."""
        if self.ragged.B == 0:
            shape = (state.shape[0], self.last.shape[1], state.shape[2])
            return state.new_zeros(shape) if initial is None else initial.clone()
        if self.fresh is None:
            left = state.index_select(1, _tensor(self.last[0], state))
        else:
            at = _tensor(self.last[:directions], state)
            by_direction = state.view(state.shape[0] // directions, directions, *state.shape[1:])
            which = torch.arange(directions, device=state.device).unsqueeze(1)
            left = by_direction[:, which, at].flatten(0, 1)
        if self.empty is None:
            return left
        mask = _tensor(self.empty, state).unsqueeze(-1)
        if initial is None:
            return left.masked_fill(mask, 0.0)
        return torch.where(mask, initial, left)


def _tensor(array: npt.NDArray[Any], like: Tensor) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if like.is_cpu else tensor.to(like.device)


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
    # In NumPy: tensors that are made under one of torch.func's transforms have no address.
    try:
        longest, count, N, empty, offsets, rows, of, fresh, last = _plans.core.segments(
            T, B, steps, mask
        )
    except ValueError:
        given = None if steps is None else steps.tolist()
        expected = f"be in [0, T] = [0, {T}]"
        raise _errors.segments(owner, "lengths", expected, given) from None
    table = torch.from_numpy(rows)
    return Segments(
        Ragged(torch.from_numpy(offsets), longest, count, N, table, (T, B)),
        of,
        None if mask is None else fresh,
        last,
        steps == 0 if empty and steps is not None else None,
    )


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
        given = lengths.detach().numpy() if right else np.empty(0)
    else:
        try:
            given = np.asarray(lengths)
        except (ValueError, TypeError):  # of lists with several lengths
            given = np.empty(1)
        right = np.issubdtype(given.dtype, np.integer) or given.shape == (0,)
    if not right:
        expected_kind = "be ints, or a torch.int64 or int32 tensor on the CPU"
        got = _described(lengths) if isinstance(lengths, Tensor) else repr(lengths)
        raise _errors.segments(owner, "lengths", expected_kind, got, kind=True)
    expected = () if unbatched else (B,)
    if given.shape != expected:
        form = "() as there is no batch" if unbatched else f"(B,) = ({B},)"
        raise _errors.segments(owner, "lengths", f"have shape {form}", given.shape)
    return np.ascontiguousarray(given, np.int64).reshape(B)
