"""Series that reservoirs are measured on, from exact generators, as float64 (T, features)."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def mackey_glass(
    steps: int, tau: int = 17, *, seed: int = 0, discard: int = 1000, squashed: bool = True
) -> Tensor:
    """Return the Mackey-Glass series.

    dy/dt = 0.2 y(t - tau) / (1 + y(t - tau)^10) - 0.1 y(t), by Euler steps of 0.1, of which
    every tenth is kept.

    Args:
        steps: T, >= 1.
        tau: the delay, >= 1; 17 (mildly chaotic) or 30 are usual. Default 17.
        seed: of the history, uniform in 1.2 +- 0.1.
        discard: samples left out at the start, >= 0. Default 1000.
        squashed: whether to return tanh(y - 1), as in Jaeger's report, instead of y.

    Returns:
        (T, 1).

    Raises:
        ValueError: for an argument out of range.

    Source: M. Mackey and L. Glass, Oscillation and chaos in physiological control systems (1977);
    as sampled in H. Jaeger, GMD report 148 (2001), section 6.
    """
    _at_least("mackey_glass", steps=(steps, 1), tau=(tau, 1), discard=(discard, 0))
    delay = tau * 10
    total = (discard + steps) * 10
    history = np.random.default_rng(seed).uniform(-0.1, 0.1, delay) + 1.2
    y = np.empty(delay + total)
    y[:delay] = history
    # The delayed values of a whole delay are known at once.
    for start in range(delay, delay + total, delay):
        count = min(delay, delay + total - start)
        late = y[start - delay : start - delay + count]
        drive = 0.1 * 0.2 * late / (1 + late**10)
        value = y[start - 1]
        for i in range(count):
            value = 0.99 * value + drive[i]
            y[start + i] = value
    kept = y[delay:][9::10][discard : discard + steps]
    return torch.from_numpy(np.tanh(kept - 1) if squashed else kept.copy()).unsqueeze(1)


def lorenz(
    steps: int,
    dt: float = 0.01,
    *,
    seed: int = 0,
    discard: int = 2000,
    method: str = "rk4",
    substeps: int = 1,
) -> Tensor:
    """Return the Lorenz system with sigma = 10, rho = 28, beta = 8/3.

    Args:
        steps: T, >= 1.
        dt: time between samples, > 0. Default 0.01.
        seed: of the start, (1, 1, 1) plus normal noise of 0.1.
        discard: samples left out at the start, >= 0.
        method: "rk4", or "rk23" for SciPy's adaptive pair of that name, as in the NG-RC code.
        substeps: Runge-Kutta steps for each sample, >= 1. Default 1.

    Returns:
        (T, 3).

    Raises:
        ValueError: for an argument out of range.

    Source: E. Lorenz, Deterministic nonperiodic flow (1963).
    """
    _at_least("lorenz", steps=(steps, 1), discard=(discard, 0), substeps=(substeps, 1))
    start = 1 + 0.1 * np.random.default_rng(seed).standard_normal(3)
    total = steps + discard

    def slope(_time: float, state: np.ndarray) -> np.ndarray:
        x, y, z = state
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    if method == "rk23":
        from scipy.integrate import solve_ivp

        times = np.arange(total) * dt
        solution = solve_ivp(slope, (0, times[-1] + dt), start, "RK23", times)
        return torch.from_numpy(solution.y.T[discard:].copy())
    if method != "rk4":
        raise ValueError(f"lorenz: method must be 'rk4' or 'rk23', got {method!r}")
    result = np.empty((total, 3))
    state = start
    for t in range(total):
        result[t] = state
        for _ in range(substeps):
            state = _lorenz_step(state, dt / substeps)
    return torch.from_numpy(result[discard:])


def _lorenz_step(state: np.ndarray, dt: float) -> np.ndarray:
    """Advance by one step of the classical Runge-Kutta method."""

    def slope(x: float, y: float, z: float) -> tuple[float, float, float]:
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    x, y, z = (float(value) for value in state)
    a = slope(x, y, z)
    b = slope(x + dt / 2 * a[0], y + dt / 2 * a[1], z + dt / 2 * a[2])
    c = slope(x + dt / 2 * b[0], y + dt / 2 * b[1], z + dt / 2 * b[2])
    d = slope(x + dt * c[0], y + dt * c[1], z + dt * c[2])
    moves = [dt / 6 * (p + 2 * q + 2 * r + s) for p, q, r, s in zip(a, b, c, d, strict=True)]
    return np.array([x + moves[0], y + moves[1], z + moves[2]])


def narma10(steps: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return input and target of the tenth-order nonlinear autoregressive moving average.

    y_{t+1} = 0.3 y_t + 0.05 y_t sum_{i=0}^{9} y_{t-i} + 1.5 u_{t-9} u_t + 0.1, u uniform in
    [0, 0.5]. Row t of the target is y_{t+1}. Series that diverge are drawn again.

    Args:
        steps: T, >= 1.
        seed: of u.

    Returns:
        u and y, (T, 1) each.

    Raises:
        ValueError: for an argument out of range.

    Source: A. Atiya and A. Parlos, New results on recurrent network training (2000).
    """
    _at_least("narma10", steps=(steps, 1))
    random = np.random.default_rng(seed)
    while True:
        u = random.uniform(0, 0.5, steps + 10)
        y = np.zeros(steps + 11)
        for t in range(9, steps + 10):
            y[t + 1] = (
                0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
            )
            if not y[t + 1] < 1.0:
                break
        else:
            pair = u[10:], y[11:]
            return torch.from_numpy(pair[0].copy()[:, None]), torch.from_numpy(
                pair[1].copy()[:, None]
            )


def kuramoto_sivashinsky(
    steps: int,
    points: int = 64,
    length: float = 22.0,
    dt: float = 0.25,
    *,
    seed: int = 0,
    discard: int = 4000,
) -> Tensor:
    """Return solutions of u_t = -u u_x - u_xx - u_xxxx on a ring.

    Exponential time differencing with a fourth-order Runge-Kutta step, its coefficients by contour
    integrals.

    Args:
        steps: T, >= 1.
        points: grid points, even, >= 8. Default 64.
        length: of the ring, > 0. Default 22, whose largest Lyapunov exponent is about 0.05.
        dt: time between samples, > 0. Default 0.25.
        seed: of the start.
        discard: samples left out at the start, >= 0.

    Returns:
        (T, points).

    Raises:
        ValueError: for an argument out of range.

    Source: A.-K. Kassam and L. Trefethen, Fourth-order time-stepping for stiff PDEs (2005).
    """
    _at_least("kuramoto_sivashinsky", steps=(steps, 1), points=(points, 8), discard=(discard, 0))
    k = 2 * math.pi / length * np.arange(points // 2 + 1)
    linear = k**2 - k**4
    full, half = np.exp(dt * linear), np.exp(dt * linear / 2)
    circle = np.exp(1j * math.pi * (np.arange(1, 33) - 0.5) / 32)
    z = dt * linear[:, None] + circle
    e = np.exp(z)
    q = dt * ((np.exp(z / 2) - 1) / z).mean(1).real
    f1 = dt * ((-4 - z + e * (4 - 3 * z + z**2)) / z**3).mean(1).real
    f2 = dt * ((2 + z + e * (z - 2)) / z**3).mean(1).real
    f3 = dt * ((-4 - 3 * z - z**2 + e * (4 - z)) / z**3).mean(1).real
    g = -0.5j * k
    g[-1] = 0  # the highest wave has no derivative on the grid

    def product(v: np.ndarray) -> np.ndarray:
        return g * np.fft.rfft(np.fft.irfft(v, points) ** 2)

    u = 0.6 * np.random.default_rng(seed).uniform(-1, 1, points)
    v = np.fft.rfft(u - u.mean())
    result = np.empty((steps, points))
    for t in range(-discard, steps):
        if t >= 0:
            result[t] = np.fft.irfft(v, points)
        nv = product(v)
        a = half * v + q * nv
        na = product(a)
        b = half * v + q * na
        nb = product(b)
        c = half * a + q * (2 * nb - nv)
        v = full * v + nv * f1 + 2 * (na + nb) * f2 + product(c) * f3
    return torch.from_numpy(result)


def japanese_vowels(root: str | Path | None = None) -> dict[str, list[Tensor]]:
    """Return the utterances of nine speakers: 270 to train on, 370 to test.

    Args:
        root: the folder with ``JapaneseVowels_TRAIN.ts`` and ``_TEST.ts``; default: where the
            ``aeon`` package has them, whose code is not run.

    Returns:
        "x_train" and "x_test", lists of (T_i, 12), 7 to 29 steps; "y_train" and "y_test", lists of
        class numbers 0 to 8 as tensors ().

    Raises:
        FileNotFoundError: if the files are not there.

    Source: M. Kudo, J. Toyama and M. Shimbo, Multidimensional curve classification using
    passing-through regions (1999); UCI machine learning repository.
    """
    if root is None:
        found = importlib.util.find_spec("aeon")
        places = [] if found is None else list(found.submodule_search_locations or [])
        root = Path(places[0], "datasets", "data", "JapaneseVowels") if places else Path("none")
    files = {part: Path(root, f"JapaneseVowels_{part.upper()}.ts") for part in ("train", "test")}
    if not all(path.is_file() for path in files.values()):
        raise FileNotFoundError(
            f"japanese_vowels: root must hold JapaneseVowels_TRAIN.ts and _TEST.ts, got {root}; "
            "`pip install --no-deps aeon` brings them"
        )
    data: dict[str, list[Tensor]] = {}
    for part, path in files.items():
        lines = path.read_text().split("@data", 1)[1].split()
        rows = [line.split(":") for line in lines]
        data[f"x_{part}"] = [
            torch.tensor([[float(v) for v in c.split(",")] for c in row[:-1]])
            .double()
            .T.contiguous()
            for row in rows
        ]
        data[f"y_{part}"] = [torch.tensor(int(row[-1]) - 1) for row in rows]
    return data


def _at_least(owner: str, **values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{owner}: {name} must be at least {least}, got {value}")
