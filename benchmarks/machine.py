"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import fastrnn
from fastrnn import _core

PACKAGES = (
    "torch",
    "numpy",
    "onnxruntime",
    "openvino",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
    "jax",
    "jaxlib",
)


def confine(processors: int) -> list[int]:
    """Keep this process, and every thread it will start, on so many processors.

    Whatever a library's own setting means, no side can then use more than the others.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < processors:
        raise SystemExit(f"--threads {processors}: there are {len(allowed)} processors")
    chosen = allowed[-processors:]  # the first one usually serves the interrupts
    os.sched_setaffinity(0, chosen)
    return chosen


def _output(*command: str) -> str:
    try:
        here = Path(__file__).parent
        return subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    fields = {key.strip(): value.strip() for key, value in pairs}
    numbers = ("cpu family", "model", "CPU implementer", "CPU part")
    name = fields.get("model name", platform.machine())
    return ", ".join([name, *(f"{key} {fields[key]}" for key in numbers if key in fields)])


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        caches[f"L{level} {kind}"] = size
    return caches


def _versions() -> dict[str, str]:
    installed = {d.name.lower().replace("_", "-"): d.version for d in metadata.distributions()}
    versions = {"fastrnn": fastrnn.__version__, "python": platform.python_version()}
    return versions | {name: installed[name] for name in PACKAGES if name in installed}


def describe(processors: list[int]) -> dict[str, Any]:
    """Return what belongs beside every number."""
    changed = _output("git", "status", "--porcelain")
    return {
        "cpu": _processor(),
        "processors": os.cpu_count(),
        "confined_to": processors,
        "caches": _caches(),
        "isa": _core.isa(),
        "isas": _core.available_isas(),
        "system": platform.platform(),
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted_changes": changed not in ("", "unknown"),
        "versions": _versions(),
        # Where this machine keeps its files says nothing.
        "command": " ".join(["python", "benchmarks/run.py", *(Path(a).name for a in sys.argv[1:])]),
    }


class Disturbance:
    """How much of the processors' time went to others, the hypervisor included, since the start."""

    def __init__(self, processors: list[int]) -> None:
        self._names = {f"cpu{number}" for number in processors}
        self._start = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        """Return seconds: all of the processors, busy of the processors, busy with this process."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            return None
        rows = [line.split() for line in lines if line.split()[0] in self._names]
        # user nice system idle iowait irq softirq steal (proc(5)); guests count as user already
        ticks = [[int(field) for field in row[1:9]] for row in rows]
        total = sum(map(sum, ticks))
        idle = sum(row[3] + row[4] for row in ticks)
        rate = os.sysconf("SC_CLK_TCK")
        return total / rate, (total - idle) / rate, sum(os.times()[:4])

    def share(self) -> float | None:
        now = self._now()
        if now is None or self._start is None or not self._names:
            return None
        total, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, busy - own) / total if total else 0.0


class Ceilings:
    """How fast one thread multiplies and reads, measured in the same run as everything else."""

    def __init__(self) -> None:
        self.missing = [n for n in ("fma_peak", "read_bandwidth") if not hasattr(_core, n)]
        self._bandwidth: dict[int, float] = {}

    def fma_peak(self, dtype: str) -> float | None:
        """GFLOP/s, the best of three: it is a ceiling, and disturbances only lower it."""
        if "fma_peak" in self.missing:
            return None
        return max(_core.fma_peak(0.03, dtype) for _ in range(3))

    def read_bandwidth(self, size: int) -> float | None:
        """GB/s when a buffer of ``size`` bytes is read over and over."""
        if "read_bandwidth" in self.missing:
            return None
        if size not in self._bandwidth:
            self._bandwidth[size] = _core.read_bandwidth(size, 0.1)
        return self._bandwidth[size]
