"""The ONNX model of a case: one RNN, LSTM or GRU node, with the weights as constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from registry import GATES, Case, Data

from . import UnsupportedError

OPERATORS = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}
# ONNX's gate order by torch's index: LSTM i, o, f, g; GRU z, r, n.
ORDER = {"elman": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
HIDDEN = {"initial_h": "Y_h"}  # input and output of the same state
STATES = {"elman": HIDDEN, "lstm": HIDDEN | {"initial_c": "Y_c"}, "gru": HIDDEN}


def model_bytes(case: Case, data: Data) -> bytes:
    """Return the model: X to Y, or in streaming one step's X and states to the new states."""
    if case.dtype != "float32":
        raise UnsupportedError(f"{case.dtype} is not measured")
    if case.mode == "training":
        raise UnsupportedError("inference only")
    if case.ragged:
        raise UnsupportedError("packed sequences are not measured")

    def gates(weights: np.ndarray) -> np.ndarray:
        parts = np.split(weights, GATES[case.cell])
        return np.concatenate([parts[index] for index in ORDER[case.cell]])

    def values(shapes: dict[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    bias = np.concatenate([gates(data.b_ih), gates(data.b_hh)])
    constants = {"W": gates(data.w_ih), "R": gates(data.w_hh), "B": bias}
    inputs, outputs = ["X", "W", "R", "B"], ["Y"]
    accepts: dict[str, tuple[int, ...]] = {"X": (case.T, case.B, case.I)}
    gives: dict[str, tuple[int, ...]] = {"Y": (case.T, 1, case.B, case.H)}
    if case.mode == "streaming":
        states = STATES[case.cell]
        inputs, outputs = [*inputs, "", *states], ["", *states.values()]
        accepts = {"X": (1, case.B, case.I)} | dict.fromkeys(states, (1, case.B, case.H))
        gives = dict.fromkeys(states.values(), (1, case.B, case.H))
    attributes = {"linear_before_reset": 1} if case.cell == "gru" else {}
    node = helper.make_node(OPERATORS[case.cell], inputs, outputs, hidden_size=case.H, **attributes)
    weights = [numpy_helper.from_array(value[None], name) for name, value in constants.items()]
    graph = helper.make_graph([node], "layer", values(accepts), values(gives), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized
