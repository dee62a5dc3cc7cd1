"""Networks whose outputs come back: forecasts, and predictions with feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _forecast
from ._series import check_finite
from .nvar import NVAR
from .population import RingReservoirs
from .readout import LinearReadout
from .reservoir import Reservoir

if TYPE_CHECKING:
    from .esn import ESN


def forecast(
    esn: ESN,
    warmup: Tensor,
    horizon: int,
    drivers: Tensor | None,
    h0: Tensor | None,
    outputs: Tensor | None,
) -> Tensor:
    """Run the warm-up, then the closed loop; see ``ESN.forecast``."""
    check_sizes(esn, horizon, drivers)
    if not isinstance(warmup, Tensor):
        raise ValueError(f"ESN: warmup must be a tensor, got {type(warmup).__name__}")
    x = esn.reader().input(warmup)
    check_finite("warmup", x)
    single = warmup.dim() == 2
    fed = None
    if esn.reservoir.feedback_size:
        fed = teacher(esn, outputs, x, single)
    elif outputs is not None:
        raise ValueError("ESN: outputs must be None, as the reservoir takes no feedback")
    known = None if drivers is None else laid_out(esn, drivers, x, horizon, single)
    h = esn._state_in(h0, warmup)
    with esn._mode(False):
        for _, _, state in esn.blocks(x, h, None, fed):
            h = state
        assert h is not None
        trajectory, _ = run(esn, h, x[-1], horizon, known)
    if single:
        return trajectory.squeeze(1)
    return trajectory.transpose(0, 1) if esn.reservoir.batch_first else trajectory


def check_sizes(esn: ESN, horizon: Any, drivers: Tensor | None) -> None:
    """Refuse networks whose outputs are not their inputs."""
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 0:
        raise ValueError(f"ESN: horizon must be an integer and at least 0, got {horizon!r}")
    if esn.pooling:
        raise ValueError("ESN: pooling must be None for forecast: one output a series")
    I, O = esn.input_size, esn.output_size
    if esn.reservoir.feedback_size or esn.feedback_map is not None:
        needed = I if esn.reservoir.feedback_size else 0
    else:
        needed = I - O
        if needed < 0 or (needed and drivers is None):
            raise ValueError(
                f"ESN: output_size must equal input_size for forecast, got {O} and {I}; give "
                "drivers for the other inputs, a feedback_map, or a reservoir with feedback"
            )
    if horizon and needed and drivers is None:
        raise ValueError(f"ESN: drivers must be given: {needed} inputs are not fed back")
    if drivers is not None and not needed:
        raise ValueError("ESN: drivers must be None: every input is fed back")


def teacher(esn: ESN, outputs: Tensor | None, x: Tensor, single: bool) -> Tensor:
    """Return the feedback of a warm-up."""
    if outputs is None:
        raise ValueError("ESN: outputs must be given with warmup, as the reservoir has feedback")
    y = outputs.unsqueeze(1) if single else outputs
    y = y.transpose(0, 1) if not single and esn.reservoir.batch_first else y
    if y.shape != (*x.shape[:2], esn.output_size):
        raise ValueError(f"ESN: outputs must match warmup, got {tuple(outputs.shape)}")
    check_finite("outputs", y)
    y = y.to(x.dtype)
    return torch.cat([torch.zeros_like(y[:1]), y[:-1]])


def laid_out(esn: ESN, drivers: Tensor, x: Tensor, horizon: int, single: bool) -> Tensor:
    """Return drivers as (horizon, B, D)."""
    size = esn.input_size - (0 if esn.reservoir.feedback_size else esn.output_size)
    known = drivers.unsqueeze(1) if single and drivers.dim() == 2 else drivers
    known = known.transpose(0, 1) if not single and esn.reservoir.batch_first else known
    if known.shape != (horizon, x.shape[1], size):
        raise ValueError(
            f"ESN: drivers must have {horizon} steps of {size} values, like warmup, got "
            f"{tuple(drivers.shape)}"
        )
    check_finite("drivers", known)
    return known.to(x.dtype)


def run(
    esn: ESN, h: Tensor, last: Tensor, horizon: int, drivers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Close the loop from a state (.., B, N) and the last input (B, I); (horizon, B, O) and h."""
    kernel = isinstance(esn.reservoir, Reservoir | NVAR) or (
        isinstance(esn.reservoir, RingReservoirs) and drivers is None
    )
    linear = isinstance(esn.readout, LinearReadout)
    if not (kernel and linear) or esn.feedback_map is not None:
        return step_by_step(esn, h, last, horizon, drivers)
    weight, bias = kernel_readout(esn)
    swap = esn.reservoir.batch_first
    given = drivers.transpose(0, 1) if drivers is not None and swap else drivers
    sees = weight.shape[1] > esn.reservoir.output_size
    out, h = _forecast.forecast(
        esn.reservoir,
        weight,
        bias,
        h,
        horizon,
        given,
        last_input=last if sees else None,
        square=esn.square,
    )
    return out.transpose(0, 1) if swap else out, h


