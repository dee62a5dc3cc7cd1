"""Layers from Keras's weights, held against what Keras computed (goldens/make_keras.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastrnn

GOLDENS = np.load(Path(__file__).parent / "goldens" / "keras_layers.npz")
CASES: dict[str, dict[str, Any]] = json.loads(str(GOLDENS["cases"]))
X = GOLDENS["x"]


def arrays(case: str, kind: str) -> list[np.ndarray]:
    """Return the arrays of a kind: w(eights), s(tates), y or y_from (outputs)."""
    found = []
    while f"{case}/{kind}{len(found)}" in GOLDENS:
        found.append(GOLDENS[f"{case}/{kind}{len(found)}"])
    return found


def assert_outputs(got: Any, expected: list[np.ndarray]) -> None:
    outputs = got if isinstance(got, list) else [got]
    assert len(outputs) == len(expected)
    for output, true in zip(outputs, expected, strict=True):
        assert output.shape == true.shape
        np.testing.assert_allclose(output.detach().numpy(), true, rtol=1e-5, atol=2e-6)


def stand_in(case: str, **changes: Any) -> Any:
    """Return an object with what from_keras reads of a Keras layer."""
    config = {**CASES[case], "name": case, "trainable": True, **changes}
    kind, two = config.pop("kind"), config.pop("bidirectional", False)
    merge_mode = config.pop("merge_mode", None)

    def layer(weights: list[np.ndarray], backwards: bool) -> Any:
        own = {**config, "go_backwards": backwards}
        methods = {"get_config": lambda _: own, "get_weights": lambda _: weights, "name": case}
        return type(kind, (), methods)()

    weights = arrays(case, "w")
    if not two:
        return layer(weights, bool(config.get("go_backwards")))
    half = len(weights) // 2
    both = {"forward_layer": layer(weights[:half], False), "merge_mode": merge_mode}
    return type("Bidirectional", (), {**both, "backward_layer": layer(weights[half:], True)})()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("source", ["weights", "layer"])
def test_matches_keras(case: str, source: str) -> None:
    if source == "layer":
        layer = fastrnn.from_keras(stand_in(case))
    else:
        layer = fastrnn.from_keras(arrays(case, "w"), **CASES[case])
    assert_outputs(layer.run_keras(X), arrays(case, "y"))
    states = arrays(case, "s")
    assert_outputs(layer.run_keras(X, states), arrays(case, "y_from"))
    if len(states) == 1:
        assert_outputs(layer.run_keras(torch.from_numpy(X), states[0]), arrays(case, "y_from"))


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_module_is_a_layer_of_its_own(kind: str) -> None:
    case = f"{kind}-states"
    loaded = fastrnn.from_keras(arrays(case, "w"), **CASES[case])
    module = loaded.module
    assert type(module) in (fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU)
    assert module.batch_first
    y, h_n = module(torch.from_numpy(X))
    h = h_n[0] if isinstance(h_n, tuple) else h_n
    assert_outputs([y, h[0]], arrays(case, "y")[:2])
    y.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    before = [w.copy() for w in arrays(case, "w")]
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()  # the weights are copies
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(case, "w"), strict=True))


def test_plain_call_of_a_backwards_layer_keeps_the_order_of_steps() -> None:
    case = "LSTM-backwards"
    y, (h, c) = fastrnn.from_keras(arrays(case, "w"), **CASES[case])(torch.from_numpy(X))
    assert_outputs([y.flip(1), h[0], c[0]], arrays(case, "y"))


def test_loading_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    fastrnn.from_keras(arrays("GRU-plain", "w"), "GRU")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("LSTM-plain", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation.*sigmoid"),
        ("GRU-plain", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation.*sigmoid"),
        ("LSTM-plain", {"activation": "relu"}, "activation must be tanh"),
        ("SimpleRNN-plain", {"activation": "linear"}, "activation must be relu or tanh"),
        ("GRU-plain", {"reset_after": False}, "reset_after must be True"),
        ("LSTM-plain", {"stateful": True}, "stateful must be False.*fastrnn.Stateful"),
        ("LSTM-bidirectional-concat", {"stateful": True}, "stateful"),
    ],
)
def test_what_fastrnn_does_not_compute_is_refused(
    case: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        fastrnn.from_keras(stand_in(case, **changes))
    with pytest.raises(NotImplementedError, match=message):
        fastrnn.from_keras(arrays(case, "w"), **{**CASES[case], **changes})


def test_bias_of_a_gru_that_resets_before_is_refused() -> None:
    kernel, recurrent, bias = arrays("GRU-plain", "w")
    with pytest.raises(NotImplementedError, match="reset_after must be True"):
        fastrnn.from_keras([kernel, recurrent, bias[0]], "GRU")


def test_dropout_is_refused_in_training_only() -> None:
    loaded = fastrnn.from_keras(stand_in("LSTM-sequences", dropout=0.25))
    with pytest.raises(NotImplementedError, match=r"dropout must be 0 in training, got 0\.25"):
        loaded.run_keras(X)
    assert_outputs(loaded.eval().run_keras(X), arrays("LSTM-sequences", "y"))


def test_directions_that_do_not_go_together_are_refused() -> None:
    layer = stand_in("LSTM-bidirectional-concat")
    layer.backward_layer = layer.forward_layer
    with pytest.raises(NotImplementedError, match="forward_layer and backward_layer"):
        fastrnn.from_keras(layer)


def test_mistakes() -> None:
    weights = arrays("LSTM-plain", "w")
    with pytest.raises(TypeError, match=r"layer must be one of .*LSTM.*, got Dense"):
        fastrnn.from_keras(weights, "Dense")
    with pytest.raises(TypeError, match="layer must be one of"):
        fastrnn.from_keras(weights)
    with pytest.raises(TypeError, match="returns_sequences is no option"):
        fastrnn.from_keras(weights, "LSTM", returns_sequences=True)
    with pytest.raises(TypeError, match="options must be absent with a layer"):
        fastrnn.from_keras(stand_in("LSTM-plain"), "LSTM")
    with pytest.raises(ValueError, match="must have 2 weights, or 3"):
        fastrnn.from_keras(weights[:1], "LSTM")
    with pytest.raises(ValueError, match=r"kernel of GRU must have shape .*\(6, 18\)"):
        fastrnn.from_keras(weights, "GRU")
    with pytest.raises(ValueError, match=r"bias of LSTM must have shape \(24,\)"):
        fastrnn.from_keras([*weights[:2], weights[2][:5]], "LSTM")
    with pytest.raises(ValueError, match="merge_mode"):
        fastrnn.from_keras(weights, "LSTM", merge_mode="cat")
    with pytest.raises(ValueError, match="use_bias"):
        fastrnn.from_keras(weights, "LSTM", use_bias=False)
    with pytest.raises(NotImplementedError, match="go_backwards"):
        fastrnn.from_keras(weights * 2, "LSTM", bidirectional=True, go_backwards=True)
    with pytest.raises(ValueError, match="initial_state must have 2 states, got 1"):
        fastrnn.from_keras(weights, "LSTM").run_keras(X, X[:, 0])
    empty = type("LSTM", (), {"get_weights": lambda _: [], "name": "lstm_7"})()
    with pytest.raises(ValueError, match="lstm_7 must be built"):
        fastrnn.from_keras(empty)
