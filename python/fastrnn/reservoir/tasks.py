"""Reference tasks of reservoir computing: one function a task, one number (or more) a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import datasets
from .esn import ESN
from .nvar import NVAR
from .reservoir import Reservoir
from .ridge import Ridge

DOUBLE = torch.float64
LYAPUNOV = {"lorenz": 0.9056, "kuramoto_sivashinsky": 0.05}
"""Largest Lyapunov exponents."""


def nrmse(predicted: Tensor, true: Tensor, variance: float | None = None) -> float:
    """Return sqrt(mean square error / variance of the truth)."""
    spread = float(true.var(correction=0)) if variance is None else variance
    return math.sqrt(float((predicted - true).square().mean()) / spread)


def valid_steps(predicted: Tensor, true: Tensor, threshold: float) -> int:
    """Return the steps before the normalised error first exceeds a threshold.

    The error of a step is sqrt(mean over features of (error / standard deviation)^2).
    """
    scaled = (predicted - true) / true.std(0)
    error = scaled.square().mean(-1).sqrt()
    bad = torch.nonzero(~(error <= threshold))
    return int(bad[0, 0]) if len(bad) else true.shape[0]


def mackey_glass_84(
    seed: int = 0,
    *,
    variant: str = "A",
    tau: int = 17,
    hidden_size: int | None = None,
    train: int = 3000,
    trials: int = 50,
    readout: Ridge | None = None,
    **options: Any,
) -> float:
    """Return NRMSE_84: the error 84 steps after the warm-up, over trials, in original coordinates.

    Variant A is Jaeger's report (N = 400, leaky), B Jaeger and Haas's letter (N = 1000, output
    feedback). The series is squashed by tanh(y - 1), whose inverse gives the original coordinates;
    training forces the output back, and each trial forces 1000 steps of a new series, then runs
    free for 84.

    Args:
        seed: of the reservoir, the training series and the trials.
        variant: "A" or "B".
        tau: 17 or 30.
        hidden_size: N; default 400 or 1000.
        train: steps of training, of which the first 1000 are washed out.
        trials: test series.
        readout: default ``Ridge(0)``, plain least squares.
        options: further arguments of ``Reservoir``, before the variant's.

    Source: H. Jaeger, GMD report 148 (2001), section 6; H. Jaeger and H. Haas, Harnessing
    nonlinearity, Science 304 (2004).
    """
    N = hidden_size or {"A": 400, "B": 1000}[variant]
    series = datasets.mackey_glass(train + 1, tau, seed=1000 + seed)
    res = mackey_glass_reservoir(variant, N, seed, **options)
    esn = ESN(1, 1, reservoir=res, readout=readout or Ridge(0.0))
    esn.fit(series[:-1], series[1:], washout=min(1000, train // 2))
    long = datasets.mackey_glass(1084 * trials, tau, seed=5000 + seed)
    tests = long.reshape(trials, 1084).T.unsqueeze(-1).contiguous()
    free = esn.forecast(tests[:1000], 84)[-1, :, 0]

    def original(values: Tensor) -> Tensor:
        return torch.atanh(values.clamp(-1 + 1e-12, 1 - 1e-12)) + 1

    variance = float(original(long).var())
    return nrmse(original(free), original(tests[-1, :, 0]), variance)


def mackey_glass_reservoir(variant: str, N: int, seed: int, **options: Any) -> Reservoir:
    """Return the reservoir of a variant; what is fed back is its input, the bias its own."""
    generator = torch.Generator().manual_seed(77 + seed)
    if variant == "A":
        # x <- (1 - C a) x + C tanh(.) is a leak of C a with everything else divided by a.
        C, a = 0.44, 0.9
        settings: dict[str, Any] = {"spectral_radius": 0.79, "leak": C * a, "density": 0.0125}
        settings["topology"] = "independent"
        kind = torch.rand(N, generator=generator)
        bias = 0.2 * 0.14 * ((kind < 0.25).double() - (kind >= 0.75).double())
        settings |= {"bias": bias, "input_scaling": 0.56}
    else:
        settings = {"spectral_radius": 0.8, "leak": 1.0, "density": 0.01}
        settings["topology"] = "independent"
        settings |= {"bias": 0.2, "input_scaling": 1.0}
    return Reservoir(1, N, seed=seed, dtype=DOUBLE, **(settings | options))


def lorenz_valid_time(
    seed: int = 0,
    *,
    alpha: float = 8.5e-8,
    solver: str = "auto",
    hidden_size: int = 800,
    train: float = 100.0,
    trials: int = 20,
    **options: Any,
) -> float:
    """Return the mean valid prediction time of the Lorenz system, in Lyapunov times.

    dt 0.01; the error is normalised as in ``valid_steps`` with a threshold of 0.3; each trial
    synchronises on 200 steps.

    Source: J. Platt, S. Penny, T. Smith, T.-C. Chen and H. Abarbanel, A systematic exploration of
    reservoir computing for forecasting complex spatiotemporal dynamics (2022), and its code.
    """
    steps, horizon, spin = round(train / 0.01), 3000, 200
    series = datasets.lorenz(steps + 1, seed=1000 + seed)
    settings: dict[str, Any] = {"spectral_radius": 0.8, "leak": 0.6, "density": 0.02}
    settings |= {"input_scaling": 0.084, "bias": torch.full((hidden_size,), 1.6, dtype=DOUBLE)}
    settings["topology"] = "independent"
    res = Reservoir(3, hidden_size, seed=seed, dtype=DOUBLE, **(settings | options))
    esn = ESN(3, 3, reservoir=res, readout=Ridge(alpha, solver), input_to_readout=True)
    esn.fit(series[:-1], series[1:], washout=spin)
    tests = datasets.lorenz((spin + horizon) * trials, seed=5000 + seed)
    tests = tests.reshape(trials, spin + horizon, 3).transpose(0, 1).contiguous()
    free = esn.forecast(tests[:spin], horizon)
    valid = [valid_steps(free[:, b], tests[spin:, b], 0.3) for b in range(trials)]
    return sum(valid) / trials * 0.01 * LYAPUNOV["lorenz"]


def narma10(
    seed: int = 0,
    *,
    hidden_size: int = 100,
    alpha: float | str = 1e-9,
    train: int = 2000,
    test: int = 3000,
    **options: Any,
) -> float:
    """Return the normalised mean square error of NARMA-10: washout 200, then train, then test."""
    u, y = datasets.narma10(200 + train + test, seed=1000 + seed)
    settings: dict[str, Any] = {"spectral_radius": 0.95, "leak": 1.0, "density": 0.1}
    settings |= {"input_scaling": 0.1, "bias": 0.5}
    res = Reservoir(1, hidden_size, seed=seed, dtype=DOUBLE, **(settings | options))
    esn = ESN(1, 1, reservoir=res, readout=Ridge(alpha), input_to_readout=True)
    cut = 200 + train
    esn.fit(u[:cut], y[:cut], washout=200)
    return nrmse(esn.predict(u)[cut:], y[cut:]) ** 2


def ngrc_lorenz(seed: int = 0, *, points: int = 400, alpha: float = 2.5e-6) -> tuple[float, float]:
    """Return the training and test error of a next-generation reservoir on Lorenz.

    dt 0.025, 400 points, k = 2, linear and quadratic features, predicting increments; the test runs
    free for 1.104 time units (one Lyapunov time). Errors are over the total variance.

    Source: D. Gauthier, E. Bollt, A. Griffith and W. Barbosa (2021), and their code.
    """
    horizon = 44
    series = datasets.lorenz(points + 2 + horizon, 0.025, seed=seed, discard=2000, method="rk23")
    esn = ESN(
        3,
        3,
        reservoir=NVAR(3, 2, dtype=DOUBLE),
        readout=Ridge(alpha),
        increments=True,
    )
    x, y = series[: points + 1], series[1 : points + 2]
    esn.fit(x, y, washout=1)
    spread = float(series.var(0, correction=0).sum())
    train = math.sqrt(float((esn.predict(x)[1:] - y[1:]).square().mean()) / spread)
    free = esn.forecast(series[: points + 2], horizon)
    return train, math.sqrt(float((free - series[points + 2 :]).square().mean()) / spread)


def ngrc_infer_z(seed: int = 0, *, points: int = 400, alpha: float = 0.05) -> float:
    """Return the error of inferring z of Lorenz from x and y: dt 0.05, k = 4, skip 5."""
    washout = 15
    steps = points + 2 * washout + 400
    series = datasets.lorenz(steps, 0.05, seed=seed, discard=2000, method="rk23")
    esn = ESN(2, 1, reservoir=NVAR(2, 4, skip=5, dtype=DOUBLE), readout=Ridge(alpha))
    cut = washout + points
    esn.fit(series[:cut, :2], series[:cut, 2:], washout=washout)
    test = esn.predict(series[cut:, :2])[washout:]
    spread = float(series[:, 2].var(correction=0))
    return math.sqrt(float((test - series[cut + washout :, 2:]).square().mean()) / spread)


def memory_capacity(
    seed: int = 0,
    *,
    hidden_size: int = 50,
    delays: int | None = None,
    train: int = 6000,
    reservoir: Any = None,
) -> float:
    """Return the sum over delays k of the squared correlation of the output with u_{t-k}.

    The default reservoir is the linear simple cycle with spectral radius 0.9, whose capacity is
    N - (1 - r^(2N)).

    Args:
        seed: of the input, uniform in +-0.5, and of the input weights' signs.
        hidden_size: N.
        delays: 1 to this; default 2 N.
        train: steps fitted and as many tested.
        reservoir: another one, with one input.

    Source: H. Jaeger, Short term memory in echo state networks, GMD report 152 (2001); A. Rodan and
    P. Tino, Minimum complexity echo state network (2011).
    """
    K = delays or 2 * hidden_size
    if reservoir is None:
        reservoir = Reservoir(
            1,
            hidden_size,
            topology="cycle",
            activation="identity",
            spectral_radius=0.9,
            leak=1.0,
            bias=0.0,
            seed=seed,
            dtype=DOUBLE,
        )
        reservoir.weight_ih.copy_(0.5 * _signs(hidden_size, seed).unsqueeze(1))
    washout = max(K, 200)
    generator = torch.Generator().manual_seed(1000 + seed)
    u = torch.rand(washout + 2 * train, 1, dtype=DOUBLE, generator=generator) - 0.5
    y = torch.cat([torch.roll(u, k, 0) for k in range(1, K + 1)], 1)
    esn = ESN(1, K, reservoir=reservoir, readout=Ridge(0.0))
    cut = washout + train
    esn.fit(u[:cut], y[:cut], washout=washout)
    out, true = esn.predict(u)[cut:], y[cut:]
    out, true = out - out.mean(0), true - true.mean(0)
    norm = out.square().sum(0) * true.square().sum(0)
    return float(((out * true).sum(0).square() / norm.clamp_min(1e-300)).sum())


def _signs(size: int, seed: int) -> Tensor:
    """Return random signs without a missing frequency, whose direction of states would be lost."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        signs = torch.randint(0, 2, (size,), generator=generator).to(DOUBLE) * 2 - 1
        if float(torch.fft.rfft(signs).abs().min()) > 0.5:
            return signs


