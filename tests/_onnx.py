"""Exporting to ONNX and running the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor


def exported(
    module: torch.nn.Module, inputs: Sequence[Any], dynamic: Any = None, **options: Any
) -> onnx.ModelProto:
    """Return the model that torch makes of a module, checked with shapes inferred."""
    program = torch.onnx.export(
        module, tuple(inputs), dynamo=True, dynamic_shapes=dynamic, verbose=False, **options
    )
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def flat(values: Any) -> list[Any]:
    """Return the tensors in nested tuples."""
    if isinstance(values, Tensor):
        return [values]
    return [leaf for value in values if value is not None for leaf in flat(value)]


def run(model: onnx.ModelProto, inputs: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), flat(inputs), strict=True)}
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the recurrent nodes."""
    return [node for node in model.graph.node if node.op_type in ("RNN", "LSTM", "GRU")]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
