"""Padded input with lengths and resets: the table of rows that the engine follows, and its states.

A reset cuts a sequence in segments. To the engine each segment is a sequence of its own; sorted by
length, their rows are a packed batch, whose places in the padded input the table gives. So nothing
is copied, and padding is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import _errors
from ._problem import Ragged

Lengths = Tensor | Sequence[int] | int
"""One length for each sequence; a plain number where there is no batch."""

_Ints = npt.NDArray[np.int64]


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
    if reset_mask is None:
        return _without_resets(T, steps)
    form = "(T)" if unbatched else "(B, T)" if batch_first else "(T, B)"
    mask = _mask(owner, reset_mask, tuple(x.shape[:-1]), form)
    if unbatched:
        mask = mask[:, None]
    return _with_resets(T, steps, mask.T if batch_first and not unbatched else mask)


def _mask(owner: str, mask: object, shape: tuple[int, ...], form: str) -> npt.NDArray[np.bool_]:
    if isinstance(mask, Tensor) and mask.is_cuda:
        mask = mask.cpu()
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or not mask.is_cpu:
        got = f"{mask.dtype} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
        raise _errors.segments(
            owner, "reset_mask", "be a torch.bool tensor on the CPU", got, kind=True
        )
    if mask.shape != shape:
        raise _errors.segments(
            owner, "reset_mask", f"have shape {form} = {shape}", tuple(mask.shape)
        )
    return mask.numpy()


def _steps(owner: str, T: int, B: int, lengths: Lengths | None, unbatched: bool) -> _Ints:
    if lengths is None:
        return np.full(B, T, dtype=np.int64)
    if isinstance(lengths, Tensor):
        lengths = lengths.cpu() if lengths.is_cuda else lengths
        right = lengths.dtype in (torch.int64, torch.int32) and lengths.is_cpu
        got: object = f"{lengths.dtype} on {lengths.device}"
        given = lengths.detach().numpy() if right else np.empty(0)
    else:
        got, given = repr(lengths), np.asarray(lengths)
        right = np.issubdtype(given.dtype, np.integer) or given.shape == (0,)
    if not right:
        expected_kind = "be ints, or a torch.int64 or int32 tensor on the CPU"
        raise _errors.segments(owner, "lengths", expected_kind, got, kind=True)
    expected = () if unbatched else (B,)
    if given.shape != expected:
        form = "() as there is no batch" if unbatched else f"(B,) = ({B},)"
        raise _errors.segments(owner, "lengths", f"have shape {form}", given.shape)
    steps = given.astype(np.int64).reshape(B)
    if B and (steps.min() < 0 or steps.max() > T):
        raise _errors.segments(owner, "lengths", f"be in [0, T] = [0, {T}]", steps.tolist())
    return steps


def _without_resets(T: int, steps: _Ints) -> Segments:
    B = len(steps)
    order = np.argsort(-steps, kind="stable")
    S = int(np.count_nonzero(steps))
    sorted_steps = steps[order]
    longest = int(sorted_steps[0]) if S else 0
    alive = sorted_steps[:S] > np.arange(longest)[:, None]
    rows = (np.arange(longest)[:, None] * B + order[:S])[alive]
    rank = np.empty(B, dtype=np.int64)
    rank[order] = np.arange(B)
    rank[steps == 0] = 0  # any segment: `empty` takes its place
    ragged = _ragged(alive.sum(1), rows, S, (T, B))
    empty = None if S == B else torch.from_numpy(steps == 0)
    last = torch.from_numpy(np.stack([rank, rank]))
    return Segments(ragged, torch.from_numpy(order[:S].copy()), None, last, empty)


def _with_resets(T: int, steps: _Ints, mask: npt.NDArray[np.bool_]) -> Segments:
    B = len(steps)
    times = np.arange(T)[:, None]
    valid = times < steps
    starts = (mask & valid) | ((times == 0) & valid)
    begun = np.maximum.accumulate(np.where(starts, times, 0), axis=0)
    # Segments are numbered sequence by sequence, in order of time.
    number = np.cumsum(starts.T.reshape(-1)).reshape(B, T).T - 1
    b, t = np.nonzero(valid.T)
    own, local = number[t, b], t - begun[t, b]
    length = np.bincount(own)
    S = len(length)
    order = np.argsort(-length, kind="stable")
    rank = np.empty(S, dtype=np.int64)
    rank[order] = np.arange(S)

    alive = np.bincount(local)
    before = np.concatenate([[0], np.cumsum(alive)])
    rows = np.empty(len(t), dtype=np.int64)
    rows[before[local] + rank[own]] = t * B + b

    count = starts.sum(0)
    first = np.concatenate([[0], np.cumsum(count)])[:-1]
    owner = np.repeat(np.arange(B), count)[order]
    lasts, firsts = np.zeros(B, dtype=np.int64), np.zeros(B, dtype=np.int64)
    some = steps > 0
    firsts[some] = rank[first[some]]
    lasts[some] = rank[first[some] + count[some] - 1]
    fresh = np.ones((2, S), dtype=bool)
    fresh[0, firsts[some]] = mask[0, some]  # a reset before the first step drops the state
    fresh[1, lasts[some]] = False
    return Segments(
        _ragged(alive, rows, S, (T, B)),
        torch.from_numpy(owner),
        torch.from_numpy(fresh),
        torch.from_numpy(np.stack([lasts, firsts])),
        None if some.all() else torch.from_numpy(~some),
    )


def _ragged(alive: _Ints, rows: _Ints, S: int, padded: tuple[int, int]) -> Ragged:
    T = max(len(alive), 1)
    offsets = np.zeros(T + 1, dtype=np.int64)
    np.cumsum(alive, out=offsets[1 : len(alive) + 1])
    return Ragged(torch.from_numpy(offsets), T, S, len(rows), torch.from_numpy(rows), padded)
