"""The table, the summary and the picture of a run, all from what is in its JSON file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

OURS = "fastrnn"
MARKERS = "osD^vPX*"
MODE_MARKERS = {"inference": "o", "training": "x", "streaming": "^"}
CELL_COLORS = {"elman": "tab:green", "lstm": "tab:blue", "gru": "tab:orange"}
Result = dict[str, Any]


def ratios(result: Result) -> dict[str, float]:
    """Time of each other side over fastrnn's: above 1 fastrnn is faster."""
    sides = result["sides"]
    ours = sides[OURS]["median"]
    # Files of earlier runs have no ratio of their own.
    return {
        name: side.get("ratio", side["median"] / ours)
        for name, side in sides.items()
        if name != OURS
    }


def header(peers: list[str], memory: bool) -> str:
    columns = f"{'cell':<6} {'mode':<9} {'T,B,I,H':>16} {'ms':>10} {'IQR':>5} {'GFLOP/s':>8}"
    columns += f" {'peak':>5} {'read':>5}"
    columns += "".join(f" {name:>16}" for name in peers)
    return columns + (f" {'memory MB':>10}" if memory else "")


def row(result: Result, peers: list[str], memory: bool) -> str:
    """Return a case's line; a peer's cell is its ratio, with an exclamation mark for a loss."""
    case, ours = result["case"], result["sides"][OURS]
    first, third = ours["quartiles"]
    spread = (third - first) / ours["median"]
    shape = ",".join(str(case[key]) for key in "TBIH")
    peak, read = (
        "-" if ours[key] is None else f"{ours[key]:.0%}" for key in ("of_peak", "of_bandwidth")
    )
    line = f"{case['cell']:<6} {case['mode']:<9} {shape:>16} {ours['median'] * 1e3:>10.3f}"
    line += f" {spread:>5.0%} {ours['gflops']:>8.1f} {peak:>5} {read:>5}"
    for name in peers:
        ratio = ratios(result).get(name)
        line += f" {'-' if ratio is None else f'{ratio:.2f}' + '! '[ratio >= 1]:>16}"
    if memory:
        line += f" {_megabytes(ours.get('memory')):>10}"
        line += "".join(
            f" {name} {_megabytes(result['sides'][name].get('memory'))}"
            for name in peers
            if name in result["sides"]
        )
    return line


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.1f}"


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(results: list[Result]) -> list[str]:
    """Return geometric means by mode, cell and peer, and the losses."""
    lines = ["", "Geometric mean of time / fastrnn's time (above 1: fastrnn is faster)"]
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        found = ratios(result)
        libraries = {name: value for name, value in found.items() if not name.startswith(OURS)}
        if libraries:
            found["fastest peer"] = min(libraries.values())
        case = result["case"]
        for cell in (case["cell"], "all cells"):
            group = groups.setdefault((case["mode"], cell), {})
            for name, value in found.items():
                group.setdefault(name, []).append(value)
    for (mode, cell), by_peer in sorted(groups.items()):
        means = (
            f"{name} {geometric_mean(values):.2f} (least {min(values):.2f}, {len(values)} shapes)"
            for name, values in by_peer.items()
        )
        lines.append(f"  {mode:<9} {cell:<9} " + ", ".join(means))
    losses = [
        f"  {row['case']['cell']} {row['case']['mode']} "
        f"{','.join(str(row['case'][key]) for key in 'TBIH')}: {ratio:.2f} against {name}"
        for row in results
        for name, ratio in ratios(row).items()
        if ratio < 1
    ]
    return [*lines, f"Losses: {len(losses)}", *losses]


def bound(result: Result) -> float | None:
    """Return the least time of a case's products on one thread, in seconds; None if not known.

    All of them at the FMA peak, but those of the recurrent steps no faster than W_hh (in streaming
    W_ih too) can be read at each step, forwards and, in training, backwards. Gate maths and the
    latency of a step count as nothing, so the bound is a loose one where H is small.
    """
    case, peak, bandwidth = result["case"], result["fma_peak"], result["read_bandwidth"]
    if peak is None or bandwidth is None:
        return None
    training, streaming = case["mode"] == "training", case["mode"] == "streaming"
    inputs = 0.0 if streaming else case["I"] / (case["I"] + case["H"])
    recurrent = (1 - inputs) * (2 / 3 if training else 1)  # parts of all products
    # W_ih is read once in a pass.
    once = 0 if streaming else result["reread_bytes"] * case["I"] / case["H"]
    reads = (result["bytes"] - once * (2 if training else 1)) / (bandwidth * 1e9)
    at_peak = result["flops"] / (peak * 1e9)
    return float(max(recurrent * at_peak, reads) + (1 - recurrent) * at_peak)


