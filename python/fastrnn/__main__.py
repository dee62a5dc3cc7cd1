"""Print what a bug report needs: ``python -m fastrnn``."""

from __future__ import annotations

import os
import platform

import torch

import fastrnn

from . import _cuda_device, _plans


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no"
        return f"not available (torch is built with CUDA: {built}); {_kernels()}"
    names = ", ".join(
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    )
    return f"{names} (CUDA {torch.version.cuda}); {_kernels()}"


def _kernels() -> str:
    has = _cuda_device.module().has_kernels
    return "fastrnn is built with CUDA kernels" if has else "fastrnn is built without CUDA kernels"


def report() -> dict[str, str]:
    """Return what is to be known about the installation, by name."""
    forced = os.environ.get("FASTRNN_ISA")
    whose = "torch's OpenMP" if _plans.torchs_threads else "fastrnn's own"
    return {
        "fastrnn": fastrnn.__version__,
        "ISA in use": fastrnn.isa() + (f" (FASTRNN_ISA={forced})" if forced else ""),
        "ISAs available": ", ".join(fastrnn.available_isas()),
        "threads": f"{torch.get_num_threads()}, {whose}; {os.cpu_count()} processors",
        "CUDA": _cuda(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def main() -> None:
    """Print the report, one line each."""
    entries = report()
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
