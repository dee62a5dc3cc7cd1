"""Forecast the Mackey-Glass series, the classic test of echo state networks.

A reservoir reads the series, is fitted to predict the next value, and then runs on its own output.
The usual measure is the error 84 steps after it was let go, over the series' standard deviation
(NRMSE_84), here of 50 new series.

    python examples/esn_mackey_glass.py             # tau = 17; --tau 30 is harder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import fastrnn
from fastrnn.reservoir import datasets

WARM_UP, AHEAD = 1000, 84


def network(units: int, seed: int) -> fastrnn.ESN:
    reservoir = fastrnn.Reservoir(
        1,
        units,
        spectral_radius=0.8,
        leak=1.0,
        density=0.01,
        topology="independent",
        bias=0.2,
        seed=seed,
        dtype=torch.float64,
    )
    return fastrnn.ESN(1, 1, reservoir=reservoir, readout=fastrnn.Ridge(alpha=0.0))


def draw(
    truth: Tensor, forecast: Tensor, tests: Tensor, many: Tensor, tau: int, path: Path
) -> None:
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(3, 2)
    lag = tau
    for place, (name, values, color) in enumerate(
        (("truth", truth, "tab:gray"), ("forecast", forecast, "tab:blue"))
    ):
        axes = figure.add_subplot(grid[0, place])
        axes.plot(values[lag:], values[:-lag], linewidth=0.6, color=color)
        axes.set(title=f"{name}: attractor", xlabel="y(t)", ylabel=f"y(t - {lag})")
    axes = figure.add_subplot(grid[1, :])
    axes.plot(truth[:1000], color="tab:gray", label="truth")
    axes.plot(forecast[:1000], "--", color="tab:blue", label="forecast")
    axes.set(ylabel="tanh(y - 1)", xlim=(0, 1000))
    axes.legend(loc="upper right")
    axes = figure.add_subplot(grid[2, :])
    errors = (many - tests).abs()[..., 0] / tests.std()
    for row in errors.T:
        axes.semilogy(row.clamp_min(1e-9), color="tab:blue", linewidth=0.4, alpha=0.4)
    axes.semilogy(errors.square().mean(1).sqrt(), color="black", label="root mean square")
    axes.axvline(AHEAD, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps ahead", ylabel="error / standard deviation")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tau", type=int, default=17)
    parser.add_argument("--quick", action="store_true", help="300 units, 5 test series")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("esn_mackey_glass.png"), metavar="PNG")
    options = parser.parse_args()

    units, trials = (300, 5) if options.quick else (1000, 50)
    series = datasets.mackey_glass(3001, options.tau, seed=1000 + options.seed)
    esn = network(units, options.seed)
    esn.fit(series[:-1], series[1:], washout=WARM_UP)
    report = esn.readout.report
    assert report is not None
    print(f"fit: {report.solver}, condition {report.condition:.1e}, {report.rows} rows")

    steps = WARM_UP + 500
    tests = datasets.mackey_glass(steps * trials, options.tau, seed=5000 + options.seed)
    tests = tests.reshape(trials, steps, 1).transpose(0, 1).contiguous()
    many = esn.forecast(tests[:WARM_UP], 500)  # all series side by side

    def original(values: Tensor) -> Tensor:
        return torch.atanh(values.clamp(-1 + 1e-12, 1 - 1e-12)) + 1

    truth = tests[WARM_UP:]
    error = original(many[AHEAD - 1]) - original(truth[AHEAD - 1])
    score = float((error.square().mean() / original(tests).var()).sqrt())
    print(f"NRMSE_84 over {trials} series: {score:.1e}")

    long = datasets.mackey_glass(WARM_UP + 3000, options.tau, seed=9000 + options.seed)
    forecast = esn.forecast(long[:WARM_UP], 3000)
    draw(long[WARM_UP:, 0], forecast[:, 0], truth, many, options.tau, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
