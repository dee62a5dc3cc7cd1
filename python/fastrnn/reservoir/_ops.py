"""What an echo state network needs of the engine besides a module call.

Accumulation of Gram matrices, runs in blocks of bounded memory, and closed-loop forecasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .reservoir import Reservoir


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
    x = states.double() if shift is None else states.double() - shift
    y = targets.double() if target_shift is None else targets.double() - target_shift
    weighted = x if sample_weight is None else x * sample_weight[:, None]
    gram += (weighted.T @ x).triu()
    cross += weighted.T @ y
    sums += weighted.sum(0)


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
        block_steps: steps per block; default: what keeps a block within half of an L2 cache.

    Yields:
        (steps, y, h): the slice of steps, the states of these steps laid out as ``x`` with
        ``res.output_size`` features, and the state after them. ``y`` is overwritten by the next
        block.
    """
    time = 1 if res.batch_first and x.dim() == 3 else 0
    T = x.shape[time]
    rows = x.shape[1 - time] if x.dim() == 3 else 1
    if block_steps is None:
        block_steps = max(1, (1 << 19) // (max(rows, 1) * res.output_size * x.element_size()))
    if res.bidirectional:
        block_steps = T
    h = h0
    for start in range(0, T, block_steps):
        count = min(block_steps, T - start)
        given = None if feedback is None else feedback.narrow(time, start, count)
        y, h = res(x.narrow(time, start, count), h, feedback=given)
        yield slice(start, start + count), y, h


@torch.no_grad()
def forecast(
    res: Reservoir,
    readout_weight: Tensor,
    readout_bias: Tensor | None,
    state: Tensor,
    horizon: int,
    drivers: Tensor | None = None,
    *,
    last_input: Tensor | None = None,
    square: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a reservoir in closed loop: its readout is its next input.

    For j = 0, 1, ..., with s the states of all layers side by side and u the last input:
    ``out[j] = readout_weight @ [s; u] + readout_bias``, then s advances by one step on
    ``u = [out[j]; drivers[j]]``, or, if ``res.feedback_size > 0``, on ``u = drivers[j]`` and the
    feedback ``out[j]``. So after a warm-up on x[0..T-1], ``out[j]`` predicts x[T + j], and going on
    from the returned state and the last input gives what one longer call would have given.

    Args:
        res: a reservoir of one direction; input_size must be O + D, or D with feedback of size O.
        readout_weight: (O, res.output_size) or (O, res.output_size + res.input_size), float64 or
            the reservoir's dtype; the product is made in float64.
        readout_bias: (O,) or ``None``.
        state: (L, B, N) or (L, N), after the warm-up.
        horizon: number of steps, >= 0.
        drivers: (horizon, B, D) or (horizon, D): known inputs beside the fed-back ones;
            (B, horizon, D) with ``res.batch_first``.
        last_input: (B, I) or (I,), the last input of the warm-up; needed if the readout sees inputs.
        square: replace every second state (indices 1, 3, ...) by its square before the readout.

    Returns:
        out, (horizon, B, O), (B, horizon, O) with ``res.batch_first``, or (horizon, O), in the
        reservoir's dtype; and the state after the last step, as ``state``.

    Raises:
        ValueError: if sizes do not fit; it names the argument.
    """
    raise NotImplementedError
