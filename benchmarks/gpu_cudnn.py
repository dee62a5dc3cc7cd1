"""Which of cuDNN's algorithms torch.nn asks for.

Torch decides by the rules below (aten/src/ATen/native/cudnn/RNN.cpp and native/RNN.cpp of torch
2.13) and offers no way to ask, so they are stated here again.
"""

from __future__ import annotations

from dataclasses import dataclass

STANDARD, SMALL, PERSISTENT = "standard", "small-H", "persistent static"
NOT_CUDNN = "not cuDNN: torch's own step kernels"

# The largest H of the small-H algorithm, forward and backward.
SMALL_H = {"elman": (384, 256), "lstm": (192, 128), "gru": (192, 128)}
BFLOAT16_SINCE = 91300  # cuDNN 9.13


@dataclass(frozen=True)
class Gpu:
    """What the rules ask of a GPU."""

    major: int
    minor: int
    multiprocessors: int
    cudnn: int  # torch.backends.cudnn.version()


@dataclass(frozen=True)
class Layer:
    """What the rules ask of a call."""

    cell: str
    dtype: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    directions: int = 1
    projected: bool = False
    packed: bool = False


def algorithm(layer: Layer, gpu: Gpu, backward: bool) -> str:
    """Return the name of the algorithm of one pass."""
    if layer.dtype == "bfloat16" and (gpu.cudnn < BFLOAT16_SINCE or gpu.major < 8):
        return NOT_CUDNN
    if layer.projected or layer.packed:
        return STANDARD
    largest = SMALL_H[layer.cell][backward]
    if layer.dtype != "float64" and gpu.major >= 6 and largest >= layer.H:
        return SMALL
    persistent = layer.dtype == "float16" and _shape_persists(layer) and _gpu_persists(layer, gpu)
    return PERSISTENT if persistent else STANDARD


def _shape_persists(layer: Layer) -> bool:
    single = layer.layers == 1 and layer.directions == 1
    return single and layer.H <= 1024 and layer.H % 128 == 0 and layer.I % 128 == 0


def _gpu_persists(layer: Layer, gpu: Gpu) -> bool:
    if gpu.major == 7:
        return gpu.minor != 5 and _volta_persists(layer.T, layer.B)
    if gpu.major < 8 or gpu.multiprocessors < 98 or gpu.minor == 6 or layer.cell == "gru":
        return False
    fits = layer.B % 8 == 0 and layer.B <= 128
    return fits and (layer.cell == "lstm" or layer.B < 96 or layer.H < 896)


def _volta_persists(T: int, B: int) -> bool:
    good = B == 8 or (B % 16 == 0 and B not in (80, 112))
    return good and ((T >= 40 and B <= 128) or (T >= 20 and B <= 96) or (T >= 10 and B <= 32))
