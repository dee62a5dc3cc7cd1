"""Correctness, then time, then memory: how each number is formed. README.md says it in words."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from peers import OURS, PEERS, Side, UnsupportedError
from registry import Case, Data, make_data

SAMPLE_SECONDS = 2e-3  # a sample is as many calls as take this long
WARM_SECONDS = 0.1
LEAST_SAMPLES = 5
LIBRARIES_REST = 5e-3  # idle threads of the library before have stopped spinning after this

# Largest difference from fastrnn's result, relative to the largest value of the array. Both sides
# round; chains of T steps add up. A wrong gate order or a missing bias is 1e-2 or more. Of reduced
# numbers torch adds dW up over time steps in 16 bits, 0.09 off after 1,000 of bfloat16; 8-bit
# weights are compared with float32.
TOLERANCES = {"float32": 1e-4, "float64": 1e-11, "bfloat16": 0.15, "float16": 0.02, "int8": 0.1}


class WrongResultError(Exception):
    """A library's result differs from fastrnn's by more than rounding explains."""


def build_sides(
    case: Case, names: list[str], threads: int
) -> tuple[dict[str, Side], dict[str, str]]:
    """Return the sides that can do the case, and of the others why not."""
    data = make_data(case)
    built = {name: _build(name, case, data, threads) for name in names}
    sides = {name: side for name, side in built.items() if isinstance(side, Side)}
    return sides, {name: side for name, side in built.items() if isinstance(side, str)}


def _build(name: str, case: Case, data: Data, threads: int) -> Side | str:
    try:
        return PEERS[name].build(case, data, threads)
    except UnsupportedError as error:
        return str(error)


def check(case: Case, sides: dict[str, Side]) -> dict[str, float]:
    """Compare every result with fastrnn's and return the largest relative differences."""
    ours = _copied(sides[OURS])
    differences = {}
    for name, side in sides.items():
        theirs = ours if name == OURS else _copied(side)
        parts = {key: _difference(theirs[key], ours[key]) for key in ours.keys() & theirs.keys()}
        worst = max(parts, key=lambda key: parts[key])
        # Written so that NaN fails.
        if not all(value <= TOLERANCES[case.dtype] for value in parts.values()):
            raise WrongResultError(
                f"{case.name}: {worst} of {name} differs from fastrnn's by {parts[worst]:.1e}"
            )
        differences[name] = parts[worst]
    return differences


def _difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    largest = np.abs(theirs - ours).max()
    # All may be zero: without initial states a single step has no gradient of W_hh.
    return 0.0 if largest == 0 else float(largest / np.abs(ours).max())


def _copied(side: Side) -> dict[str, np.ndarray]:
    return {key: array.copy() for key, array in side.arrays(side.step()).items()}


def _seconds(step: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - begin) / calls


def _warm(step: Callable[[], Any]) -> float:
    """Call until `WARM_SECONDS` are over, at least twice, and return the fastest call's time."""
    best, spent, calls = math.inf, 0.0, 0
    while spent < WARM_SECONDS or calls < 2:
        last = _seconds(step, 1)
        best, spent, calls = min(best, last), spent + last, calls + 1
    return best


def time_sides(
    sides: dict[str, Side],
    samples: int,
    idle: float,
    between: Callable[[], Any] | None,
    tick: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Time all sides in turn, sample by sample.

    Args:
        sides: what to time.
        samples: of each side; one whose call takes longer than a second gets fewer.
        idle: seconds to sleep before each timed call; then a sample is a single call and nothing
            warms it up.
        between: is called before each timed call, untimed; then a sample is a single call.
        tick: is told the name of the side before each of its samples.

    Returns:
        For each side the median, the quartiles and what they are made of, in seconds; and of
        others the ratio to fastrnn's, the median over the turns that both took part in.
    """
    plan = {}
    for name, side in sides.items():
        tick(name)
        call = _warm(side.step)
        calls = 1 if idle or between else max(1, math.ceil(SAMPLE_SECONDS / call))
        plan[name] = (
            calls,
            samples if call < 1 else max(min(LEAST_SAMPLES, samples), int(samples / call)),
        )
    times: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    try:
        for turn in range(max(wanted for _, wanted in plan.values())):
            # Every side comes after every other one.
            order = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
            for name in order:
                calls, wanted = plan[name]
                if turn >= wanted:
                    continue
                tick(name)
                time.sleep(idle or LIBRARIES_REST)
                if not idle:
                    sides[name].step()
                if between:
                    between()
                times[name].append(_seconds(sides[name].step, calls))
    finally:
        gc.enable()
    summaries = {name: _summary(values, plan[name][0]) for name, values in times.items()}
    for name in times.keys() - {OURS}:
        pairs = zip(times[name], times[OURS], strict=False)
        summaries[name]["ratio"] = median(theirs / ours for theirs, ours in pairs)
    return summaries


def _summary(seconds: list[float], calls: int) -> dict[str, Any]:
    first, middle, third = quantiles(seconds, n=4, method="inclusive")
    return {
        "median": middle,
        "quartiles": [first, third],
        "fastest": min(seconds),
        "samples": len(seconds),
        "calls_per_sample": calls,
    }


def peak_memory(case: Case, name: str, threads: int) -> int | None:
    """Return the bytes that a fresh process needs for the case above what the library needs."""
    request = json.dumps({"case": asdict(case), "name": name, "threads": threads})
    runner = Path(__file__).with_name("run.py")
    command = [sys.executable, str(runner), "--memory-of", request]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: int | None = json.loads(done.stdout.splitlines()[-1])
    return result


def memory_of(request: str) -> int | None:
    """Do `peak_memory`'s work, in its process."""
    given = json.loads(request)
    case, name, threads = Case(**given["case"]), given["name"], given["threads"]
    tiny = Case(case.cell, case.mode, 2, 2, 8, 8, case.dtype)
    PEERS[name].build(tiny, make_data(tiny), threads).step()
    try:
        # Sets VmHWM, the peak, back to what is resident now (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _peak_resident()
    side = PEERS[name].build(case, make_data(case), threads)
    for _ in range(3):
        side.step()
    return _peak_resident() - before


def _peak_resident() -> int:
    """Return the peak less what lies in files now: pages of code that a first call maps."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0])) * 1024
