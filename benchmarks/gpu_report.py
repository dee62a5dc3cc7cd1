"""The table, the summary and the picture of benchmarks/gpu.py, all from its JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from report import MARKERS, geometric_mean

OURS, CUDNN, PRODUCT = "fastrnn", "torch", "input product"
DTYPE_COLORS = {
    "float32": "tab:blue",
    "tf32": "tab:cyan",
    "bfloat16": "tab:orange",
    "float16": "tab:red",
}
Result = dict[str, Any]


def time_of(result: Result, name: str) -> float | None:
    """Return a side's median in seconds, None if it was not timed."""
    side = result["sides"].get(name)
    median: float | None = side and side["median"]
    return median


def ratios(result: Result) -> dict[str, float]:
    """Time of each other side over fastrnn's: above 1 fastrnn is faster."""
    mine = time_of(result, OURS)
    times = {name: time_of(result, name) for name in result["sides"]}
    return {
        name: theirs / mine
        for name, theirs in times.items()
        if mine and theirs and name not in (OURS, PRODUCT)
    }


def recurrence(result: Result, name: str) -> float | None:
    """Return a side's time less the input product's alone: a difference, not a measurement."""
    whole, product = time_of(result, name), time_of(result, PRODUCT)
    return None if whole is None or product is None else max(whole - product, 0.0)


def header(peers: list[str]) -> str:
    columns = f"{'cell':<6} {'pass':<9} {'T,B,I,H':>16} {'dtype':<8} {'ms':>9} {'without':>9}"
    return columns + "".join(f" {name:>9}" for name in peers) + "  MB (torch's)  kernel; cuDNN's"


def row(result: Result, peers: list[str]) -> str:
    """Return a case's line; a peer's cell is its ratio, with an exclamation mark for a loss."""
    case = result["case"]
    shape = ",".join(str(case[key]) for key in "TBIH")
    line = f"{case['cell']:<6} {case['mode']:<9} {shape:>16} {case['dtype']:<8}"
    line += f" {_ms(time_of(result, OURS)):>9} {_ms(recurrence(result, OURS)):>9}"
    for name in peers:
        ratio = ratios(result).get(name)
        line += f" {'-' if ratio is None else f'{ratio:.2f}' + '! '[ratio >= 1]:>9}"
    sides = result["sides"]
    memory = f"{_mb(sides[OURS]['memory'])} ({_mb(sides[CUDNN]['memory'])})"
    return f"{line}  {memory:>13}  {sides[OURS]['algorithm']}; {sides[CUDNN]['algorithm']}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f}"


def summary(results: list[Result]) -> list[str]:
    """Return geometric means by cuDNN's algorithm and dtype, and every loss."""
    timed = [result for result in results if ratios(result)]
    if not timed:
        return ["", "Nothing was timed."]
    lines = ["", "Geometric mean of time / fastrnn's time (above 1: fastrnn is faster)"]
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for result in timed:
        case = result["case"]
        for name, ratio in ratios(result).items():
            algorithm = result["sides"][name]["algorithm"]
            groups.setdefault((case["mode"], case["dtype"], name, algorithm), []).append(ratio)
    for (mode, dtype, name, algorithm), values in sorted(groups.items()):
        label = f"{name} ({algorithm})" if algorithm else name
        mean, least = geometric_mean(values), min(values)
        line = f"  {mode:<9} {dtype:<8} {label:<45} {mean:.2f}"
        lines.append(f"{line} (least {least:.2f}, {len(values)} shapes)")
    losses = [
        f"  {_label(result)}: {ratio:.2f} against {name} {result['sides'][name]['algorithm']}"
        for result in timed
        for name, ratio in ratios(result).items()
        if ratio < 1
    ]
    return [*lines, f"Losses: {len(losses)}", *losses]


def _label(result: Result) -> str:
    case = result["case"]
    shape = ",".join(str(case[key]) for key in "TBIH")
    return f"{case['cell']} {case['mode']} {shape} {case['dtype']}"


def plot(run: dict[str, Any], path: Path) -> None:
    """Draw, for each pass, the ratios by shape: a color is a dtype, a marker a library."""
    modes = sorted({result["case"]["mode"] for result in run["results"]})
    rows = {
        mode: sorted({_shape(r) for r in run["results"] if r["case"]["mode"] == mode}, key=_size)
        for mode in modes
    }
    height = max(4.0, 1.5 + 0.16 * max(map(len, rows.values())))
    figure = Figure(figsize=(8 * len(modes), height), layout="constrained")
    for axes, mode in zip(figure.subplots(1, len(modes), squeeze=False)[0], modes, strict=True):
        of_mode = [result for result in run["results"] if result["case"]["mode"] == mode]
        _plot_ratios(axes, of_mode, rows[mode])
        passes = "forward" if mode == "inference" else "forward and backward"
        axes.set_title(f"{passes}: cell T,B,I,H")
    timed = "" if any(map(ratios, run["results"])) else "; nothing was timed"
    figure.suptitle(f"{run['device']['name']}, torch {run['device']['torch']}{timed}")
    figure.savefig(path, dpi=110)


def _shape(result: Result) -> str:
    case = result["case"]
    return f"{case['cell']} {','.join(str(case[key]) for key in 'TBIH')}"


def _size(shape: str) -> tuple[str, list[int]]:
    cell, numbers = shape.split()
    return cell, [int(number) for number in reversed(numbers.split(","))]


def _plot_ratios(axes: Any, results: list[Result], shapes: list[str]) -> None:
    places = {shape: place for place, shape in enumerate(shapes)}
    names = list(dict.fromkeys(name for result in results for name in ratios(result)))
    markers = dict(zip(names, MARKERS, strict=False))
    for result in results:
        for name, ratio in ratios(result).items():
            dtype = result["case"]["dtype"]
            axes.plot(
                ratio,
                places[_shape(result)],
                markers[name],
                color=DTYPE_COLORS.get(dtype, "black"),
                label=f"{name}, {dtype}",
                markersize=4,
            )
    axes.set_yticks(range(len(shapes)), shapes, fontsize=6)
    axes.set_ylim(len(shapes) - 0.5, -0.5)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="time / fastrnn's time (right of 1: fastrnn is faster)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, which="both", axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend([handles[label] for label in sorted(handles)], sorted(handles), fontsize=7)