def kuramoto_sivashinsky_valid_time(
    seed: int = 0,
    *,
    hidden_size: int = 2000,
    train: int = 30_000,
    trials: int = 10,
    alpha: float = 1e-4,
    threshold: float = 0.5,
    **options: Any,
) -> float:
    """Return the mean valid prediction time of one reservoir on L = 22, in Lyapunov times.

    64 points, dt 0.25, largest exponent 0.05; each unit reads one point, every second state is
    squared, and the readout predicts increments; 100 steps synchronise each trial. The error is
    normalised as in ``valid_steps``, with a threshold of 0.5.

    Source: J. Pathak, B. Hunt, M. Girvan, Z. Lu and E. Ott, Model-free prediction of large
    spatiotemporally chaotic systems (2018), and its code.
    """
    spin, horizon = 100, 800
    steps = train + (spin + horizon) * trials
    series = datasets.kuramoto_sivashinsky(steps + 1, seed=1000 + seed)
    settings: dict[str, Any] = {"spectral_radius": 0.6, "leak": 1.0, "bias": 0.0}
    settings |= {"density": 3 / hidden_size, "input_scaling": 0.2, "topology": "independent"}
    res = Reservoir(64, hidden_size, seed=seed, dtype=DOUBLE, **(settings | options))
    if "input_density" not in settings | options:
        one = torch.arange(hidden_size) % 64  # as in Pathak's code, a unit reads one point
        keep = torch.nn.functional.one_hot(one, 64).to(DOUBLE)
        res.weight_ih.mul_(keep)
    esn = ESN(
        64,
        64,
        reservoir=res,
        readout=Ridge(alpha),
        square=True,
        increments=True,
        input_to_readout=True,
    )
    esn.fit(series[:train], series[1 : train + 1], washout=spin)
    tests = series[train:-1].reshape(trials, spin + horizon, 64).transpose(0, 1).contiguous()
    free = esn.forecast(tests[:spin], horizon)
    valid = [valid_steps(free[:, b], tests[spin:, b], threshold) for b in range(trials)]
    return sum(valid) / trials * 0.25 * LYAPUNOV["kuramoto_sivashinsky"]


def japanese_vowels_errors(
    seed: int = 0,
    *,
    hidden_size: int = 500,
    readout: Any = None,
    pooling: str = "mean",
    **options: Any,
) -> int:
    """Return how many of 370 test utterances one fitted network takes for another speaker's."""
    data = datasets.japanese_vowels()
    settings: dict[str, Any] = {"spectral_radius": 0.9, "leak": 0.3, "density": 0.1}
    settings |= {"input_scaling": 0.5, "bias": 0.5}
    res = Reservoir(12, hidden_size, seed=seed, dtype=DOUBLE, **(settings | options))
    esn = ESN(12, 9, reservoir=res, readout=readout or Ridge("gcv"), pooling=pooling)
    esn.fit(data["x_train"], data["y_train"])
    scores = torch.stack(esn.predict(data["x_test"]))
    return int((scores.argmax(1) != torch.stack(data["y_test"])).sum())


Task = Callable[..., Any]
