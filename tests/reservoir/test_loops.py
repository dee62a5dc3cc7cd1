"""Closed loops of rings and of delayed products, against the modules stepped by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn.reservoir import ESN, NVAR, Ridge, RingReservoirs, _engine
from fastrnn.reservoir._closed_loop import step_by_step
from fastrnn.reservoir._forecast import forecast

EACH_DTYPE = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)
CHOICES = list(itertools.product((False, True), (False, True)))  # square, sees_input


@pytest.fixture(autouse=True, params=fastrnn.available_isas())
def isa(request: pytest.FixtureRequest) -> Any:
    """Run every test on every instruction set of the machine."""
    from fastrnn import _ops

    used = fastrnn.isa()
    _ops.set_isa(request.param)
    yield request.param
    _ops.set_isa(used)


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype) / 2


def read_out(features: Tensor, u: Tensor, readout: tuple[Tensor, Tensor], odd: Tensor) -> Tensor:
    """Apply W and b to features, some of them squared, and inputs if W has columns for them."""
    weight, bias = readout
    s = features.double()
    s = torch.where(odd, s * s, s)
    if weight.shape[1] > s.shape[1]:
        s = torch.cat([s, u.double()], 1)
    return s @ weight.T + bias


def same(found: Tensor, expected: Tensor) -> None:
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=50 * eps)


@EACH_DTYPE
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("B", [1, 5])
def test_ring(dtype: torch.dtype, layers: int, B: int) -> None:
    Q, N, T = 12, 17, 6
    ring = RingReservoirs(Q, 4, 2, N, density=0.3, dtype=dtype, num_layers=layers, seed=5)
    x = drawn(9, B, Q, dtype=dtype)
    h = ring(x)[1]
    for square, sees_input in CHOICES:
        weight = drawn(Q, ring.output_size + Q * sees_input, dtype=torch.float64, seed=1) / 9
        readout = weight, drawn(Q, dtype=torch.float64, seed=2)
        odd = (torch.arange(ring.output_size) % N % 2 == 1) & square
        out, last = forecast(ring, *readout, h, T, last_input=x[-1], square=square)
        u, state = x[-1], h
        for t in range(T):
            s = state.permute(2, 0, 1, 3).reshape(B, -1)
            same(out[t], read_out(s, u, readout, odd))
            u = out[t]
            state = ring(u[None], state)[1]
        same(last, state)
        early, between = forecast(ring, *readout, h, 2, last_input=x[-1], square=square)
        late, end = forecast(ring, *readout, between, T - 2, last_input=early[-1], square=square)
        assert torch.equal(torch.cat([early, late]), out)
        assert torch.equal(end, last)
        alone, one = forecast(ring, *readout, h[:, :, 0], T, last_input=x[-1, 0], square=square)
        assert torch.equal(alone, out[:, 0])
        assert torch.equal(one, last[:, :, 0])


@EACH_DTYPE
def test_threads_change_no_bit(dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr(_engine, "THREADED_WORK", 0)
    ring = RingReservoirs(20, 5, 1, 33, density=0.3, dtype=dtype)
    nvar = NVAR(3, 2, dtype=dtype)
    weight = drawn(20, 165, dtype=dtype) / 9, None
    products = drawn(3, 27, dtype=dtype) / 9, None
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            h = drawn(5, 1, 7, 33, dtype=dtype, seed=3)
            window = drawn(2, 7, 3, dtype=dtype, seed=3)
            results.append((forecast(ring, *weight, h, 9), forecast(nvar, *products, window, 9)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 2), (3, 2, 5, 3), (2, 4, 1, 1)])
@pytest.mark.parametrize("D", [0, 1])
def test_products(dtype: torch.dtype, shape: tuple[int, int, int, int], D: int) -> None:
    O, delays, skip, order = shape
    B, T, I = 3, 14, O + D
    nvar = NVAR(I, delays, skip=skip, order=order, dtype=dtype)
    x, drivers = drawn(20, B, I, dtype=dtype), drawn(T, B, D, dtype=dtype, seed=1)
    given = drivers if D else None
    h = nvar(x)[1]
    for square, sees_input in CHOICES:
        width = nvar.output_size + I * sees_input
        weight = drawn(O, width, dtype=torch.float64, seed=2) / width
        readout = weight, drawn(O, dtype=torch.float64, seed=3) / 4
        odd = (torch.arange(nvar.output_size) % 2 == 1) & square
        out, last = forecast(nvar, *readout, h, T, given, square=square)
        state = h
        for t in range(T):
            same(out[t], read_out(nvar.states(state), state[-1], readout, odd))
            state = nvar(torch.cat([out[t], drivers[t]], 1)[None], state)[1]
        assert torch.equal(last, state)
        early, between = forecast(nvar, *readout, h, 5, drivers[:5] if D else None, square=square)
        late, end = forecast(
            nvar, *readout, between, T - 5, drivers[5:] if D else None, square=square
        )
        assert torch.equal(torch.cat([early, late]), out)
        assert torch.equal(end, last)
        first = NVAR(I, delays, skip=skip, order=order, dtype=dtype, batch_first=True)
        turned = None if given is None else given.transpose(0, 1)
        again, _ = forecast(first, *readout, h, T, turned, square=square)
        assert torch.equal(again.transpose(0, 1), out)
        alone, one = forecast(
            nvar, *readout, h[:, 1], T, None if given is None else given[:, 1], square=square
        )
        assert torch.equal(alone, out[:, 1])
        assert torch.equal(one, last[:, 1])


@pytest.mark.parametrize("kind", ["ring", "products", "products and drivers"])
@pytest.mark.parametrize("increments", [False, True])
@pytest.mark.parametrize("input_to_readout", [False, True])
def test_networks(kind: str, increments: bool, input_to_readout: bool) -> None:
    """A network's forecast in the kernel is that step by step."""
    steps = torch.arange(260.0, dtype=torch.float64)[:, None]
    x = torch.sin(steps * torch.tensor([0.31, 0.12, 0.07, 0.23, 0.19, 0.05]))
    O = 5 if kind == "products and drivers" else 6
    reservoir: Any = (
        RingReservoirs(6, 3, 1, 20, density=0.5, dtype=torch.float64, batch_first=True)
        if kind == "ring"
        else NVAR(6, 2, dtype=torch.float64)
    )
    esn = ESN(
        6,
        O,
        reservoir=reservoir,
        readout=Ridge(1e-2),
        increments=increments,
        input_to_readout=input_to_readout,
        square=kind == "ring",
    )
    esn.fit(x[:-1], x[1:, :O], washout=30)
    drivers = x[200:220, 5:] if O == 5 else None
    found = esn.forecast(x[:200], 20, drivers)
    warm, h = esn.predict(x[:200], return_state=True)
    state = h.unsqueeze(-2)
    known = None if drivers is None else drivers[:, None]
    expected, _ = step_by_step(esn, state, x[199:200], 20, known)
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[0], warm[-1])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("ring", {"weight": (5, 60)}, "readout_weight must have Q = 6 rows, got 5"),
        ("ring", {"weight": (6, 61)}, r"readout_weight must have shape \(O, 60\)"),
        ("ring", {"state": (3, 1, 20, 2)}, "state must have shape"),
        ("ring", {"drivers": (4, 2, 1)}, "drivers must be None for a ring"),
        ("ring", {"weight": (6, 66)}, "last_input must be given"),
        ("products", {"weight": (7, 27)}, "readout_weight has 7 outputs"),
        ("products", {"weight": (6, 28)}, "readout_weight must have shape"),
        ("products", {"weight": (5, 27)}, "drivers must be given"),
        ("products", {"state": (2, 2, 6)}, "state must have shape"),
    ],
)
def test_bad_arguments(kind: str, change: dict[str, tuple[int, ...]], message: str) -> None:
    reservoir: Any = (
        RingReservoirs(6, 3, 1, 20, density=0.5)
        if kind == "ring"
        else NVAR(6, 1, order=2, dtype=torch.float32)
    )
    shapes = {"weight": (6, 60 if kind == "ring" else 27)}
    shapes["state"] = (3, 1, 2, 20) if kind == "ring" else (1, 2, 6)
    given = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(ValueError, match=f"forecast: {message}"):
        forecast(reservoir, given["weight"], None, given["state"], 4, given.get("drivers"))
