"""Keras layers on TensorFlow inside a tf.function, batch first as Keras wants it.

XLA (`jit_compile`) makes inference faster and training slower, so only inference has it.
"""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
import tensorflow as tf

from registry import GATES, Case, Data

from . import Side, UnsupportedError

LAYERS = {"elman": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
# Keras's gate order by torch's index: LSTM as torch; GRU z, r, n.
ORDER = {"elman": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}


@cache
def set_threads(threads: int) -> None:
    """TensorFlow takes the number once, before its first operation."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def build(case: Case, data: Data, threads: int) -> Side:
    if case.mode == "streaming":
        raise UnsupportedError("steps one at a time are not measured")
    if case.ragged:
        raise UnsupportedError("packed sequences are not measured")
    set_threads(threads)

    def gates(weights: np.ndarray) -> np.ndarray:
        """To Keras's order and back: each of these orders is its own inverse."""
        parts = np.split(weights, GATES[case.cell])
        return np.concatenate([parts[index] for index in ORDER[case.cell]])

    layer = getattr(keras.layers, LAYERS[case.cell])(
        case.H, return_sequences=True, dtype=case.dtype
    )
    layer.build((case.B, case.T, case.I))
    b_ih, b_hh = gates(data.b_ih), gates(data.b_hh)
    bias = np.stack([b_ih, b_hh]) if case.cell == "gru" else b_ih + b_hh
    layer.set_weights([gates(data.w_ih).T, gates(data.w_hh).T, bias])
    x, dy = (tf.constant(a.transpose(1, 0, 2)) for a in (data.x, data.dy))

    @tf.function(jit_compile=True)
    def infer(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (layer(x),)

    @tf.function
    def train(x: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        weights = [weight.value for weight in layer.trainable_weights]
        return y, *tape.gradient(y, [x, *weights], output_gradients=dy)

    def arrays(results: tuple[tf.Tensor, ...]) -> dict[str, np.ndarray]:
        y, *gradients = (result.numpy() for result in results)
        named = {"y": y.transpose(1, 0, 2)}
        if gradients:
            dx, dw_ih, dw_hh, db = gradients
            named |= {"dx": dx.transpose(1, 0, 2), "dw_ih": gates(dw_ih.T), "dw_hh": gates(dw_hh.T)}
            named["db_ih"] = gates(db[0] if case.cell == "gru" else db)
        return named

    step = (lambda: train(x, dy)) if case.mode == "training" else (lambda: infer(x))
    return Side(step, arrays)
