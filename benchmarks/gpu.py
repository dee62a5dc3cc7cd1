"""Time fastrnn on a GPU beside torch.nn (cuDNN), haste and FlashRNN; README.md says how.

python benchmarks/gpu.py --json gpu.json --png gpu.png
python benchmarks/gpu.py --device emulated        # shows that the script works; times nothing
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

import fastrnn
import gpu_sides
from gpu_cudnn import Gpu, Layer, algorithm
from gpu_report import CUDNN, OURS, PRODUCT, header, plot, row, summary
from registry import CELLS, Case, cases

DTYPES = ("float32", "tf32", "bfloat16", "float16")
WARM_SECONDS, SAMPLE_SECONDS, SAMPLES = 0.05, 2e-3, 15
EMULATED_SHAPES = ((2, 3, 5, 8), (3, 2, 4, 17))
# Largest difference from torch.nn's numbers, over the largest of the array; both sides round.
TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 0.15, "float16": 0.02}
NVIDIA_SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    parser.add_argument("--set", choices=("quick", "everyday", "deepbench", "all"), default="all")
    parser.add_argument("--cell", choices=CELLS, nargs="+", default=CELLS)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES)
    parser.add_argument("--filter", default="", help="only cases whose name has this, '100,32,'")
    parser.add_argument("--limit", type=float, default=540, metavar="S", help="seconds in all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    parser.add_argument("--load", type=Path, metavar="FILE", help="report an earlier run's JSON")
    return parser.parse_args()


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """Return the quick shapes first, then the others mixed: a limit cuts all sorts alike."""
    listed: list[Case] = []
    shapes = EMULATED_SHAPES if options.device == "emulated" else (options.set,)
    for dtype in options.dtype:
        for shape in shapes:
            listed += cases(shape, tuple(options.cell), ("inference", "training"), dtype, False)
    listed = [case for case in dict.fromkeys(listed) if options.filter in case.name]
    quick = set(cases("quick", CELLS, ("inference", "training"), "", False))
    shown = {(case.cell, case.mode, case.shape) for case in quick}
    random.Random(0).shuffle(listed)
    return sorted(listed, key=lambda case: (case.cell, case.mode, case.shape) not in shown)


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Return what belongs beside every number."""
    known = {"torch": torch.__version__, "fastrnn": fastrnn.__version__}
    if options.device == "emulated":
        h100 = {"major": 9, "minor": 0, "multiprocessors": 132, "cudnn": 91300}
        return known | {"name": "emulated GPU"} | h100
    found = torch.cuda.get_device_properties(0)
    return known | {
        "name": found.name,
        "major": found.major,
        "minor": found.minor,
        "multiprocessors": found.multi_processor_count,
        "cudnn": torch.backends.cudnn.version() or 0,
        "cuda": torch.version.cuda,
        "clocks": [clocks()],
    }


def clocks() -> str:
    """Return nvidia-smi's words on clocks, temperature and power."""
    command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or f"nvidia-smi: {done.stderr.strip()}"


