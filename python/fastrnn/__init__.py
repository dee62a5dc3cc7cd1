"""Fast recurrent layers for PyTorch: drop-in RNN, LSTM and GRU on a torch-free C++ core."""

from __future__ import annotations

from importlib import metadata as _metadata

import torch as _torch

# As numbers: as text, 2.13 comes before 2.4. What follows the minor number may be any text.
if tuple(int(number) for number in _torch.__version__.split(".")[:2]) < (2, 4):
    raise ImportError(
        f"fastrnn: torch must be at least 2.4, got {_torch.__version__}; "
        "upgrade it with `pip install 'torch>=2.4'`"
    )

from . import compat as compat
from . import cuda as cuda
from . import functional as functional
from . import reservoir as reservoir
from ._ops import available_isas as available_isas
from ._ops import isa as isa
from ._ops import version as _core_version
from .acceleration import accelerate as accelerate
from .cells.elman import RNN as RNN
from .cells.elman import RNNCell as RNNCell
from .cells.gru import GRU as GRU
from .cells.gru import GRUCell as GRUCell
from .cells.lstm import LSTM as LSTM
from .cells.lstm import LSTMCell as LSTMCell
from .conversion import convert as convert
from .conversion import to_torch as to_torch
from .keras_layer import KerasLayer as KerasLayer
from .keras_layer import from_keras as from_keras
from .onnx_node import OnnxNode as OnnxNode
from .onnx_node import from_onnx_node as from_onnx_node
from .quantize import Quantized as Quantized
from .quantize import quantize_dynamic as quantize_dynamic
from .reservoir import ESN as ESN
from .reservoir import Reservoir as Reservoir
from .reservoir import Ridge as Ridge
from .stateful import Stateful as Stateful
from .streaming import Stream as Stream
from .truncated import Truncated as Truncated
from .truncated import tbptt as tbptt

try:
    __version__ = _metadata.version("fastrnn")
except _metadata.PackageNotFoundError:  # imported from a build tree
    __version__ = _core_version()

__all__ = [
    "ESN",
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "KerasLayer",
    "LSTMCell",
    "OnnxNode",
    "Quantized",
    "RNNCell",
    "Reservoir",
    "Ridge",
    "Stateful",
    "Stream",
    "Truncated",
    "accelerate",
    "available_isas",
    "compat",
    "convert",
    "cuda",
    "from_keras",
    "from_onnx_node",
    "functional",
    "isa",
    "quantize_dynamic",
    "reservoir",
    "tbptt",
    "to_torch",
]
