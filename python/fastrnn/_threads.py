"""Threads of torch's OpenMP runtime, which work for the engine too.

After an operation on several threads those of libgomp spin for milliseconds. Beside them threads of
the engine's own would have half a processor each. So the engine borrows the threads of the runtime
that torch uses, by ``GOMP_parallel_start`` and ``GOMP_parallel_end``, which GNU's and LLVM's have
on Linux. Its own work where these are missing, in threads that are the runtime's already, and in
forked children, where the runtime would wait for threads that are gone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

import torch

NAMES = "GOMP_parallel_start", "GOMP_parallel_end", "omp_in_parallel"


def _libraries() -> Iterable[ctypes.CDLL]:
    """Yield where torch's runtime is found, as the loader does: in the process, then by torch."""
    yield ctypes.CDLL(None)
    path = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    yield ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)


def torchs() -> tuple[int, ...] | None:
    """Return the addresses of the runtime's functions, or None: the engine keeps to its own.

    The environment's ``FASTRNN_THREADS`` may be ``torch``, the default, or ``own``.
    """
    chosen = os.environ.get("FASTRNN_THREADS", "torch")
    if chosen not in ("torch", "own"):
        raise ImportError(
            f"fastrnn: FASTRNN_THREADS must be 'torch' or 'own', got {chosen!r}; "
            "unset it for 'torch'"
        )
    if chosen == "own" or sys.platform != "linux":
        return None
    try:
        for library in _libraries():
            if hasattr(library, NAMES[0]):
                found = (ctypes.cast(getattr(library, n), ctypes.c_void_p).value for n in NAMES)
                return tuple(address or 0 for address in found)
    except (OSError, AttributeError):
        pass
    return None
