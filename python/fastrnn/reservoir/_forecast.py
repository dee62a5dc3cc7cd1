"""Closed-loop forecasts, each one kernel call."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _engine, _inputs
from .nvar import NVAR
from .population import RingReservoirs
from .reservoir import Reservoir


@torch.no_grad()
def forecast(
    res: Reservoir | RingReservoirs | NVAR,
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
            Or a ``RingReservoirs`` with input_size O, or an ``NVAR``.
        readout_weight: (O, res.output_size) or (O, res.output_size + res.input_size), float64 or
            the reservoir's dtype; the product is made in float64.
        readout_bias: (O,) or ``None``.
        state: (L, B, N) or (L, N) after the warm-up; of a ring (G, L, B, N) or (G, L, N), of an
            NVAR its window (w, B, I) or (w, I).
        horizon: number of steps, >= 0.
        drivers: (horizon, B, D) or (horizon, D): known inputs beside the fed-back ones;
            (B, horizon, D) with ``res.batch_first``.
        last_input: (B, I) or (I,), the last input of the warm-up; needed if the readout sees it
            (an NVAR's window ends with it).
        square: replace every second state of each layer (indices 1, 3, ...) by its square before
            the readout.

    Returns:
        out, (horizon, B, O), (B, horizon, O) with ``res.batch_first``, or (horizon, O), in the
        reservoir's dtype; and the state after the last step, as ``state``.

    Raises:
        ValueError: if sizes do not fit; it names the argument.
    """
    if horizon < 0:
        raise ValueError(f"forecast: horizon must not be negative, got {horizon}")
    if isinstance(res, RingReservoirs):
        if drivers is not None:
            raise ValueError("forecast: drivers must be None for a ring")
        return _ring_forecast(res, readout_weight, readout_bias, state, horizon, last_input, square)
    if isinstance(res, NVAR):
        return _polynomial_forecast(
            res, readout_weight, readout_bias, state, horizon, drivers, square
        )
    if res.bidirectional:
        raise ValueError(
            "forecast: res must not be bidirectional: it would have to know the future"
        )
    batched = state.dim() == 3
    single = state if batched else state.unsqueeze(1)
    L, B, N = res.num_layers, single.shape[1], res.hidden_size
    _inputs.check_shape("forecast", "state", "(L, B, N)", (L, B, N), single)
    _inputs.check_tensor("forecast", "state", state, res.dtype)
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
    result = _laid_back(out[0].to(res.dtype), res.batch_first, batched)
    return result, final[0] if batched else final[0, :, 0]


def _ring_forecast(
    ring: RingReservoirs,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    horizon: int,
    last_input: Tensor | None,
    square: bool,
) -> tuple[Tensor, Tensor]:
    batched = state.dim() == 4
    h = state if batched else state.unsqueeze(-2)
    L, B, N, Q = ring.num_layers, h.shape[-2], ring.hidden_size, ring.input_size
    _inputs.check_shape("forecast", "state", "(G, L, B, N)", (ring.groups, L, B, N), h)
    _inputs.check_tensor("forecast", "state", state, ring.dtype)
    if _check_readout(ring, weight, bias) != Q:
        raise ValueError(f"forecast: readout_weight must have Q = {Q} rows, got {weight.shape[0]}")
    u = _last_input(ring, last_input, weight.shape[1] > ring.output_size, B, batched)
    out = torch.empty(1, horizon, B, Q, dtype=torch.float64)
    final = h.contiguous().clone()
    _engine.forecast(
        [layer.weights() for layer in ring.population.layers],  # type: ignore[operator]
        weight.detach().double().contiguous(),
        None if bias is None else bias.detach().double().contiguous(),
        None,
        u,
        final,
        out,
        square,
        ring.reads.contiguous(),
    )
    return _laid_back(out[0].to(ring.dtype), ring.batch_first, batched), (
        final if batched else final.squeeze(-2)
    )


def _polynomial_forecast(
    nvar: NVAR,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    horizon: int,
    drivers: Tensor | None,
    square: bool,
) -> tuple[Tensor, Tensor]:
    batched = state.dim() == 3
    single = state if batched else state.unsqueeze(1)
    B, I = single.shape[1], nvar.input_size
    _inputs.check_shape("forecast", "state", "(window, B, I)", (nvar.window, B, I), single)
    _inputs.check_tensor("forecast", "state", state, nvar.dtype)
    O = _check_readout(nvar, weight, bias)
    known = _laid_out(nvar, drivers, horizon, B, _drivers_size(nvar, O), batched)
    out = torch.empty(horizon, B, O, dtype=torch.float64)
    window = single.contiguous().clone()
    _engine.polynomial_forecast(
        nvar.monomials.contiguous(),
        nvar.delays,
        nvar.skip,
        weight.detach().double().contiguous(),
        None if bias is None else bias.detach().double().contiguous(),
        None if known is None else known[0],
        window,
        out,
        square,
    )
    result = _laid_back(out.to(nvar.dtype), nvar.batch_first, batched)
    return result, window if batched else window[:, 0]


def _laid_back(out: Tensor, batch_first: bool, batched: bool) -> Tensor:
    """Return (T, B, O) as the caller has it."""
    if not batched:
        return out[:, 0]
    return out.transpose(0, 1) if batch_first else out


def _check_readout(
    res: Reservoir | RingReservoirs | NVAR, weight: Tensor, bias: Tensor | None
) -> int:
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


def _drivers_size(res: Reservoir | NVAR, O: int) -> int:
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
    res: Reservoir | RingReservoirs, last_input: Tensor | None, needed: bool, B: int, batched: bool
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
    res: Reservoir | NVAR, drivers: Tensor | None, horizon: int, B: int, D: int, batched: bool
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
