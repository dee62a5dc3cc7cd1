"""The CUDA engine's module and the devices it runs on: which tensors are its, and whether it can.

The module ``fastrnn._cuda`` is always there. Built without nvcc it only plans, see
:func:`fastrnn.cuda.plan`; a call on a GPU then says what to install.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from . import _cuda

OLDEST = (7, 5)
"""The first compute capability that there are kernels for."""

TF32 = (8, 0)
"""The first compute capability that multiplies TF32 numbers."""

NEEDED_DRIVER = {12: 525, 13: 580}
"""The first release of the driver that runs kernels of a major version of CUDA."""


def takes(tensor: Tensor) -> bool:
    """Tell whether a tensor is the CUDA engine's and not the CPU engine's."""
    return tensor.is_cuda


def module() -> Any:
    """Return the compiled module, loaded on first use; types are in ``_cuda.pyi``."""
    from . import _cuda

    return _cuda


def engine() -> Any:
    """Return the compiled module, which has kernels.

    Raises:
        RuntimeError: if it was built without them, or the driver is too old for them.
    """
    found = module()
    if not found.has_kernels:
        raise RuntimeError(
            "fastrnn: this installation has no CUDA kernels, so tensors must be on the CPU; move "
            "the module and its input with .to('cpu'), or install a wheel made by `make "
            "wheel-cuda`, or build with nvcc: `pip install -C cmake.define.FASTRNN_CUDA=ON .`"
        )
    _check_versions(found)
    return found


@functools.cache
def _check_versions(found: Any) -> None:
    _check_driver(*found.versions())


def _check_driver(driver: int, own: int) -> None:
    """Check the driver's CUDA version against that of the kernels, 1000 * major + 10 * minor."""
    if driver // 1000 >= own // 1000:
        return
    release = NEEDED_DRIVER.get(own // 1000)
    text = f", release {release} or later" if release else ""
    found = f"one for CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "none"
    raise RuntimeError(
        f"fastrnn: the NVIDIA driver must be for CUDA {own // 1000}{text}, got {found}; "
        "update the driver, or use torch.nn on this GPU"
    )


@functools.cache
def properties(device: torch.device) -> _cuda.Device:
    """Return what plans for a device are made from.

    Raises:
        RuntimeError: if there are no kernels for the device.
    """
    loaded = engine()
    with current(device):
        found: _cuda.Device = loaded.device_properties()
    if (found.major, found.minor) < OLDEST:
        raise RuntimeError(
            f"fastrnn: {device} must have compute capability 7.5 or later, got {found.major}."
            f"{found.minor}; use torch.nn on this GPU"
        )
    return found


@contextlib.contextmanager
def current(device: torch.device) -> Iterator[int]:
    """Make a device the current one; give the address of its current stream.

    Everything that a call allocates belongs to that stream, and nothing is used on another. So
    torch's allocator never hands memory on too early, and there is nothing to ``record_stream``.
    """
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def capturing() -> bool:
    """Tell whether the current stream is being captured into a CUDA graph."""
    return torch.cuda.is_current_stream_capturing()


def tf32(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether products of float32 numbers may be TF32's: as torch asks for its own RNNs."""
    if dtype is not torch.float32:
        return False
    found = properties(device)
    if (found.major, found.minor) < TF32:
        return False
    rnn: Any = getattr(torch.backends.cudnn, "rnn", None)
    if hasattr(rnn, "fp32_precision"):  # torch 2.9
        return bool(rnn.fp32_precision == "tf32")
    return bool(torch.backends.cudnn.allow_tf32)


_products = threading.Lock()


@contextlib.contextmanager
def products(dtype: torch.dtype, tf32: bool) -> Iterator[None]:
    """Let torch's own products be of the precision that the layer's are.

    torch has one switch for its RNNs and another, for the whole process, for its products; the
    first one holds for a layer, so the second is turned for as long as products are started.
    """
    if dtype is not torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    if hasattr(torch.backends, "fp32_precision"):
        name, wanted = "fp32_precision", "tf32" if tf32 else "ieee"
    else:
        name, wanted = "allow_tf32", tf32  # type: ignore[assignment]
    with _products:
        before = getattr(matmul, name)
        if before == wanted:
            yield
            return
        setattr(matmul, name, wanted)
        try:
            yield
        finally:
            setattr(matmul, name, before)
