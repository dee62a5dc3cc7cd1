"""OpenVINO's CPU plugin in float32, tuned for latency."""

from __future__ import annotations

import numpy as np
import openvino

from registry import Case, Data

from . import Side, UnsupportedError
from .onnx_model import model_bytes


def build(case: Case, data: Data, threads: int) -> Side:
    if case.mode == "streaming":
        raise UnsupportedError("steps one at a time are not measured")
    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # where the CPU has bfloat16 it would be taken
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the whole process is confined already
    }
    compiled = core.compile_model(core.read_model(model_bytes(case, data)), "CPU", options)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(data.x, shared_memory=True))

    def step() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return Side(step, lambda result: {"y": result[:, 0]})
