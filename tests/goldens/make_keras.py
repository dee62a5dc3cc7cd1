"""Make keras_*.npz with Keras: layers, an input, and what Keras makes of it.

Run it where Keras and a backend are installed; the tests only read the files:

    pip install tensorflow-cpu && python tests/goldens/make_keras.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

B, T, I, H = 3, 5, 4, 6
HERE = Path(__file__).resolve().parent
KINDS = ("SimpleRNN", "LSTM", "GRU")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequences": {"return_sequences": True},
    "states": {"return_sequences": True, "return_state": True},
    "last_states": {"return_state": True},
    "no_bias": {"use_bias": False, "return_sequences": True},
    "backwards": {"go_backwards": True, "return_sequences": True, "return_state": True},
    "backwards_last": {"go_backwards": True},
}
MERGES: dict[str, str | None] = {"concat": "concat", "sum": "sum", "ave": "ave", "mul": "mul"}


def layers() -> dict[str, Any]:
    made = {}
    for kind in KINDS:
        cls = getattr(keras.layers, kind)
        for name, options in VARIANTS.items():
            made[f"{kind}-{name}"] = cls(H, **options)
        for name, mode in {**MERGES, "none": None}.items():
            inner = cls(H, return_sequences=True)
            made[f"{kind}-bidirectional-{name}"] = keras.layers.Bidirectional(inner, mode)
        inner = cls(H, return_state=True)
        made[f"{kind}-bidirectional-states"] = keras.layers.Bidirectional(inner)
    made["SimpleRNN-relu"] = keras.layers.SimpleRNN(H, activation="relu", return_sequences=True)
    return made


def options(layer: Any) -> dict[str, Any]:
    """Return what from_keras takes beside a list of weights."""
    two = isinstance(layer, keras.layers.Bidirectional)
    inner = layer.forward_layer if two else layer
    config = inner.get_config()
    names = "activation recurrent_activation reset_after return_sequences return_state use_bias"
    kept = {name: config[name] for name in names.split() if name in config}
    kept["kind"] = type(inner).__name__
    if two:
        return {**kept, "bidirectional": True, "merge_mode": layer.merge_mode}
    return {**kept, "go_backwards": config["go_backwards"]}


def main() -> None:
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    x = rng.standard_normal((B, T, I)).astype(np.float32)
    arrays: dict[str, Any] = {"x": x}
    cases: dict[str, Any] = {}
    for name, layer in layers().items():
        layer.build(x.shape)
        weights = [rng.standard_normal(w.shape).astype(np.float32) * 0.5 for w in layer.weights]
        layer.set_weights(weights)
        case = options(layer)
        count = (2 if case["kind"] == "LSTM" else 1) * (2 if case.get("bidirectional") else 1)
        states = [rng.standard_normal((B, H)).astype(np.float32) for _ in range(count)]
        for key, given in (("y", None), ("y_from", states)):
            outputs = layer(x, initial_state=given) if given else layer(x)
            outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
            for k, output in enumerate(outputs):
                arrays[f"{name}/{key}{k}"] = np.asarray(output)
        arrays |= {f"{name}/w{k}": w for k, w in enumerate(weights)}
        arrays |= {f"{name}/s{k}": s for k, s in enumerate(states)}
        cases[name] = case
    arrays["cases"] = np.array(json.dumps(cases))
    arrays["keras"] = np.array(keras.__version__)
    np.savez_compressed(HERE / "keras_layers.npz", **arrays)


if __name__ == "__main__":
    main()
