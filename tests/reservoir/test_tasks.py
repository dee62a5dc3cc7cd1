"""Generators against their equations, and tasks, made small, against what they must reach."""

from __future__ import annotations

import importlib.util
import math
import statistics

import pytest
import torch

from fastrnn.reservoir import NVAR, Ridge, datasets, tasks


@pytest.mark.parametrize("tau", [17, 30])
def test_mackey_glass_follows_its_equation(tau: int) -> None:
    plain = datasets.mackey_glass(3000, tau, squashed=False)[:, 0]
    squashed = datasets.mackey_glass(3000, tau)[:, 0]
    torch.testing.assert_close(torch.tanh(plain - 1), squashed)
    late, now = plain[:-tau], plain[tau:]
    slope = 0.2 * late / (1 + late**10) - 0.1 * now
    central = (now[2:] - now[:-2]) / 2
    assert float((central - slope[1:-1]).abs().mean()) < 0.1 * float(slope.abs().mean())
    assert float(plain.var()) == pytest.approx({17: 0.051, 30: 0.077}[tau], rel=0.15)


def test_mackey_glass_is_euler_by_the_letter() -> None:
    import numpy as np

    y = list(np.random.default_rng(5).uniform(-0.1, 0.1, 170) + 1.2)
    for _ in range(1000):
        y.append(y[-1] + 0.1 * (0.2 * y[-170] / (1 + y[-170] ** 10) - 0.1 * y[-1]))
    found = datasets.mackey_glass(100, seed=5, discard=0, squashed=False)[:, 0]
    torch.testing.assert_close(found, torch.tensor(y[170:][9::10]), rtol=1e-9, atol=1e-9)


def test_lorenz_is_of_fourth_order_and_agrees_with_scipy() -> None:
    exact = datasets.lorenz(100, 0.01, discard=0, substeps=64)
    errors = [
        float((datasets.lorenz(100, 0.01, discard=0, substeps=n) - exact).abs().max())
        for n in (1, 2)
    ]
    assert 12 < errors[0] / errors[1] < 20
    pytest.importorskip("scipy", reason="rk23 needs SciPy")
    other = datasets.lorenz(100, 0.01, discard=0, method="rk23")
    assert float((other - exact).abs().max()) < 0.3


def test_narma10_by_the_letter() -> None:
    u, y = datasets.narma10(300, seed=3)
    for t in range(12, 299):
        past = y[t - 10 : t, 0]
        expected = 0.3 * y[t - 1] + 0.05 * y[t - 1] * past.sum() + 1.5 * u[t - 9] * u[t] + 0.1
        torch.testing.assert_close(y[t], expected)
    assert 0 <= float(u.min()) < float(u.max()) <= 0.5


def test_kuramoto_sivashinsky_follows_its_equation() -> None:
    u = datasets.kuramoto_sivashinsky(50, dt=0.01)
    k = 2 * math.pi / 22 * torch.arange(33)
    spectrum = torch.fft.rfft(u)
    rate = (k**2 - k**4) * spectrum - 0.5j * k * torch.fft.rfft(u**2)
    expected = torch.fft.irfft(rate, 64)[1:-1]
    central = (u[2:] - u[:-2]) / 0.02
    assert float((central - expected).abs().max()) < 1e-2 * float(expected.abs().max())
    assert float(u.mean().abs()) < 1e-12


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (datasets.mackey_glass, (0,), "mackey_glass: steps must be at least 1"),
        (datasets.mackey_glass, (9, 0), "mackey_glass: tau must be at least 1"),
        (datasets.narma10, (0,), "narma10: steps must be"),
        (datasets.kuramoto_sivashinsky, (9, 4), "kuramoto_sivashinsky: points must be"),
    ],
)
def test_bad_arguments(function: object, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)
    with pytest.raises(ValueError, match="method must be"):
        datasets.lorenz(9, method="euler")


def test_mackey_glass_error() -> None:
    assert tasks.mackey_glass_84(1, hidden_size=200, trials=10) < 0.02
    assert tasks.mackey_glass_84(1, variant="B", hidden_size=300, trials=10) < 0.02


def test_lorenz_needs_an_orthogonal_solver_for_its_last_digits() -> None:
    small = {"hidden_size": 400, "train": 40.0, "trials": 5, "density": 0.05}
    rough = tasks.lorenz_valid_time(0, **small)
    fine = tasks.lorenz_valid_time(0, alpha=1e-13, **small)
    assert rough > 6
    assert fine > rough + 1


def test_narma10_error() -> None:
    assert tasks.narma10(0) < 0.065
    assert tasks.narma10(0) < 0.6 * tasks.narma10(0, activation="identity")


def test_next_generation_reservoirs() -> None:
    pytest.importorskip("scipy", reason="the data is made by SciPy")
    assert tasks.ngrc_lorenz(0)[0] <= 1.1e-4
    # The attractor is chaotic: after its transient a seed's series is another one on every machine
    # whose libm rounds otherwise, so a single one says little.
    assert statistics.median(tasks.ngrc_infer_z(seed) for seed in range(5)) <= 1.8e-2


def test_memory_capacity() -> None:
    assert 48.9 <= tasks.memory_capacity(0) <= 50
    assert tasks.memory_capacity(0, reservoir=NVAR(1, 11, order=1, dtype=torch.float64)) == (
        pytest.approx(10, abs=0.2)
    )


def test_japanese_vowels() -> None:
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("the utterances are in the aeon package (pip install --no-deps aeon)")
    data = datasets.japanese_vowels()
    assert [len(data[name]) for name in ("x_train", "y_train", "x_test", "y_test")] == [
        270,
        270,
        370,
        370,
    ]
    assert {len(x) for x in data["x_train"]} <= set(range(7, 30))
    assert tasks.japanese_vowels_errors(0, hidden_size=200, readout=Ridge("gcv")) <= 15


def test_japanese_vowels_that_are_not_there(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match="root must hold JapaneseVowels_TRAIN"):
        datasets.japanese_vowels(tmp_path)


def test_valid_steps() -> None:
    true = torch.randn(50, 2, dtype=torch.float64)
    predicted = true.clone()
    predicted[20:] += 10
    assert tasks.valid_steps(predicted, true, 0.3) == 20
    assert tasks.valid_steps(true, true, 0.3) == 50
    assert tasks.valid_steps(predicted * float("nan"), true, 0.3) == 0
