"""Fast recurrent layers for PyTorch: drop-in RNN, LSTM and GRU on a torch-free C++ core."""

from __future__ import annotations

from importlib import metadata as _metadata

import torch as _torch

if _torch.__version__ < "2.4":
    raise ImportError(
        f"fastrnn: torch must be at least 2.4, got {_torch.__version__}; "
        "upgrade it with `pip install 'torch>=2.4'`"
    )

from . import functional as functional
from . import reservoir as reservoir
from ._ops import available_isas as available_isas
from ._ops import isa as isa
from ._ops import version as _core_version
from .cells.elman import RNN as RNN
from .cells.elman import RNNCell as RNNCell
from .cells.gru import GRU as GRU
from .cells.gru import GRUCell as GRUCell
from .cells.lstm import LSTM as LSTM
from .cells.lstm import LSTMCell as LSTMCell
from .quantize import Quantized as Quantized
from .quantize import quantize_dynamic as quantize_dynamic
from .reservoir import ESN as ESN
from .reservoir import Reservoir as Reservoir
from .reservoir import Ridge as Ridge
from .streaming import Stream as Stream

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
    "LSTMCell",
    "Quantized",
    "RNNCell",
    "Reservoir",
    "Ridge",
    "Stream",
    "available_isas",
    "functional",
    "isa",
    "quantize_dynamic",
    "reservoir",
]
