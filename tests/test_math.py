"""tanh and sigmoid of the engine, seen through cells whose weights are zeros and ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fastrnn
import tolerances
from _support import DTYPES

WIDTH = 64  # numbers a row: whole vectors of every ISA


@pytest.fixture(params=DTYPES, ids=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(x) as the output of an Elman layer whose input weights are the identity."""
    layer = fastrnn.RNN(WIDTH, WIDTH, bias=False, dtype=x.dtype)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(WIDTH))
        layer.weight_hh_l0.zero_()
        return layer(x.view(1, -1, WIDTH))[0].view(-1)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Return sigmoid(x) as the cell state of an LSTM that forgets by x and starts from ones."""
    layer = fastrnn.LSTM(WIDTH, WIDTH, bias=False, dtype=x.dtype)
    rows = x.numel() // WIDTH
    with torch.no_grad():
        layer.weight_ih_l0.zero_()
        layer.weight_ih_l0[WIDTH : 2 * WIDTH] = torch.eye(WIDTH)
        layer.weight_hh_l0.zero_()
        zeros = torch.zeros(1, rows, WIDTH, dtype=x.dtype)
        _, (_, c) = layer(x.view(1, rows, WIDTH), (zeros, zeros + 1))
        return c.view(-1)


FUNCTIONS = ((tanh, torch.tanh), (sigmoid, torch.sigmoid))


def assert_close(found: torch.Tensor, x: torch.Tensor, exact: Callable[..., torch.Tensor]) -> None:
    """Compare number by number.

    Below the smallest normal number a few of the smallest subnormal ones are allowed; a sigmoid may
    be 0 there, as in torch's LSTM (a gate of 1e-38 is shut).
    """
    dtype = x.dtype
    truth = exact(x.double())
    allowed = tolerances.bound("transcendental", dtype, 0, 1) * truth.abs()
    normal = torch.finfo(dtype).smallest_normal
    tiny = normal if exact is torch.sigmoid else 4 * normal * torch.finfo(dtype).eps
    worst = ((found.double() - truth).abs() - allowed).argmax().item()
    off = (found[worst].double() - truth[worst]).abs()
    assert off <= allowed[worst] + tiny, (
        f"at {x[worst]:.9g}: {found[worst]:.9g} for {truth[worst]:.9g}"
    )


def numbers_like(dtype: torch.dtype, exponents: range, count: int) -> torch.Tensor:
    """Return both signs of ``count`` evenly spaced significands for each binary exponent."""
    significands = 1 + torch.arange(count, dtype=torch.float64) / count
    magnitudes = torch.cat([significands * 2.0**e for e in exponents]).to(dtype)
    return torch.cat([magnitudes, -magnitudes])


@pytest.mark.core
@pytest.mark.parametrize(("ours", "exact"), FUNCTIONS, ids=("tanh", "sigmoid"))
@pytest.mark.parametrize("exponent", [-13, -3, -1, 0, 1, 2, 3, 4])
def test_all_floats_of_an_exponent(
    ours: Callable[..., torch.Tensor], exact: Callable[..., torch.Tensor], exponent: int
) -> None:
    """2**17 significands of both signs, every 64th float32."""
    x = numbers_like(torch.float32, range(exponent, exponent + 1), 2**17)
    assert_close(ours(x), x, exact)


@pytest.mark.core
@pytest.mark.parametrize(("ours", "exact"), FUNCTIONS, ids=("tanh", "sigmoid"))
def test_every_exponent(
    ours: Callable[..., torch.Tensor], exact: Callable[..., torch.Tensor], dtype: torch.dtype
) -> None:
    """From the smallest subnormal number to the largest: relative accuracy near zero as well."""
    low = -149 if dtype == torch.float32 else -1074
    x = numbers_like(dtype, range(low, 10), 256)
    x = torch.cat([x, numbers_like(dtype, range(10, 128), 32)])
    found = ours(x)
    assert_close(found, x, exact)
    assert ((found.sign() == exact(x).sign()) | (found == 0)).all()
    assert (found.abs() <= 1).all()


@pytest.mark.core
@pytest.mark.parametrize(("ours", "exact"), FUNCTIONS, ids=("tanh", "sigmoid"))
def test_special_numbers(
    ours: Callable[..., torch.Tensor], exact: Callable[..., torch.Tensor], dtype: torch.dtype
) -> None:
    """Each special number sits alone in its row: the others are 0, and inf * 0 is NaN."""
    specials = [0.0, -0.0, 1e4, -1e4, 88.8, -88.8, 104.0, -104.0, 745.2, -745.2]
    x = torch.zeros(len(specials), WIDTH, dtype=dtype)
    x[:, 0] = torch.tensor(specials, dtype=dtype)
    x = x.view(-1)
    found = ours(x)
    assert_close(found, x, exact)
    assert torch.isfinite(found).all()
    nan = torch.full((WIDTH,), float("nan"), dtype=dtype)
    assert ours(nan).isnan().all()


@pytest.mark.core
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_infinite_bias(kind: str, value: float, dtype: torch.dtype) -> None:
    """An infinite pre-activation saturates its gate; NaN stays NaN; other units are untouched."""
    results = []
    for namespace in (fastrnn, torch.nn):
        torch.manual_seed(1)
        module = getattr(namespace, kind)(5, 19, dtype=dtype)
        with torch.no_grad():
            module.weight_hh_l0.zero_()  # or everything would be NaN at the second step
            module.bias_ih_l0[::7] = value
            results.append(module(torch.ones(3, 2, 5, dtype=dtype))[0])
    torch.testing.assert_close(results[0], results[1], equal_nan=True)
