"""Time reservoirs and echo state networks beside reservoirpy, on one thread.

python benchmarks/run.py --set esn --json results.json --png results.png
python benchmarks/esn.py --only run batch --samples 3
python benchmarks/esn.py --load results.json --table     # the rows of the README's table
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

KINDS = ("run", "fit", "batch", "population", "forecast")
BARS = {"run": 8.0, "fit": 5.0, "batch": 20.0, "population": 20.0}
INPUTS, OUTPUTS, WASHOUT, ALPHA = 3, 3, 100, 1e-6
SERIES, MEMBERS = 32, 64
SHORT = 2.0  # seconds of samples of a side, up to which each follows a call that is not timed
ENOUGH = 15.0  # seconds of samples of a side, after which there are no more
TOLERANCE = {"float32": 1e-3, "float64": 1e-8}  # of states: rounding, over ten thousand steps


@dataclass(frozen=True)
class Case:
    """What is timed: ``count`` series or reservoirs of T steps each."""

    kind: str
    N: int
    density: float
    T: int
    count: int = 1
    topology: str = "sparse"

    @property
    def name(self) -> str:
        many = f" x {self.count}" if self.count > 1 else ""
        return f"{self.kind} N={self.N} {self.density:.0%} {self.topology}{many}"


def cases(kinds: list[str]) -> list[Case]:
    sizes = [(N, d) for N in (100, 500, 1000, 5000) for d in (0.01, 0.1)]
    steps = {100: 10_000, 500: 10_000, 1000: 10_000, 5000: 1_000}
    listed = [Case(kind, N, d, steps[N]) for kind in ("run", "fit") for N, d in sizes]
    listed += [Case("run", N, 0.1, steps[N] // 5, topology="independent") for N, _ in sizes[::2]]
    listed += [Case("batch", N, d, steps[N] // 20, SERIES) for N, d in sizes[:6]]
    listed += [Case("population", 200, 0.1, 1_000, MEMBERS), Case("forecast", 300, 0.1, 10_000)]
    return [case for case in listed if case.kind in kinds]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--filter", default="", help="only cases whose name has this, 'N=100 '")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--samples", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    parser.add_argument("--load", type=Path, nargs="+", metavar="FILE", help="report earlier runs")
    parser.add_argument("--table", action="store_true", help="print Markdown and nothing else")
    return parser.parse_args(arguments)


def prepare_environment() -> None:
    """One thread for every library; OpenBLAS chooses its kernels for this processor itself."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


Side = Callable[[], Any]


def sides(case: Case, dtypes: list[str]) -> Iterator[tuple[str, Side, Callable[[Any], Any]]]:
    """Yield each side's name, its call, and what makes a float64 array of its result."""
    import numpy as np
    import torch

    from fastrnn.reservoir import Population, Reservoir
    from peers import reservoirpy_esn as peer

    members = case.count if case.kind == "population" else 1
    reservoirs = [
        Reservoir(
            INPUTS,
            case.N,
            density=case.density,
            topology=case.topology,
            input_scaling=0.5,
            seed=seed,
            dtype=torch.float64,
        )
        for seed in range(members)
    ]
    nodes = [peer.reservoir(res) for res in reservoirs]
    batch = case.count if case.kind == "batch" else 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(case.T, batch, INPUTS, dtype=torch.float64, generator=generator)
    x = torch.sin(noise.cumsum(0) * 0.1)
    y = x.roll(-1, 0)
    series = [x[:, b].contiguous().numpy() for b in range(batch)]
    weight = torch.randn(OUTPUTS, case.N, dtype=torch.float64, generator=generator) / case.N
    state = np.zeros(case.N)

    def theirs() -> Any:
        if case.kind == "fit":
            return peer.fit_predict(nodes[0], series[0], y[:, 0].numpy(), ALPHA, WASHOUT)
        if case.kind == "population":
            return np.stack([peer.run(node, series[0]) for node in nodes])
        if case.kind == "forecast":
            readout = peer.Ridge(Wout=weight.T.numpy(), bias=np.zeros(OUTPUTS))
            readout.initialize(np.zeros((1, case.N)), np.zeros((1, OUTPUTS)))
            nodes[0].initialize(series[0])
            return peer.forecast(nodes[0], readout, state, case.T)
        if case.kind == "batch":
            return np.stack(peer.run_series(nodes[0], series), 1)
        return peer.run(nodes[0], series[0])

    yield peer.PACKAGE, theirs, lambda result: np.asarray(result)
    for name in dtypes:
        dtype = getattr(torch, name)
        own = [res if res.dtype == dtype else _converted(res, dtype) for res in reservoirs]
        module = Population(own) if members > 1 else own[0]
        yield name, _ours(case, module, x.to(dtype), y.to(dtype), weight), _array(case)


