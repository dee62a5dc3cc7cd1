"""ONNX nodes on fastrnn, held against ONNX's own test cases and ONNX Runtime."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import fastrnn
from _onnx import attributes

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = ("forward", "reverse", "bidirectional")
T, B, I, H = 5, 4, 3, 6
# What ONNX's cases ask for that fastrnn does not compute, and the name that the error must give.
REFUSED = {
    "test_lstm_with_peepholes": "input P",
    **{
        f"test_gru_{name}": "attribute linear_before_reset must be 1, got 0"
        for name in (
            "defaults",
            "with_initial_bias",
            "seq_length",
            "batchwise",
            "reverse",
            "bidirectional",
        )
    },
}


def node_cases() -> dict[str, Any]:
    """Return the node test cases of the onnx package for the three operators."""
    case = importlib.import_module("onnx.backend.test.case.node")
    case._TargetOpType = None
    for name in ("lstm", "gru", "rnn"):
        importlib.import_module(f"{case.__name__}.{name}")
    found = [c for c in case._NodeTestCases if c.model.graph.node[0].op_type in GATES]
    return {c.name: c for c in found}


CASES = node_cases()


def test_all_cases_are_there() -> None:
    assert len(CASES) == 18
    assert set(REFUSED) <= set(CASES)


def case_of(name: str) -> tuple[Any, dict[str, np.ndarray], list[np.ndarray]]:
    """Return the node, its inputs by role, and its outputs."""
    node = CASES[name].model.graph.node[0]
    inputs, outputs = CASES[name].data_sets[0]
    roles = [role for role, input in zip(INPUTS, node.input, strict=False) if input]
    return node, dict(zip(roles, inputs, strict=True)), outputs


def assert_outputs(node: Any, got: tuple[torch.Tensor, ...], expected: list[np.ndarray]) -> None:
    named = [y for y, name in zip(got, node.output, strict=False) if name]
    assert len(named) == len(expected)
    for y, true in zip(named, expected, strict=True):
        assert y.shape == true.shape
        np.testing.assert_allclose(y.detach().numpy(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_node_cases_of_onnx(name: str) -> None:
    node, inputs, outputs = case_of(name)
    weights = {role: inputs[role] for role in ("W", "R", "B", "P") if role in inputs}
    others = {role: value for role, value in inputs.items() if role not in weights}
    if name in REFUSED:
        with pytest.raises(NotImplementedError, match=REFUSED[name]):
            fastrnn.from_onnx_node(node, weights).run_onnx(**others)
        return
    assert_outputs(node, fastrnn.from_onnx_node(node, weights).run_onnx(**others), outputs)
    assert_outputs(node, fastrnn.from_onnx_node(node).run_onnx(**inputs), outputs)


@pytest.mark.parametrize("name", [name for name in REFUSED if "gru" in name])
def test_gru_cases_reset_after(name: str) -> None:
    """The cases' numbers under linear_before_reset=1, from the helper that made theirs."""
    node, inputs, _ = case_of(name)
    options = {key: value for key, value in attributes(node).items() if key != "hidden_size"}
    options = {k: v.decode() if isinstance(v, bytes) else v for k, v in options.items()}
    make = importlib.import_module("onnx.backend.test.case.node.gru").GRUHelper
    outputs = make(**inputs, **options, linear_before_reset=1).step()
    changed = helper.make_node(
        "GRU", ["X", "W", "R", "B"], ["Y", "Y_h"], **options, linear_before_reset=1
    )
    loaded = fastrnn.from_onnx_node(changed, {k: v for k, v in inputs.items() if k != "X"})
    assert_outputs(changed, loaded.run_onnx(inputs["X"]), list(outputs))


