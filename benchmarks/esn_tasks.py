"""Accuracy of echo state networks on the reference tasks: python benchmarks/esn_tasks.py.

For each task, the same network from 10 seeds, which draw reservoir and data (of next-generation
reservoirs, where only the series differs, 40): median and quartiles, or the geometric mean where
the literature has that, beside the bar to reach. The settings were chosen on seeds below 100 and
are reported on others, from 100 on. ``--quick`` runs two seeds of small settings, to see that
everything works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import machine
from fastrnn.reservoir import tasks


@dataclass(frozen=True)
class Row:
    """A task, its bar, and what one seed gives."""

    name: str
    measure: str
    bar: float
    run: Callable[[int], Any]
    higher: bool = False
    geometric: bool = False
    quick: dict[str, Any] | None = None
    factor: int = 1  # times as many seeds, where the spread between series is large


MG, LORENZ, NARMA = tasks.mackey_glass_84, tasks.lorenz_valid_time, tasks.narma10
KS, MC = tasks.kuramoto_sivashinsky_valid_time, tasks.memory_capacity
SMALL = {"hidden_size": 100, "trials": 2}


def train_error(seed: int) -> float:
    return tasks.ngrc_lorenz(seed)[0]


def test_error(seed: int) -> float:
    return tasks.ngrc_lorenz(seed)[1]


ROWS = [
    Row("MG17-B, N=1000", "NRMSE_84", 6e-5, partial(MG, variant="B"), geometric=True, quick=SMALL),
    Row("MG17-A, N=400", "NRMSE_84", 6e-4, MG, quick=SMALL),
    Row(
        "MG30-A, N=400, not a bar",
        "NRMSE_84",
        math.inf,
        partial(MG, tau=30, noise=1e-5),
        quick=SMALL,
    ),
    Row("Lorenz, N=800, alpha 8.5e-8", "Lyapunov times", 9.8, LORENZ, True, quick=SMALL),
    Row(
        "Lorenz, N=800, alpha 1e-14",
        "Lyapunov times",
        15.0,
        partial(LORENZ, alpha=1e-14),
        True,
        quick=SMALL,
    ),
    Row("NARMA-10, N=100", "NMSE", 0.065, partial(NARMA, hidden_size=100)),
    Row("NARMA-10, N=200", "NMSE", 0.038, partial(NARMA, hidden_size=200)),
    Row("NARMA-10, N=400", "NMSE", 0.028, partial(NARMA, hidden_size=400)),
    Row("NG-RC Lorenz, training", "NRMSE", 1.1e-4, train_error, factor=4),
    Row("NG-RC Lorenz, 1.1 time units, not a bar", "NRMSE", math.inf, test_error, factor=4),
    Row("NG-RC Lorenz, z from x and y", "NRMSE", 1.8e-2, tasks.ngrc_infer_z, factor=4),
    Row("memory capacity, linear cycle, N=50", "capacity", 48.9, MC, True),
    Row("Japanese Vowels, N=500", "errors of 370", 10, tasks.japanese_vowels_errors),
    Row(
        "Kuramoto-Sivashinsky L=22, N=2000",
        "Lyapunov times",
        3.0,
        KS,
        True,
        quick={"hidden_size": 100, "trials": 2, "train": 2000},
    ),
]


def summarise(row: Row, values: list[float], seconds: float) -> dict[str, Any]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    value = statistics.geometric_mean(values) if row.geometric else median
    reached = value >= row.bar if row.higher else value <= row.bar
    return {
        "task": row.name,
        "measure": row.measure,
        "value": value,
        "kind": "geometric mean" if row.geometric else "median",
        "quartiles": [low, high],
        "bar": row.bar if math.isfinite(row.bar) else None,
        "higher_is_better": row.higher,
        "reached": reached if math.isfinite(row.bar) else None,
        "seconds_per_seed": seconds / len(values),
        "values": values,
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| task | measure | value | quartiles | bar | |", "|---|---|---|---|---|---|"]
    for r in results:
        low, high = r["quartiles"]
        sign = ">=" if r["higher_is_better"] else "<="
        bar = "" if r["bar"] is None else f"{sign} {r['bar']:g}"
        verdict = {None: "", True: "reached", False: "NOT reached"}[r["reached"]]
        lines.append(
            f"| {r['task']} | {r['measure']}, {r['kind']} | {r['value']:.3g} | "
            f"{low:.3g} to {high:.3g} | {bar} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="reservoirs a task (default: 10)")
    parser.add_argument("--first-seed", type=int, default=100, help="default: 100")
    parser.add_argument("--only", default="", help="tasks whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="2 seeds, small settings")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = [row for row in ROWS if options.only.lower() in row.name.lower()]
    seeds = 2 if options.quick else options.seeds
    results = []
    with tqdm(total=seeds * sum(row.factor for row in rows), unit="seed") as bar:
        for row in rows:
            bar.set_description(row.name)
            run = partial(row.run, **row.quick) if options.quick and row.quick else row.run
            values, begin = [], time.perf_counter()
            try:
                for seed in range(seeds * row.factor):
                    values.append(float(run(options.first_seed + seed)))
                    bar.update()
            except FileNotFoundError as error:
                bar.write(f"SKIPPED {row.name}: {error}")
                bar.update(seeds * row.factor)
                continue
            results.append(summarise(row, values, time.perf_counter() - begin))
    print(table(results))
    if options.output:
        content = {
            "machine": machine.describe([]) | {"command": "python benchmarks/esn_tasks.py"},
            "threads": torch.get_num_threads(),
            "quick": options.quick,
            "seeds": seeds,
            "first_seed": options.first_seed,
            "results": results,
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
