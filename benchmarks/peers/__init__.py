"""The libraries that are measured, one file each, imported only when they are asked for.

Each file has a function ``build(case, data, threads)`` that returns a `Side` or raises
`UnsupportedError`. Everything that can be done once, before the first call, is done there: weights
are converted, graphs compiled, inputs laid out as the library likes them best.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry import Case, Data


class UnsupportedError(Exception):
    """The library cannot do this case; the message says why."""


@dataclass(frozen=True)
class Side:
    """One library at one case.

    Args:
        step: does the work that is timed, to its end, and returns the library's own tensors.
        arrays: turns what ``step`` returned into arrays in torch's layout: y (T, B, H) and, in
            training, dx, dw_ih, dw_hh, db_ih.
    """

    step: Callable[[], Any]
    arrays: Callable[[Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """A library to measure.

    Args:
        module: file in this folder.
        packages: what has to be importable.
        modes: the modes for which it is chosen by default; others only when named.
    """

    module: str
    packages: tuple[str, ...]
    modes: tuple[str, ...]

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(name) is not None for name in self.packages)

    def build(self, case: Case, data: Data, threads: int) -> Side:
        module = importlib.import_module(f"peers.{self.module}")
        side: Side = module.build(case, data, threads)
        return side


OURS = "fastrnn"
ALL = ("inference", "training", "streaming")
PEERS = {
    OURS: Peer("fastrnn_modules", ("fastrnn",), ALL),
    "torch": Peer("torch_modules", ("torch",), ALL),
    "onnxruntime": Peer("onnxruntime_session", ("onnxruntime", "onnx"), ("inference", "streaming")),
    "openvino": Peer("openvino_model", ("openvino", "onnx"), ("inference",)),
    "tensorflow": Peer("tensorflow_keras", ("tensorflow", "keras"), ("training",)),
    "jax": Peer("jax_scan", ("jax",), ("training",)),
    "fastrnn-1-thread": Peer("fastrnn_one_thread", ("fastrnn",), ()),
    "fastrnn-float32": Peer("fastrnn_float32", ("fastrnn",), ()),
    "fastrnn-checkpointed": Peer("fastrnn_checkpointed", ("fastrnn",), ()),
}
