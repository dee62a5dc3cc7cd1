"""What a fit needs of the engine: Gram matrices, and runs in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _engine, _inputs

if TYPE_CHECKING:
    from .reservoir import Reservoir

BLOCK_BYTES, BLOCK_ROWS = 1 << 20, 512


def gram_update(
    states: Tensor,
    targets: Tensor,
    gram: Tensor,
    cross: Tensor,
    sums: Tensor,
    shift: Tensor | None = None,
    target_shift: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> None:
    """Add a block of rows to the sums that a ridge regression needs, in float64.

    With ``X = states - shift`` and ``Y = targets - target_shift`` as float64 and w the weights:
    ``gram += X^T diag(w) X`` (upper triangle only, the rest is neither read nor written),
    ``cross += X^T diag(w) Y``, ``sums += X^T w``.

    Args:
        states: (n, N), float32 or float64, features adjacent (stride 1); rows at any stride.
        targets: (n, O), float32 or float64, as ``states``.
        gram: (N, N), float64, contiguous; its upper triangle is added to.
        cross: (N, O), float64, contiguous; added to.
        sums: (N,), float64; added to.
        shift: (N,), float64, or ``None`` for zeros.
        target_shift: (O,), float64, or ``None`` for zeros.
        sample_weight: (n,), float64, or ``None`` for ones.
    """
    n, N = states.shape
    O = targets.shape[1]
    for name, value, shape in (
        ("targets", targets, (n, O)),
        ("gram", gram, (N, N)),
        ("cross", cross, (N, O)),
        ("sums", sums, (N,)),
        ("shift", shift, (N,)),
        ("target_shift", target_shift, (O,)),
        ("sample_weight", sample_weight, (n,)),
    ):
        if value is None:
            continue
        _inputs.check_shape("gram_update", name, str(shape), shape, value)
        if name != "targets" and (value.dtype != torch.float64 or not value.is_contiguous()):
            raise ValueError(
                f"gram_update: {name} must be float64 and contiguous, got {value.dtype} with "
                f"strides {value.stride()}"
            )
    for name, value in (("states", states), ("targets", targets)):
        if value.dtype not in _engine.DTYPES or (value.shape[1] > 1 and value.stride(1) != 1):
            raise ValueError(
                f"gram_update: {name} must be float32 or float64 with adjacent features, got "
                f"{value.dtype} with strides {value.stride()}"
            )
    if any(t.device.type != "cpu" for t in (states, targets, gram, cross, sums)):
        raise ValueError("gram_update: all tensors must be on the CPU")
    if sample_weight is not None and n and float(sample_weight.min()) < 0:
        raise ValueError("gram_update: sample_weight must not be negative")
    _engine.accumulate(states, targets, gram, cross, sums, shift, target_shift, sample_weight)


def run_blocks(
    res: Reservoir,
    x: Tensor,
    h0: Tensor | None = None,
    feedback: Tensor | None = None,
    block_steps: int | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Run a reservoir over a long input, yielding its states block by block.

    Memory does not depend on T. Blocks laid end to end equal ``res(x, h0, feedback=feedback)[0]``
    bit by bit. A bidirectional reservoir has to know the end first: it yields one block.

    Args:
        res: the reservoir.
        x: (T, B, I), (B, T, I) with ``res.batch_first``, or (T, I), with T >= 1.
        h0: (L*D, B, N) or (L*D, N); default zeros.
        feedback: as ``x``, with ``res.feedback_size`` features.
        block_steps: steps per block, >= 1; default: those of a megabyte of states, at least 512
            rows, which ``gram_update`` takes in one go.

    Yields:
        (steps, y, h): the slice of steps, the states of these steps laid out as ``x`` with
        ``res.output_size`` features, and the state after them.
    """
    time = 1 if res.batch_first and x.dim() == 3 else 0
    T = x.shape[time]
    rows = x.shape[1 - time] if x.dim() == 3 else 1
    if block_steps is None:
        wanted = max(BLOCK_ROWS, BLOCK_BYTES // (res.output_size * x.element_size()))
        block_steps = max(1, wanted // max(rows, 1))
    if block_steps < 1:
        raise ValueError(f"run_blocks: block_steps must be at least 1, got {block_steps}")
    if res.bidirectional:
        block_steps = T
    h = h0
    for start in range(0, T, block_steps):
        count = min(block_steps, T - start)
        given = None if feedback is None else feedback.narrow(time, start, count)
        y, h = res(x.narrow(time, start, count), h, feedback=given)
        yield slice(start, start + count), y, h