def bounds(run: dict[str, Any]) -> list[str]:
    """Return geometric means of each side's time over the bound, by mode and cell.

    Of a run on one thread: several may each read a part of W_hh, from a cache that is nearer.
    """
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in run["results"] if run["threads"] == 1 else []:
        least = bound(result)
        if least is None:
            continue
        times = {name: side["median"] for name, side in result["sides"].items()}
        libraries = [time for name, time in times.items() if not name.startswith(OURS)]
        if libraries:
            times["fastest peer"] = min(libraries)
        case = result["case"]
        for cell in (case["cell"], "all cells"):
            group = groups.setdefault((case["mode"], cell), {})
            for name, time in times.items():
                group.setdefault(name, []).append(time / least)
    lines = ["", "Geometric mean of time / the bound's (products alone, at the machine's ceilings)"]
    for (mode, cell), by_side in sorted(groups.items()):
        means = (f"{name} {geometric_mean(values):.2f}" for name, values in by_side.items())
        lines.append(f"  {mode:<9} {cell:<9} " + ", ".join(means))
    return lines if groups else []


def plot(run: dict[str, Any], path: Path) -> None:
    """Draw the ratio by shape, and GFLOP/s over arithmetic intensity under the two ceilings."""
    modes = sorted({result["case"]["mode"] for result in run["results"]})
    tallest = max(sum(r["case"]["mode"] == mode for r in run["results"]) for mode in modes)
    height = max(5.0, 1.5 + 0.2 * tallest)
    figure = Figure(figsize=(7 * (len(modes) + 1), height), layout="constrained")
    *ratio_axes, roofline = figure.subplots(1, len(modes) + 1)
    for axes, mode in zip(ratio_axes, modes, strict=True):
        _plot_ratios(axes, [r for r in run["results"] if r["case"]["mode"] == mode], mode)
    _plot_roofline(roofline, run)
    machine = run["machine"]
    figure.suptitle(
        f"{machine['cpu']}; {machine['isa']}; {run['threads']} thread(s), {run['dtype']}"
    )
    figure.savefig(path, dpi=120)


def _plot_ratios(axes: Axes, results: list[Result], mode: str) -> None:
    names = list(dict.fromkeys(name for result in results for name in ratios(result)))
    for marker, name in zip(MARKERS, names, strict=False):
        points = [
            (ratios(result)[name], place)
            for place, result in enumerate(results)
            if name in ratios(result)
        ]
        axes.plot(*zip(*points, strict=True), marker, label=name, markersize=5, alpha=0.8)
    labels = [f"{r['case']['cell']} {','.join(str(r['case'][k]) for k in 'TBIH')}" for r in results]
    axes.set_yticks(range(len(results)), labels, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="time / fastrnn's time (right of 1: fastrnn is faster)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{mode}: cell T,B,I,H")
    axes.grid(alpha=0.3, which="both", axis="x")
    axes.invert_yaxis()
    axes.legend(loc="best", fontsize=8)


def _plot_roofline(axes: Axes, run: dict[str, Any]) -> None:
    for result in run["results"]:
        case, ours = result["case"], result["sides"][OURS]
        axes.plot(
            result["flops"] / result["bytes"],
            ours["gflops"],
            MODE_MARKERS[case["mode"]],
            color=CELL_COLORS[case["cell"]],
            label=f"{case['cell']} {case['mode']}",
        )
    intensities = [result["flops"] / result["bytes"] for result in run["results"]]
    left, right = min(0.3, *intensities) / 1.5, max(100.0, *intensities) * 1.5
    threads, peak = run["threads"], run["fma_peak"]
    if peak is not None:
        top = peak * threads
        axes.plot([left, right], [top, top], color="black", linewidth=1)
        axes.text(right, top * 1.05, f"FMA peak {top:.0f} GFLOP/s", ha="right", fontsize=8)
        for size, bandwidth in run["read_bandwidth"].items():
            if bandwidth is None:
                continue
            speed = bandwidth * threads
            axes.plot([left, top / speed], [left * speed, top], ":", color="gray", linewidth=1)
            text = f" {int(size) / 2**20:g} MiB: {speed:.0f} GB/s"
            axes.text(left, left * speed * 1.1, text, fontsize=8, color="gray")
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylabel="GFLOP/s")
    axes.set_xlabel("flops / least bytes of weights read")
    axes.set_title("fastrnn under the machine's ceilings")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=8, loc="lower right")
    axes.grid(alpha=0.3, which="both")
