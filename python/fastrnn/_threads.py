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

import torch

NAMES = "GOMP_parallel_start", "GOMP_parallel_end", "omp_in_parallel"
FORKED = 0x40
"""Linux's PF_FORKNOEXEC among the flags of a process: forked, and not another program since."""


def _forked() -> bool:
    """Say whether this process may have lost threads that the runtime believes to be there."""
    with open("/proc/self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[6]) & FORKED != 0


def _runtime() -> ctypes.CDLL:
    """Return where torch's runtime is found: in the process, if another one was put before it."""
    if "omp" in os.environ.get("LD_PRELOAD", ""):
        return ctypes.CDLL(None)
    path = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)


def torchs() -> tuple[int, ...] | None:
    """Return the addresses of the runtime's functions, or None: the engine uses its own threads.

    It does so too where the environment's ``FASTRNN_OWN_THREADS`` is 1.
    """
    own = os.environ.get("FASTRNN_OWN_THREADS", "0")
    if own not in ("", "0", "1"):
        raise ImportError(
            f"fastrnn: FASTRNN_OWN_THREADS must be 0 or 1, got {own!r}; "
            "unset it for torch's threads"
        )
    if own == "1" or sys.platform != "linux":
        return None
    try:
        runtime = _runtime()
        found = [ctypes.cast(getattr(runtime, n), ctypes.c_void_p).value or 0 for n in NAMES]
        return None if _forked() or not all(found) else tuple(found)
    except (OSError, AttributeError):
        return None
