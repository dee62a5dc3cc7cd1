"""Lets CPU tensors take the CUDA engine's way, whose module is then that of the emulated kernels.

Of the package, only the few functions of ``_cuda_device`` that ask torch about its GPUs are
replaced. All else is what runs on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrnn import _cuda_device, _cuda_ops

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda-python"
BUILD = "`make cuda-python` builds the emulated module"


@functools.cache
def module() -> Any:
    """Return the module with emulated kernels; ``None`` if it is not built."""
    found = sorted(FOLDER.rglob("_cuda_emu*.so"))
    if not found:
        return None
    spec = importlib.util.spec_from_file_location("_cuda_emu", found[0])
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[int]:
    yield 0


def install(patch: pytest.MonkeyPatch, tf32: bool = False) -> None:
    """Send tensors on the CPU to the emulated kernels, until the patch is undone."""
    if module() is None:
        pytest.skip(BUILD)
    for cached in (_cuda_device.properties, _cuda_ops._problem, _cuda_ops._plan, _cuda_ops._layout):
        cached.cache_clear()
    patch.setattr(_cuda_device, "module", module)
    patch.setattr(_cuda_device, "takes", lambda tensor: tensor.is_cpu)
    patch.setattr(_cuda_device, "current", _current)
    patch.setattr(_cuda_device, "capturing", lambda: False)
    set_tf32(patch, tf32)


def set_tf32(patch: pytest.MonkeyPatch, tf32: bool) -> None:
    """Let layers multiply float32 numbers as TF32's, or not."""
    # torch's own test modules, once imported, forbid to assign any such switch.
    own = torch.backends.flags_frozen.__globals__
    patch.setitem(own, "__allow_nonbracketed_mutation_flag", True)
    patch.setattr(torch.backends.cudnn, "allow_tf32", tf32)


def use_kernel(patch: pytest.MonkeyPatch, kernel: str) -> None:
    """Plan for this kernel, whatever the model says; a projection has the step kernel only."""
    emulated = module()

    class Forced:
        def __getattr__(self, name: str) -> Any:
            return getattr(emulated, name)

        def plan(self, problem: Any, device: Any, backward: bool, tf32: bool) -> Any:
            try:
                return emulated.plan(problem, device, backward, tf32, kernel)
            except ValueError as error:
                if "no projection" not in str(error):
                    raise
                return emulated.plan(problem, device, backward, tf32, "step")

    forced = Forced()
    patch.setattr(_cuda_device, "module", lambda: forced)