def make(op: str, direction: str, bias: bool = True, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a node and random weights."""
    rng = np.random.default_rng(3)
    D, rows = 2 if direction == "bidirectional" else 1, GATES[op] * H
    shapes = {"W": (D, rows, I), "R": (D, rows, H), "B": (D, 2 * rows)}
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    if not bias:
        del weights["B"]
    if op == "GRU":
        options.setdefault("linear_before_reset", 1)
    inputs = [*INPUTS[: 7 if op == "LSTM" else 6]]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, hidden_size=H, direction=direction, **options)
    return node, weights


def data(op: str, direction: str, lengths: list[int] | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    D = 2 if direction == "bidirectional" else 1
    inputs = {"X": rng.standard_normal((T, B, I)).astype(np.float32)}
    if lengths is not None:
        inputs["sequence_lens"] = np.array(lengths, dtype=np.int32)
    for name in ("initial_h", "initial_c")[: 2 if op == "LSTM" else 1]:
        inputs[name] = rng.standard_normal((D, B, H)).astype(np.float32)
    return inputs


def onnx_runtime(node: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a node, leaving out the inputs that are not given."""
    own = onnx.NodeProto()
    own.CopyFrom(node)
    del own.input[:]
    own.input.extend(name if name in inputs else "" for name in node.input)
    used = {name: inputs[name] for name in own.input if name}
    described = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in used.items()
    ]
    results = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in own.output]
    graph = helper.make_graph([own], "node", described, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs: list[np.ndarray] = session.run(None, used)
    return outputs


@pytest.mark.parametrize("lengths", [None, [5, 2, 4, 1]])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_matches_onnx_runtime(op: str, direction: str, lengths: list[int] | None) -> None:
    for options in ({}, {"bias": False}):
        node, weights = make(op, direction, **options)
        inputs = data(op, direction, lengths)
        outputs = onnx_runtime(node, {**inputs, **weights})
        loaded = fastrnn.from_onnx_node(node, weights)
        assert_outputs(node, loaded.run_onnx(**inputs), outputs)
        # The same in the other layout, which ONNX Runtime's CPU kernels do not have.
        batch_first, _ = make(op, direction, layout=1)
        turned = {k: v if v.ndim < 3 else v.swapaxes(0, 1) for k, v in inputs.items()}
        outputs = [outputs[0].transpose(2, 0, 1, 3), *(h.swapaxes(0, 1) for h in outputs[1:])]
        loaded = fastrnn.from_onnx_node(batch_first, weights)
        assert_outputs(node, loaded.run_onnx(**turned), outputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_relu(direction: str) -> None:
    count = 2 if direction == "bidirectional" else 1
    node, weights = make("RNN", direction, activations=["Relu"] * count)
    inputs = data("RNN", direction, None)
    outputs = onnx_runtime(node, {**inputs, **weights})
    assert_outputs(node, fastrnn.from_onnx_node(node, weights).run_onnx(**inputs), outputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_padding_influences_nothing(op: str, direction: str) -> None:
    """NaN in it neither, in results or gradients; an empty sequence keeps its initial state."""
    node, weights = make(op, direction)
    loaded = fastrnn.from_onnx_node(node, weights)
    lengths = [3, 0, 5, 1]
    results = []
    for padding in (0.0, float("nan")):
        inputs = {k: torch.from_numpy(v) for k, v in data(op, direction, lengths).items()}
        for b, length in enumerate(lengths):
            inputs["X"][length:, b] = padding
        inputs["X"].requires_grad_()
        outputs = loaded.run_onnx(**inputs)
        for b, length in enumerate(lengths):
            assert not outputs[0][length:, :, b].any()
        for name, final in zip(("initial_h", "initial_c"), outputs[1:], strict=False):
            assert torch.equal(final[:, 1], inputs[name][:, 1])
        loss = sum(output.square().sum() for output in outputs)
        wanted = [inputs["X"], *loaded.parameters()]
        results.append([*outputs, *torch.autograd.grad(loss, wanted)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("op", GATES)
def test_given_weights_take_the_place_of_loaded_ones(op: str) -> None:
    node, weights = make(op, "bidirectional")
    inputs = data(op, "bidirectional", None)
    expected = fastrnn.from_onnx_node(node, weights).run_onnx(**inputs)
    zeros = {name: np.zeros_like(value) for name, value in weights.items()}
    for name in weights:
        others = {**weights, name: zeros[name]}
        got = fastrnn.from_onnx_node(node, others).run_onnx(**inputs, **{name: weights[name]})
        assert torch.equal(got[0], expected[0])
        assert not torch.equal(fastrnn.from_onnx_node(node, others).run_onnx(**inputs)[0], got[0])
    given = {k: torch.from_numpy(v).requires_grad_() for k, v in weights.items()}
    Y = fastrnn.from_onnx_node(node).run_onnx(inputs["X"], given["W"], given["R"], given["B"])[0]
    Y.square().sum().backward()
    assert all(bool(v.grad is not None and v.grad.any()) for v in given.values())


def test_constants_of_a_graph() -> None:
    """TensorProtos; initial states and lengths among them are the defaults of run_onnx."""
    node, weights = make("LSTM", "reverse")
    inputs = data("LSTM", "reverse", [5, 1, 3, 2])
    everything = {**weights, **inputs}
    del everything["X"]
    constants = {name: numpy_helper.from_array(value, name) for name, value in everything.items()}
    expected = fastrnn.from_onnx_node(node, weights).run_onnx(**inputs)
    loaded = fastrnn.from_onnx_node(
        node, {**constants, "another": numpy_helper.from_array(np.zeros(3, np.float32))}
    )
    for got, true in zip(loaded.run_onnx(inputs["X"]), expected, strict=True):
        assert torch.equal(got, true)
    assert set(loaded.state_dict()) >= {"initial_h", "initial_c", "sequence_lens"}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", [0, 1])
def test_module_and_plain_call(direction: str, layout: int) -> None:
    node, weights = make("LSTM", direction, layout=layout)
    loaded = fastrnn.from_onnx_node(node, weights)
    x = torch.randn(T, B, I)
    Y, Y_h, Y_c = loaded.run_onnx(x)
    y, (h, c) = loaded(x)
    states = (Y_h, Y_c) if not layout else (Y_h.transpose(0, 1), Y_c.transpose(0, 1))
    assert torch.equal(h, states[0])
    assert torch.equal(c, states[1])
    Y = Y.flatten(2) if layout else Y.transpose(1, 2).flatten(2)
    assert torch.equal(y, Y)
    assert type(loaded.module) is fastrnn.LSTM
    assert loaded.module.batch_first is bool(layout)
    loaded.module.load_state_dict(torch.nn.LSTM(I, H, bidirectional=len(h) == 2).state_dict())


def test_other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        node, weights = make("GRU", "forward")
        given = {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}
        loaded = fastrnn.from_onnx_node(node, given)
        Y, _ = loaded.run_onnx(torch.ones(T, B, I, dtype=dtype))
        true, _ = fastrnn.from_onnx_node(node, weights).run_onnx(torch.ones(T, B, I))
        assert Y.dtype is dtype
        torch.testing.assert_close(Y.float(), true, atol=5e-2, rtol=5e-2)
    proto = onnx.helper.make_tensor(
        "W", onnx.TensorProto.BFLOAT16, given["W"].shape, given["W"].float().flatten().tolist()
    )
    loaded = fastrnn.from_onnx_node(node, {"W": proto, "R": given["R"].bfloat16()})
    assert loaded.module is not None
    assert loaded.module.weight_ih_l0.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        ("LSTM", {"clip": 3.0}, "LSTM: attribute clip must be absent, got 3.0"),
        ("LSTM", {"input_forget": 1}, "LSTM: attribute input_forget must be 0, got 1"),
        ("GRU", {"linear_before_reset": 0}, "GRU: attribute linear_before_reset must be 1, got 0"),
        ("RNN", {"activations": ["Affine"]}, r"RNN: attribute activations must be .*Tanh.*Relu"),
        ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "attribute activations"),
        ("GRU", {"activations": ["Sigmoid", "Relu"]}, "attribute activations"),
    ],
)
def test_attributes_that_fastrnn_does_not_compute(
    op: str, options: dict[str, Any], message: str
) -> None:
    node, weights = make(op, "forward", **options)
    with pytest.raises(NotImplementedError, match=message):
        fastrnn.from_onnx_node(node, weights)


def test_attributes_that_change_nothing() -> None:
    node, weights = make(
        "LSTM", "forward", activations=["sigmoid", "TANH", "Tanh"], activation_alpha=[0.1],
        input_forget=0,
    )  # fmt: skip
    weights["P"] = np.zeros((1, 3 * H), np.float32)
    node.input.append("P")
    loaded = fastrnn.from_onnx_node(node, weights)
    inputs = data("LSTM", "forward", None)
    plain, _ = make("LSTM", "forward")
    assert_outputs(
        node, loaded.run_onnx(**inputs, P=weights["P"]), onnx_runtime(plain, {**inputs, **weights})
    )


def test_mistakes() -> None:
    node, weights = make("GRU", "forward")
    loaded = fastrnn.from_onnx_node(node, weights)
    x = torch.randn(T, B, I)
    with pytest.raises(ValueError, match=r"node must be an RNN, LSTM or GRU .* got Add"):
        fastrnn.from_onnx_node(helper.make_node("Add", ["a", "b"], ["c"]))
    with pytest.raises(ValueError, match=r"got GRU of domain 'com\.microsoft'"):
        fastrnn.from_onnx_node(helper.make_node("GRU", ["X"], ["Y"], domain="com.microsoft"))
    for options, message in (
        ({"direction": "both"}, "direction must be one of"),
        ({"layout": 2}, "layout must be 0 or 1, got 2"),
        ({"outer": 1}, "attribute outer is unknown"),
    ):
        wrong = helper.make_node(
            "GRU", ["X", "W", "R"], ["Y"], linear_before_reset=1, hidden_size=H, **options
        )
        with pytest.raises(ValueError, match=message):
            fastrnn.from_onnx_node(wrong)
    with pytest.raises(ValueError, match="hidden_size must be an attribute"):
        fastrnn.from_onnx_node(helper.make_node("RNN", ["X", "W", "R"], ["Y"]))
    with pytest.raises(ValueError, match="initializers must have W and R, or neither, got no R"):
        fastrnn.from_onnx_node(node, {"W": weights["W"]})
    with pytest.raises(RuntimeError, match=r"GRU: R must have shape \(D, G\*H, H\) = \(1, 18, 6\)"):
        fastrnn.from_onnx_node(node, {**weights, "R": weights["R"][:, :5]})
    with pytest.raises(RuntimeError, match=r"GRU: B must have shape"):
        loaded.run_onnx(x, B=torch.zeros(1, 18))
    with pytest.raises(TypeError, match="GRU: W must be given"):
        fastrnn.from_onnx_node(node).run_onnx(x)
    with pytest.raises(RuntimeError, match="no weights were loaded"):
        fastrnn.from_onnx_node(node)(x)
    with pytest.raises(ValueError, match="X must have 3 dimensions"):
        loaded.run_onnx(x[0])
    with pytest.raises(ValueError, match="sequence_lens must be from 0 to T = 5"):
        loaded.run_onnx(x, sequence_lens=[6, 1, 1, 1])
    with pytest.raises(TypeError, match=r"sequence_lens must be integers, got torch\.float64"):
        loaded.run_onnx(x, sequence_lens=[1.5, 1, 1, 1])
    reverse, _ = make("GRU", "reverse")
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0]])
    with pytest.raises(TypeError, match="input of a reverse layer must be"):
        fastrnn.from_onnx_node(reverse, weights)(packed)
    with pytest.raises(RuntimeError, match=r"sequence_lens must have shape \(B,\) = \(4,\)"):
        loaded.run_onnx(x, sequence_lens=[1, 1])
    with pytest.raises(RuntimeError, match=r"initial_h must have shape"):
        loaded.run_onnx(x, initial_h=torch.zeros(1, 3, H))
    with pytest.raises(TypeError, match="initial_c is an input of LSTM nodes only"):
        loaded.run_onnx(x, initial_c=torch.zeros(1, B, H))
    with pytest.raises(TypeError, match="P is an input of LSTM nodes only"):
        loaded.run_onnx(x, P=torch.zeros(1, 3 * H))