def _converted(res: Any, dtype: Any) -> Any:
    import copy

    return copy.deepcopy(res).to(dtype)


def _ours(case: Case, module: Any, x: Any, y: Any, weight: Any) -> Side:
    import torch

    import fastrnn
    from fastrnn.reservoir._forecast import forecast

    if case.kind == "fit":
        inputs, targets = x[:, 0].contiguous(), y[:, 0].contiguous()

        def fit() -> Any:
            readout = fastrnn.Ridge(alpha=ALPHA, solver="cholesky")
            esn = fastrnn.ESN(INPUTS, OUTPUTS, reservoir=module, readout=readout)
            esn.fit(inputs, targets, washout=WASHOUT)
            return esn.predict(inputs)

        return fit
    if case.kind == "forecast":
        state = torch.zeros(1, case.N, dtype=x.dtype)
        return lambda: forecast(module, weight, None, state, case.T)[0]
    return lambda: module(x)[0]


def _array(case: Case) -> Callable[[Any], Any]:
    def convert(result: Any) -> Any:
        array = result.detach().double().numpy()
        if case.kind == "run":
            return array[:, 0]
        return array[:, :, 0] if case.kind == "population" else array

    return convert


def measure(case: Case, dtypes: list[str], samples: int, tick: Callable[[str], None]) -> Any:
    """Compare the results, then time the sides in turn; microseconds a step of one series."""
    import numpy as np

    built = list(sides(case, dtypes))
    tick(f"{case.name}: check")
    exact = built[0][2](built[0][1]())
    for name, call, array in built[1:]:
        found = array(call())
        difference = float(np.abs(found - exact).max() / np.abs(exact).max())
        # A ridge's solution may differ where its matrix is nearly singular; predictions agree.
        if not difference <= (0.01 if case.kind == "fit" else TOLERANCE[name]):
            raise SystemExit(f"{case.name}: {name} differs by {difference:.1e}; nothing is timed")
    times: dict[str, list[float]] = {name: [] for name, _, _ in built}
    for sample in range(samples):
        for name, call, _ in built:
            if sum(times[name]) * case.T * case.count / 1e6 > ENOUGH:
                continue
            tick(f"{case.name}: {name} {sample + 1}/{samples}")
            if sum(times[name]) * case.T * case.count / 1e6 < SHORT:
                call()  # large pages, above all, are found by the first calls
            calls, spent = 0, 0.0
            while calls == 0 or (spent < 0.05 and calls < 50):
                start = time.perf_counter()
                call()
                spent += time.perf_counter() - start
                calls += 1
            times[name].append(spent / calls / (case.T * case.count) * 1e6)
    return {"case": asdict(case), "us_a_step": times}


