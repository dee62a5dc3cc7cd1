"""Forecast the Lorenz attractor with an echo state network, in one call.

A reservoir of 800 units sees 100 time units of the trajectory and is fitted to predict the next
point. After a short warm-up it runs on its own output. The attractor's largest Lyapunov exponent is
0.91: an error grows tenfold in 2.5 time units, and how long a forecast holds says how small the
first error was. The same network is fitted with three penalties: the smaller ones are out of reach
of the Gram matrix, and the readout goes over to an orthogonal solver by itself.

    python examples/esn_lorenz.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import fastrnn
from fastrnn.reservoir import datasets

STEP, EXPONENT = 0.01, 0.9056
SPIN_UP, THRESHOLD = 200, 0.3
ALPHAS = (8.5e-8, 1e-11, 1e-14)


def network(units: int, alpha: float, seed: int) -> fastrnn.ESN:
    reservoir = fastrnn.Reservoir(
        3,
        units,
        spectral_radius=0.8,
        leak=0.6,
        density=0.02,
        topology="independent",
        input_scaling=0.084,
        bias=torch.full((units,), 1.6, dtype=torch.float64),
        seed=seed,
        dtype=torch.float64,
    )
    return fastrnn.ESN(
        3, 3, reservoir=reservoir, readout=fastrnn.Ridge(alpha), input_to_readout=True
    )


def errors(forecast: Tensor, truth: Tensor) -> Tensor:
    """Return the error of each step over the attractor's standard deviation."""
    return ((forecast - truth) / truth.std(0)).square().mean(-1).sqrt()


def draw(truth: Tensor, forecasts: dict[float, Tensor], path: Path) -> None:
    times = torch.arange(len(truth)) * STEP * EXPONENT
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(3, 2)
    best = forecasts[min(forecasts)]
    for place, (name, values, color) in enumerate(
        (("truth", truth, "tab:gray"), ("forecast", best, "tab:blue"))
    ):
        axes = figure.add_subplot(grid[0, place], projection="3d")
        axes.plot(*values.T.numpy(), linewidth=0.5, color=color)
        axes.set_title(f"{name}, {len(values) * STEP:.0f} time units")
    axes = figure.add_subplot(grid[1, :])
    axes.plot(times, truth[:, 0], color="tab:gray", label="truth")
    axes.plot(times, best[:, 0], "--", color="tab:blue", label=f"forecast, alpha={min(forecasts)}")
    axes.set(ylabel="x", xlim=(0, float(times[-1])))
    axes.legend(loc="upper right")
    axes = figure.add_subplot(grid[2, :])
    for alpha, forecast in forecasts.items():
        axes.semilogy(times, errors(forecast, truth), linewidth=1, label=f"alpha={alpha}")
    axes.axhline(THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="Lyapunov times", ylabel="error / standard deviation", xlim=(0, times[-1]))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 units, 30 time units")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("esn_lorenz.png"), metavar="PNG")
    options = parser.parse_args()

    units, train = (200, 3000) if options.quick else (800, 10_000)
    horizon = 2500
    series = datasets.lorenz(train + 1, STEP, seed=1000 + options.seed)
    test = datasets.lorenz(SPIN_UP + horizon, STEP, seed=2000 + options.seed)
    truth = test[SPIN_UP:]
    forecasts = {}
    for alpha in tqdm(ALPHAS, unit="fit"):
        esn = network(units, alpha, options.seed)
        esn.fit(series[:-1], series[1:], washout=SPIN_UP)
        forecasts[alpha] = esn.forecast(test[:SPIN_UP], horizon)
        report = esn.readout.report
        assert report is not None
        late = torch.nonzero(errors(forecasts[alpha], truth) > THRESHOLD)
        valid = int(late[0]) if len(late) else horizon
        tqdm.write(
            f"alpha {alpha:g}: {report.solver}, condition {report.condition:.1e}, valid for "
            f"{valid * STEP * EXPONENT:.1f} Lyapunov times"
        )
    draw(truth, forecasts, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
