"""ONNX Runtime's CPU provider, inputs and outputs bound once to fixed memory."""

from __future__ import annotations

import numpy as np
import onnxruntime

from registry import Case, Data

from . import Side
from .onnx_model import STATES, model_bytes


def build(case: Case, data: Data, threads: int) -> Side:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model_bytes(case, data), options, providers=["CPUExecutionProvider"]
    )
    if case.mode == "streaming":
        return build_steps(session, case, data)
    y = np.empty((case.T, 1, case.B, case.H), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("X", data.x)
    bind_output(binding, "Y", y)

    def step() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return Side(step, lambda result: {"y": result[:, 0]})


def bind_output(binding: onnxruntime.IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def build_steps(session: onnxruntime.InferenceSession, case: Case, data: Data) -> Side:
    """Bind each step's states, so that a step copies nothing."""
    histories = {
        name: np.zeros((case.T + 1, 1, case.B, case.H), np.float32) for name in STATES[case.cell]
    }
    bindings = []
    for t in range(case.T):
        binding = session.io_binding()
        binding.bind_cpu_input("X", data.x[t : t + 1])
        for name, history in histories.items():
            binding.bind_cpu_input(name, history[t])
            bind_output(binding, STATES[case.cell][name], history[t + 1])
        bindings.append(binding)

    def step() -> np.ndarray:
        for binding in bindings:
            session.run_with_iobinding(binding)
        return histories["initial_h"]

    return Side(step, lambda result: {"y": result[1:, 0]})