def run(options: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    import machine

    processors = machine.confine(1)
    disturbance = machine.Disturbance(processors)
    import torch

    torch.set_num_threads(1)
    outcome: dict[str, Any] = {"machine": machine.describe(processors), "results": []}
    outcome["machine"]["command"] = "python benchmarks/run.py --set esn"
    listed = [case for case in cases(options.only) if options.filter in case.name]
    with tqdm(listed, unit="case", disable=None) as progress:
        for case in progress:
            result = measure(case, options.dtypes, options.samples, progress.set_description)
            outcome["results"].append(result)
            outcome["time_of_others"] = disturbance.share()
            progress.write(row(result))
            if options.json:
                options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    return outcome


def ratios(result: dict[str, Any]) -> dict[str, float]:
    times = {name: median(values) for name, values in result["us_a_step"].items()}
    theirs = times.pop("reservoirpy")
    return {name: theirs / ours for name, ours in times.items()}


def row(result: dict[str, Any]) -> str:
    times = {name: median(values) for name, values in result["us_a_step"].items()}
    found = ratios(result)
    line = f"{Case(**result['case']).name:<42} reservoirpy {times['reservoirpy']:>9.2f} us"
    return line + "".join(f"  {n} {times[n]:>8.3f} us {found[n]:>6.1f} x" for n in found)


def geometric_mean(values: list[float]) -> float:
    import math

    return math.exp(sum(map(math.log, values)) / len(values))


def summary(results: list[dict[str, Any]]) -> list[str]:
    lines = ["", "Geometric mean of reservoirpy's time / fastrnn's"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["case"]["kind"], result["case"]["topology"]), []).append(result)
    for (kind, topology), group in groups.items():
        for name in ratios(group[0]):
            values = [ratios(result)[name] for result in group]
            lines.append(
                f"  {kind:<10} {topology:<11} {name}: {geometric_mean(values):.1f}, least "
                f"{min(values):.1f}" + (f" (aim {BARS[kind]:g})" if kind in BARS else "")
            )
    return lines


ROWS = {
    ("run", "sparse"): "reservoir alone, N 100 to 5,000, 1% and 10%",
    ("run", "independent"): "the same, each unit drawn by itself, 10%",
    ("fit", "sparse"): "fit and predict, Cholesky, N 100 to 5,000, 1% and 10%",
    ("batch", "sparse"): f"{SERIES} series, N 100 to 1,000",
    ("population", "sparse"): f"{MEMBERS} reservoirs of N = 200, 10%",
    ("forecast", "sparse"): "closed loop, N = 300, 10%",
}


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return geometric means, and the least ratio where there are several, as Markdown."""
    lines = ["| reservoirpy's time / fastrnn's | float32 | float64 |", "|---|---|---|"]
    for (kind, topology), title in ROWS.items():
        group = [
            ratios(r)
            for r in results
            if (r["case"]["kind"], r["case"]["topology"]) == (kind, topology)
        ]
        cells = []
        for name in TOLERANCE:
            values = [found[name] for found in group if name in found]
            least = f" (least {min(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{geometric_mean(values):.1f}{least}" if values else "")
        if group:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def plot(outcome: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    results = outcome["results"]
    figure = Figure(figsize=(9, 1.5 + 0.27 * len(results)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(ratios(results[0])):
        offsets = [index + 0.4 * place - 0.2 for index in range(len(results))]
        axes.barh(offsets, [ratios(r)[name] for r in results], height=0.38, label=f"fastrnn {name}")
    axes.set_yticks(range(len(results)), [Case(**r["case"]).name for r in results], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="reservoirpy's time / fastrnn's (right of 1: fastrnn is faster)")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, which="both", axis="x")
    axes.legend(fontsize=8, loc="lower right")
    cpu, isa = outcome["machine"]["cpu"], outcome["machine"]["isa"]
    axes.set_title(f"Echo state networks, 1 thread; {cpu}; {isa}", fontsize=9)
    figure.savefig(path, dpi=120)


def load(paths: list[Path]) -> dict[str, Any]:
    parts = [json.loads(path.read_text()) for path in paths]
    merged: dict[str, Any] = parts[0]
    if len(parts) > 1:
        merged["machine"]["command"] += f", in {len(parts)} parts"
    merged["results"] = [result for part in parts for result in part["results"]]
    merged["time_of_others"] = max(part["time_of_others"] or 0 for part in parts)
    return merged


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    prepare_environment()
    outcome = load(options.load) if options.load else run(options)
    if options.table:
        print("\n".join(table(outcome["results"])))
        return
    if options.load:
        print("\n".join(map(row, outcome["results"])))
    print("\n".join(summary(outcome["results"])))
    print(f"Time of others: {outcome['time_of_others'] or 0:.0%}")
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    if options.png:
        plot(outcome, options.png)


if __name__ == "__main__":
    main()