def kernel_readout(esn: ESN) -> tuple[Tensor, Tensor]:
    """Return the readout's W and b, with what ``increments`` adds in the inputs' columns."""
    readout = esn.readout
    assert isinstance(readout, LinearReadout)
    if not esn.increments:
        return readout.weight, readout.bias
    weight = readout.weight
    if not esn.input_to_readout:
        weight = torch.nn.functional.pad(weight, (0, esn.input_size))
    carried = torch.eye(esn.output_size, esn.input_size, dtype=weight.dtype)
    size = esn.reservoir.output_size
    return torch.cat([weight[:, :size], weight[:, size:] + carried], 1), readout.bias


def step_by_step(
    esn: ESN, h: Tensor, last: Tensor, horizon: int, drivers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Close the loop from Python, for readouts, maps and drivers that the kernels have not."""
    res = esn.reservoir
    time = 1 if res.batch_first else 0
    features = latest(esn, h, last)
    outputs = []
    for j in range(horizon):
        out = esn.readout(features)
        if esn.increments:
            out = out + last[:, : esn.output_size]
        outputs.append(out)
        fed = None
        if res.feedback_size:
            assert drivers is not None or not esn.input_size
            last = last if drivers is None else drivers[j]
            fed = out.to(last.dtype).unsqueeze(time)
        else:
            back = out if esn.feedback_map is None else esn.feedback_map(out)
            last = back if drivers is None else torch.cat([back, drivers[j]], 1)
            last = last.to(res.dtype)
        states, h = res(last.unsqueeze(time), h, feedback=fed)
        features = esn._features(states.select(time, 0), last)
    empty = last.new_empty(0, last.shape[0], esn.output_size)
    return torch.stack(outputs) if outputs else empty, h


def latest(esn: ESN, h: Tensor, last: Tensor) -> Tensor:
    """Return the features (B, F) of a state."""
    res = esn.reservoir
    states = res.states(h) if hasattr(res, "states") else h.movedim(-2, 0).flatten(1)
    return esn._features(states, last)


def own_feedback(esn: ESN, x: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predict with the network's own outputs as feedback: y_{t-1} enters step t."""
    T, B = x.shape[:2]
    swap = esn.reservoir.batch_first
    start = h0.unsqueeze(-2) if h0 is not None and h0.dim() == 2 else h0
    nothing = x.new_zeros(1, B, esn.output_size)
    first = x[:1].transpose(0, 1) if swap else x[:1]
    _, h = esn.reservoir(first, start, feedback=nothing.transpose(0, 1) if swap else nothing)
    head, h = run(esn, h, x[0], T - 1, x[1:])
    features = latest(esn, h, x[-1])
    final = esn.readout(features)
    if esn.increments:
        final = final + x[-1, :, : esn.output_size]
    if esn.pooling:
        raise ValueError("ESN: pooling must be None for a reservoir with feedback")
    return torch.cat([head, final.unsqueeze(0)]), h