class Clock:
    """Times calls by CUDA events: only what the GPU's stream took counts."""

    device = torch.device("cuda")

    def seconds(self, step: Callable[[], Any], calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / calls

    def peak_memory(self, step: Callable[[], Any]) -> int:
        """Return the most bytes that a call needs beside its arguments."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def time_sides(sides: dict[str, Any], clock: Clock) -> dict[str, list[float]]:
    """Time all sides in turn, sample by sample, each after the same warm-up."""
    calls = {}
    for name, step in sides.items():
        once, until = clock.seconds(step, 1), time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < until:
            once = min(once, clock.seconds(step, 1))
        calls[name] = max(1, round(SAMPLE_SECONDS / once))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(SAMPLES):
        order = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
        for name in order:
            samples[name].append(clock.seconds(sides[name], calls[name]))
    return samples


def set_precision(dtype: str) -> None:
    """Let both sides use TF32, or neither."""
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9
        precision = "tf32" if dtype == "tf32" else "ieee"
        torch.backends.cudnn.rnn.fp32_precision = precision
        torch.backends.cuda.matmul.fp32_precision = precision
    else:
        torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"


def build(case: Case, device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what can be timed, and of the other libraries why they cannot."""
    tensors = gpu_sides.Tensors.of(case, device)
    built = {name: make(case, tensors) for name, make in gpu_sides.REQUIRED.items()}
    built |= {name: _tried(make, case, tensors) for name, make in gpu_sides.OPTIONAL.items()}
    sides = {name: side for name, side in built.items() if not isinstance(side, str)}
    return sides, {name: side for name, side in built.items() if isinstance(side, str)}


def _tried(make: Any, case: Case, tensors: gpu_sides.Tensors) -> Any:
    """Return the side, or why the library cannot do the case: some compile at the first call."""
    try:
        side = make(case, tensors)
        side()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return side


def differences(case: Case, sides: dict[str, Any]) -> dict[str, float]:
    """Return each side's largest difference from torch.nn, over the array's largest number."""
    truth = sides[CUDNN]()
    found = {}
    for name in sides.keys() - {CUDNN, PRODUCT}:
        made = sides[name]()
        found[name] = max(
            float((made[key] - truth[key]).abs().max() / truth[key].abs().max())
            for key in made.keys() & truth.keys()
        )
    return found


def algorithms(case: Case, found: dict[str, Any], device: torch.device) -> dict[str, str]:
    """Return the kernels that fastrnn and torch choose, forward and backward."""
    gpu = Gpu(**{key: found[key] for key in ("major", "minor", "multiprocessors", "cudnn")})
    layer = Layer(case.cell, case.dtype, case.T, case.B, case.I, case.H)
    passes = (False, True) if case.mode == "training" else (False,)
    theirs = dict.fromkeys(algorithm(layer, gpu, backward) for backward in passes)
    mine = dict.fromkeys(gpu_sides.kernel(case, backward, device) for backward in passes)
    return {OURS: " / ".join(mine), CUDNN: " / ".join(theirs)}


def run_case(case: Case, gpu: dict[str, Any], clock: Clock | None) -> dict[str, Any]:
    """Check one case and, on a GPU, time it; return its entry in the JSON file."""
    set_precision(case.dtype)
    device = clock.device if clock else torch.device("cpu")
    sides, absent = build(case, device)
    found = differences(case, sides)
    wrong = {n: d for n, d in found.items() if not d <= TOLERANCES[case.dtype]}  # NaN is wrong
    if OURS in wrong:
        raise SystemExit(
            f"{case.name} {case.dtype}: fastrnn differs from torch by {wrong[OURS]:.1e}"
        )
    for name, difference in wrong.items():
        absent[name] = f"wrong: differs by {difference:.1e}"
        del sides[name]
    samples = time_sides(sides, clock) if clock else {}
    names = algorithms(case, gpu, device)
    entries = {
        name: {
            "median": median(samples[name]) if samples else None,
            "samples": samples.get(name, []),
            "memory": clock.peak_memory(step) if clock else None,
            "algorithm": names.get(name, ""),
            "difference": found.get(name),
        }
        for name, step in sides.items()
    }
    return {"case": asdict(case), "flops": case.flops, "sides": entries, "not_timed": absent}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen cases, writing the JSON file as results come, until the time is up."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is false; see --device emulated")
    start = time.perf_counter()
    device, peers = describe(options), [CUDNN, *gpu_sides.OPTIONAL]
    clock = Clock() if options.device == "cuda" else None
    listed = chosen_cases(options)
    outcome = {"device": device, "command": sys.argv, "left": [], "results": []}
    print(json.dumps(device, indent=1), header(peers), sep="\n")
    around: AbstractContextManager[Any] = nullcontext() if clock else gpu_sides.emulated()
    with around, tqdm(listed, unit="case", disable=None) as progress:
        for number, case in enumerate(progress):
            if time.perf_counter() - start > options.limit:
                outcome["left"] = [f"{c.name} {c.dtype}" for c in listed[number:]]
                break
            result = run_case(case, device, clock)
            outcome["results"].append(result)
            progress.write(row(result, peers))
            for name, reason in result["not_timed"].items():
                progress.write(f"  {name} not timed: {reason}")
            if options.json:
                options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    if clock:
        device["clocks"].append(clocks())
        print("clocks before and after:", *device["clocks"], sep="\n  ")
    return outcome


def main() -> None:
    options = parse()
    outcome = json.loads(options.load.read_text()) if options.load else run(options)
    print("\n".join(summary(outcome["results"])))
    if outcome["left"]:
        print(f"{len(outcome['left'])} cases left out when the time was up (in the JSON file)")
    if options.device == "emulated":
        print("Emulated: every result was compared with torch's, nothing was timed.")
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    if options.png:
        plot(outcome, options.png)


if __name__ == "__main__":
    main()
