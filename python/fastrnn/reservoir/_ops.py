"""What an echo state network needs of the engine besides a module call.

Accumulation of Gram matrices, runs in blocks of bounded memory, and closed-loop forecasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _engine, _inputs
from .population import RingReservoirs

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


@torch.no_grad()
def forecast(
    res: Reservoir | RingReservoirs,
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
            Or a ``RingReservoirs`` with input_size O: its groups wait for each other's outputs, so
            each step is a call.
        readout_weight: (O, res.output_size) or (O, res.output_size + res.input_size), float64 or
            the reservoir's dtype; the product is made in float64.
        readout_bias: (O,) or ``None``.
        state: (L, B, N) or (L, N), of a ring (G, L, B, N) or (G, L, N), after the warm-up.
        horizon: number of steps, >= 0.
        drivers: (horizon, B, D) or (horizon, D): known inputs beside the fed-back ones;
            (B, horizon, D) with ``res.batch_first``.
        last_input: (B, I) or (I,), the last input of the warm-up; needed if the readout sees it.
        square: replace every second state of each layer (indices 1, 3, ...) by its square before
            the readout.

    Returns:
        out, (horizon, B, O), (B, horizon, O) with ``res.batch_first``, or (horizon, O), in the
        reservoir's dtype; and the state after the last step, as ``state``.

    Raises:
        ValueError: if sizes do not fit; it names the argument.
    """
    if isinstance(res, RingReservoirs):
        if drivers is not None or last_input is not None:
            raise ValueError("forecast: drivers and last_input must be None for a ring")
        return _ring_forecast(res, readout_weight, readout_bias, state, horizon, square)
    if res.bidirectional:
        raise ValueError(
            "forecast: res must not be bidirectional: it would have to know the future"
        )
    batched = state.dim() == 3
    single = state if batched else state.unsqueeze(1)
    L, B, N = res.num_layers, single.shape[1], res.hidden_size
    _inputs.check_shape("forecast", "state", "(L, B, N)", (L, B, N), single)
    _inputs.check_tensor("forecast", "state", state, res.dtype)
    if horizon < 0:
        raise ValueError(f"forecast: horizon must not be negative, got {horizon}")
    O = _check_readout(res, readout_weight, readout_bias)
    D = _drivers_size(res, O)
    sees_input = readout_weight.shape[1] > res.output_size
    u = _last_input(res, last_input, sees_input, B, batched)
    out = torch.empty(1, horizon, B, O, dtype=torch.float64)
    final = single.contiguous().clone()[None]
    _engine.forecast(
        [layer.weights() for layer in res.layers],  # type: ignore[operator]
        readout_weight.detach().double().contiguous()[None],
        None if readout_bias is None else readout_bias.detach().double().contiguous()[None],
        _laid_out(res, drivers, horizon, B, D, batched),
        u[None],
        final,
        out,
        square,
    )
    result = out[0].to(res.dtype)
    if not batched:
        return result[:, 0], final[0, :, 0]
    return result.transpose(0, 1) if res.batch_first else result, final[0]


def _ring_forecast(
    ring: RingReservoirs,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    horizon: int,
    square: bool,
) -> tuple[Tensor, Tensor]:
    batched = state.dim() == 4
    h = state if batched else state.unsqueeze(-2)
    L, B, N = ring.num_layers, h.shape[-2], ring.hidden_size
    _inputs.check_shape("forecast", "state", "(G, L, B, N)", (ring.groups, L, B, N), h)
    expected = (ring.input_size, ring.output_size)
    _inputs.check_shape("forecast", "readout_weight", "(Q, G*L*N)", expected, weight)
    odd = (torch.arange(ring.output_size) % N % 2 == 1) & square
    w, b = weight.double(), 0 if bias is None else bias.double()
    steps = []
    for _ in range(horizon):
        s = h.permute(2, 0, 1, 3).reshape(B, -1).double()
        u = torch.where(odd, s * s, s) @ w.T + b
        steps.append(u.to(ring.dtype))
        _, h = ring(steps[-1].unsqueeze(1 if ring.batch_first else 0), h)
    out = torch.stack(steps) if steps else h.new_empty(0, B, ring.input_size)
    if not batched:
        return out[:, 0], h.squeeze(-2)
    return out.transpose(0, 1) if ring.batch_first else out, h


def _check_readout(res: Reservoir, weight: Tensor, bias: Tensor | None) -> int:
    """Return O."""
    widths = (res.output_size, res.output_size + res.input_size)
    if weight.dim() != 2 or weight.shape[1] not in widths or weight.shape[0] < 1:
        raise ValueError(
            f"forecast: readout_weight must have shape (O, {widths[0]}), or (O, {widths[1]}) with "
            f"inputs, got {tuple(weight.shape)}"
        )
    if bias is not None:
        _inputs.check_shape("forecast", "readout_bias", "(O,)", (weight.shape[0],), bias)
    return weight.shape[0]


def _drivers_size(res: Reservoir, O: int) -> int:
    """Return D: inputs that the readout does not bring."""
    if res.feedback_size:
        if res.feedback_size != O:
            raise ValueError(
                f"forecast: readout_weight must have O = feedback_size = {res.feedback_size} rows, "
                f"got {O}"
            )
        return res.input_size
    if res.input_size < O:
        raise ValueError(
            f"forecast: readout_weight has {O} outputs, but the reservoir only {res.input_size} "
            "inputs and no feedback (feedback_size)"
        )
    return res.input_size - O


def _last_input(
    res: Reservoir, last_input: Tensor | None, needed: bool, B: int, batched: bool
) -> Tensor:
    if last_input is None:
        if needed:
            raise ValueError("forecast: last_input must be given, since the readout sees inputs")
        return torch.zeros(B, res.input_size, dtype=res.dtype)
    _inputs.check_tensor("forecast", "last_input", last_input, res.dtype)
    single = last_input if batched else last_input.unsqueeze(0)
    _inputs.check_shape("forecast", "last_input", "(B, I)", (B, res.input_size), single)
    return single.detach().contiguous().clone()


def _laid_out(
    res: Reservoir, drivers: Tensor | None, horizon: int, B: int, D: int, batched: bool
) -> Tensor | None:
    """Return drivers as (1, T, B, D)."""
    if drivers is None:
        if D and horizon:
            raise ValueError(
                f"forecast: drivers must be given: {D} of the {res.input_size} inputs are not fed "
                "back"
            )
        return None
    _inputs.check_tensor("forecast", "drivers", drivers, res.dtype)
    dense = drivers if batched else drivers.unsqueeze(1)
    dense = dense.transpose(0, 1) if batched and res.batch_first else dense
    _inputs.check_shape("forecast", "drivers", "(horizon, B, D)", (horizon, B, D), dense)
    dense = dense.detach()
    return (dense if D <= 1 or dense.stride(-1) == 1 else dense.contiguous())[None]
