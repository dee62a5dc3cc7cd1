"""JAX: `lax.scan` over the steps, the input product made for all steps at once, under `jit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from registry import Case, Data

from . import Side, UnsupportedError

Step = Callable[[Any, Array, Array, Array], tuple[Any, Array]]


def elman(h: Array, wx: Array, w_hh: Array, b_hh: Array) -> tuple[Array, Array]:
    h = jnp.tanh(wx + h @ w_hh + b_hh)
    return h, h


def lstm(
    state: tuple[Array, Array], wx: Array, w_hh: Array, b_hh: Array
) -> tuple[tuple[Array, Array], Array]:
    h, c = state
    i, f, g, o = jnp.split(wx + h @ w_hh + b_hh, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def gru(h: Array, wx: Array, w_hh: Array, b_hh: Array) -> tuple[Array, Array]:
    xr, xz, xn = jnp.split(wx, 3, axis=-1)
    hr, hz, hn = jnp.split(h @ w_hh + b_hh, 3, axis=-1)
    z = jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
    h = (1 - z) * n + z * h
    return h, h


STEPS: dict[str, Step] = {"elman": elman, "lstm": lstm, "gru": gru}


def build(case: Case, data: Data, threads: int) -> Side:
    if case.mode == "streaming":
        raise UnsupportedError("steps one at a time are not measured")
    if case.ragged:
        raise UnsupportedError("packed sequences are not measured")
    cell = STEPS[case.cell]
    zeros = jnp.zeros((case.B, case.H), case.dtype)
    state = (zeros, zeros) if case.cell == "lstm" else zeros

    def layer(x: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Array:
        wx = x @ w_ih + b_ih
        return jax.lax.scan(lambda s, v: cell(s, v, w_hh, b_hh), state, wx)[1]

    def layer_and_gradients(dy: Array, *arguments: Array) -> tuple[Array, ...]:
        y, pull = jax.vjp(layer, *arguments)
        return (y, *pull(dy))

    # (I, G*H) and (H, G*H), as JAX's libraries keep their weights: XLA is fastest with them.
    given = (data.x, data.w_ih.T, data.w_hh.T, data.b_ih, data.b_hh)
    arguments = [jnp.asarray(np.ascontiguousarray(a)) for a in given]
    if case.mode == "training":
        arguments.insert(0, jnp.asarray(data.dy))
        compiled = jax.jit(layer_and_gradients)
    else:
        compiled = jax.jit(lambda *given: (layer(*given),))

    def step() -> tuple[Array, ...]:
        return jax.block_until_ready(compiled(*arguments))

    def arrays(results: tuple[Array, ...]) -> dict[str, np.ndarray]:
        y, *gradients = (np.asarray(result) for result in results)
        if not gradients:
            return {"y": y}
        dx, dw_ih, dw_hh, db_ih, db_hh = gradients
        named = {"dw_ih": dw_ih.T, "dw_hh": dw_hh.T, "db_ih": db_ih, "db_hh": db_hh}
        return {"y": y, "dx": dx, **named}

    return Side(step, arrays)
