"""reservoirpy with the weights of a fastrnn reservoir: its own nodes, its own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from reservoirpy.nodes import Reservoir, Ridge
from scipy import sparse

PACKAGE = "reservoirpy"


def reservoir(ours: Any) -> Reservoir:
    """Return the node of a one-layer ``fastrnn.Reservoir``: float64, W compressed by rows."""
    return Reservoir(
        units=ours.hidden_size,
        lr=float(ours.leak[0]),
        W=sparse.csr_matrix(ours.weight_hh.double().numpy()),
        Win=ours.weight_ih.double().numpy(),
        bias=ours.bias.double().numpy(),
    )


def run(node: Reservoir, x: np.ndarray) -> np.ndarray:
    """Return the states, (T, N), from zero."""
    node.initialize(x)
    states: np.ndarray = node.run(x)
    return states


def run_series(node: Reservoir, series: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run several series, each from zero, as one call allows."""
    node.initialize(series[0])
    states: list[np.ndarray] = node.run(list(series))
    return states


def fit_predict(
    node: Reservoir, x: np.ndarray, y: np.ndarray, alpha: float, washout: int
) -> np.ndarray:
    """Train a ridge readout and predict the same series."""
    node.initialize(x)
    model = node >> Ridge(ridge=alpha)
    model.fit(x, y, warmup=washout)
    node.initialize(x)
    predicted: np.ndarray = model.run(x)
    return predicted


def forecast(node: Reservoir, readout: Ridge, state: np.ndarray, horizon: int) -> np.ndarray:
    """Close the loop by hand, as its documentation does: a step of each node at a time."""
    node.state = {"out": state}
    out = np.empty((horizon, readout.Wout.shape[1]))
    value = state @ readout.Wout + readout.bias
    for t in range(horizon):
        out[t] = value
        value = readout(node(value))
    return out
