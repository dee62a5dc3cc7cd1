"""The reservoir kernels against the equation in float64: each layout, dtype, instruction set."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from _reservoirs import LAYOUTS, layer_reference, reference, with_layout
from fastrnn.reservoir import Population, Reservoir, _engine
from fastrnn.reservoir._forecast import forecast
from fastrnn.reservoir._ops import gram_update, run_blocks

DTYPES = (torch.float32, torch.float64)
SIZES = (1, 7, 16, 17, 50)  # of units: around the block of 16, and within one
# A sum of 50 products of numbers around 1, through a slope of at most 1, some steps long: 100
# roundings of at most half an eps each, were they all to fall the same way.
ROUNDINGS = 50
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True, params=fastrnn.available_isas())
def isa(request: pytest.FixtureRequest) -> Any:
    """Run every test on every instruction set of the machine."""
    from fastrnn import _ops

    used = fastrnn.isa()
    _ops.set_isa(request.param)
    yield request.param
    _ops.set_isa(used)


def assert_close(found: Tensor, exact: Tensor) -> None:
    eps = torch.finfo(found.dtype).eps
    scale = max(1.0, float(exact.detach().abs().max())) if exact.numel() else 1.0
    torch.testing.assert_close(
        found.detach().double(), exact.detach(), rtol=0, atol=ROUNDINGS * eps * scale
    )


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def build(layout: str, monkeypatch: Any, N: int, dtype: torch.dtype, **options: Any) -> Reservoir:
    given: dict[str, Any] = {"density": 0.3, "leak": torch.linspace(0.2, 1, N), "dtype": dtype}
    if layout in ("rows", "windows"):
        given["topology"] = "independent"
    return with_layout(layout, monkeypatch, 3, N, **(given | options))


@EACH_DTYPE
@EACH_LAYOUT
@pytest.mark.parametrize("B", [1, 2, 5, 19])
def test_forward(layout: str, dtype: torch.dtype, B: int, monkeypatch: Any) -> None:
    for N in SIZES:
        res = build(layout, monkeypatch, N, dtype, feedback_size=2, seed=N)
        x, feedback = drawn(5, B, 3, dtype=dtype), drawn(5, B, 2, dtype=dtype, seed=1)
        h0 = drawn(1, B, N, dtype=dtype, seed=2)
        y, h = res(x, h0, feedback=feedback)
        exact, last = reference(res, x, h0, feedback)
        assert_close(y, exact)
        assert_close(h, last)


@EACH_DTYPE
@pytest.mark.parametrize("activation", ["tanh", "relu", "identity", "sigmoid"])
@pytest.mark.parametrize("es2n", [False, True])
def test_activations_and_rotation(dtype: torch.dtype, activation: str, es2n: bool) -> None:
    res = Reservoir(2, 35, density=0.2, activation=activation, es2n=es2n, dtype=dtype)
    x = drawn(6, 3, 2, dtype=dtype)
    y, h = res(x)
    exact, last = reference(res, x)
    assert_close(y, exact)
    assert_close(h, last)


@EACH_LAYOUT
@pytest.mark.parametrize(("es2n", "activation"), [(False, "tanh"), (True, "sigmoid")])
def test_gradients(layout: str, es2n: bool, activation: str, monkeypatch: Any) -> None:
    for N, B in ((18, 2), (5, 3)):
        res = build(
            layout,
            monkeypatch,
            N,
            torch.float64,
            feedback_size=2,
            es2n=es2n,
            activation=activation,
            bidirectional=True,
            num_layers=2,
        )
        inputs = (
            drawn(3, B, 3, dtype=torch.float64),
            drawn(4, B, N, dtype=torch.float64),
            drawn(3, B, 2, dtype=torch.float64),
        )
        for t in inputs:
            t.requires_grad_()
        lengths = torch.tensor([3, 2, 0])[:B]

        def call(x: Tensor, h0: Tensor, v: Tensor, res: Any = res, at: Any = lengths) -> Any:
            return res(x, h0, at, v)

        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@EACH_LAYOUT
def test_gradients_in_float32(layout: str, monkeypatch: Any) -> None:
    res = build(layout, monkeypatch, 33, torch.float32)
    x, h0 = drawn(7, 4, 3, dtype=torch.float32), drawn(1, 4, 33, dtype=torch.float32)
    dy = drawn(7, 4, 33, dtype=torch.float32, seed=3)
    given = [t.clone().requires_grad_() for t in (x, h0)]
    found = torch.autograd.grad((res(*given)[0] * dy).sum(), given)
    exact = [t.double().requires_grad_() for t in (x, h0)]
    truth = torch.autograd.grad((reference(res, *exact)[0] * dy).sum(), exact)
    for f, t in zip(found, truth, strict=True):
        assert_close(f, t)


@EACH_DTYPE
@EACH_LAYOUT
def test_ragged(layout: str, dtype: torch.dtype, monkeypatch: Any) -> None:
    res = build(layout, monkeypatch, 20, dtype, bidirectional=True, num_layers=2)
    x, lengths = drawn(6, 7, 3, dtype=dtype), torch.tensor([6, 1, 0, 3, 3, 5, 2])
    y, h = res(x, lengths=lengths)
    exact, last = reference(res, x, lengths=lengths)
    assert_close(y, exact)
    assert_close(h, last)
    for b, length in enumerate(lengths):
        assert not y[length:, b].any()


@EACH_DTYPE
@EACH_LAYOUT
def test_bitwise(layout: str, dtype: torch.dtype, monkeypatch: Any) -> None:
    """Neither threads, companions, chunks nor memory layout change a bit."""
    monkeypatch.setattr(_engine, "THREADED_WORK", 0)
    res = build(layout, monkeypatch, 50, dtype, batch_first=False)
    x, h0 = drawn(9, 21, 3, dtype=dtype), drawn(1, 21, 50, dtype=dtype)
    y, h = res(x, h0)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = res(x, h0)
            assert torch.equal(again[0], y)
            assert torch.equal(again[1], h)
    finally:
        torch.set_num_threads(threads)
    for some in (slice(0, 1), slice(3, 9), slice(20, 21)):
        part = res(x[:, some], h0[:, some])
        assert torch.equal(part[0], y[:, some])
    first, between = res(x[:4], h0)
    second, last = res(x[4:], between)
    assert torch.equal(torch.cat([first, second]), y)
    assert torch.equal(last, h)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(res(strided, h0)[0], y)


@EACH_DTYPE
def test_population(dtype: torch.dtype) -> None:
    """Each member is, bit by bit, the reservoir alone; inputs are shared or the members' own."""
    members = [
        Reservoir(
            3, 37, density=d, spectral_radius=r, leak=a, seed=s, dtype=dtype, num_layers=2, bias=s
        )
        for s, (d, r, a) in enumerate(itertools.product((0.1, 0.2), (0.5, 1.2), (0.3, 1.0)))
    ]
    population = Population(members)
    x = drawn(8, 5, 3, dtype=dtype)
    y, h = population(x)
    assert y.shape == (8, 8, 5, 74)
    for m, member in enumerate(members):
        # The layout may differ, and with it the order of the sums.
        alone, last = member(x)
        assert_close(y[m], alone.double())
        assert_close(h[m], last.double())
    own = drawn(8, 8, 5, 3, dtype=dtype, seed=5)
    y, h = population(own, h)
    for m in range(8):
        shared, last = population(own[m], h * 0 + h)
        assert shared.shape == y.shape
    assert_close(population(own)[0][3], reference(members[3], own[3])[0])


def test_population_layouts_and_gradients(monkeypatch: Any) -> None:
    for layout in LAYOUTS:
        members = [build(layout, monkeypatch, 19, torch.float64, seed=s) for s in range(3)]
        population = Population(members)
        x = drawn(4, 2, 3, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, p=population: p(x), (x,))
        for m in range(3):
            exact, _ = layer_reference(population.layers[0], x, member=m)
            assert_close(population(x)[0][m], exact)


@EACH_DTYPE
@EACH_LAYOUT
@pytest.mark.parametrize("feedback", [False, True])
def test_forecast(layout: str, dtype: torch.dtype, feedback: bool, monkeypatch: Any) -> None:
    """The closed loop in one call is the module stepped by hand; in two calls it is the same."""
    N, O, B, horizon = 21, 2, 3, 6
    res = build(
        layout, monkeypatch, N, dtype, num_layers=2, feedback_size=O if feedback else 0, seed=1
    )
    D = 3 if feedback else 1
    x, v = drawn(5, B, 3, dtype=dtype), drawn(5, B, O, dtype=dtype)
    drivers = drawn(horizon, B, D, dtype=dtype, seed=2)
    h = res(x, feedback=v if feedback else None)[1]
    for sees_input, square in itertools.product((False, True), (False, True)):
        width = 2 * N + (3 if sees_input else 0)
        weight = drawn(O, width, dtype=torch.float64, seed=3) / 10
        bias = drawn(O, dtype=torch.float64, seed=4)
        out, last = forecast(
            res, weight, bias, h, horizon, drivers, last_input=x[-1], square=square
        )
        state, u = h, x[-1]
        for t in range(horizon):
            s = torch.cat([state[0], state[1]], -1).double()
            features = torch.where(torch.arange(2 * N) % N % 2 == 1, s * s, s) if square else s
            if sees_input:
                features = torch.cat([features, u.double()], -1)
            expected = features @ weight.T + bias
            assert_close(out[t], expected)
            looped = out[t].to(dtype)
            u = drivers[t] if feedback else torch.cat([looped, drivers[t]], -1)
            state = res(u[None], state, feedback=looped[None] if feedback else None)[1]
        assert_close(last, state.double())
        early, between = forecast(
            res, weight, bias, h, 2, drivers[:2], last_input=x[-1], square=square
        )
        last_u = drivers[1] if feedback else torch.cat([early[-1], drivers[1]], -1)
        late, end = forecast(
            res, weight, bias, between, 4, drivers[2:], last_input=last_u, square=square
        )
        assert torch.equal(torch.cat([early, late]), out)
        assert torch.equal(end, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "N", "O"), [(1, 1, 1), (5, 23, 2), (700, 50, 25), (513, 49, 0)])
def test_gram(dtype: torch.dtype, n: int, N: int, O: int) -> None:
    states, targets = drawn(n, N, dtype=dtype) + 3, drawn(n, O, dtype=dtype, seed=1)
    shift, target_shift = drawn(N, dtype=torch.float64) + 3, drawn(O, dtype=torch.float64)
    weight = torch.rand(n, dtype=torch.float64)
    for given in ((None, None, None), (shift, target_shift, None), (shift, target_shift, weight)):
        gram = torch.full((N, N), 7.0, dtype=torch.float64)
        cross, sums = gram.new_ones(N, O), gram.new_ones(N)
        gram_update(states, targets, gram, cross, sums, *given)
        x = states.double() - (0 if given[0] is None else shift)
        y = targets.double() - (0 if given[1] is None else target_shift)
        w = torch.ones(n, dtype=torch.float64) if given[2] is None else weight
        exact = x.T @ (x * w[:, None]) + 7
        upper = torch.ones(N, N, dtype=torch.bool).triu()
        assert_close(gram[upper], exact[upper])
        assert (gram[~upper] == 7).all()
        assert_close(cross, (x * w[:, None]).T @ y + 1)
        assert_close(sums, (x * w[:, None]).sum(0) + 1)


def test_gram_bitwise(monkeypatch: Any) -> None:
    """Threads change no bit, nor do strides."""
    monkeypatch.setattr(_engine, "THREADED_WORK", 0)
    states, targets = drawn(600, 100, dtype=torch.float32), drawn(600, 3, dtype=torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for x in (states, torch.cat([states, states], 1)[:, :100]):
                gram = torch.zeros(100, 100, dtype=torch.float64)
                cross, sums = torch.zeros(100, 3, dtype=torch.float64), gram.new_zeros(100)
                gram_update(x, targets, gram, cross, sums)
                results.append((gram, cross, sums))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_blocks() -> None:
    res = Reservoir(3, 40, density=0.1)
    x = drawn(50, 2, 3, dtype=torch.float32)
    whole, last = res(x)
    for steps in (1, 7, 50, None):
        seen, h = [], None
        for part, y, after in run_blocks(res, x, block_steps=steps):
            assert part.start == sum(map(len, seen))
            seen.append(y.clone())
            h = after
        assert torch.equal(torch.cat(seen), whole)
        assert h is not None
        assert torch.equal(h, last)


def test_wide_columns(monkeypatch: Any) -> None:
    """Beyond 65,536 units columns have 32 bits; the last ones are met, and wrap."""
    N = 65550
    res = Reservoir(1, N, topology="cycle", spectral_radius=None, bias=0.0, activation="identity")
    assert res.layers[0].recurrent.columns.dtype == torch.int32
    h0 = drawn(1, 1, N, dtype=torch.float32)
    y, _ = res(torch.zeros(1, 1, 1), h0)
    expected = 0.7 * h0[0].double() + 0.3 * h0[0].double().roll(1, -1)
    assert_close(y[0], expected)
    narrow = with_layout("rows", monkeypatch, 1, 40000, topology="cycle", spectral_radius=None)
    assert narrow.layers[0].recurrent.columns.dtype == torch.int16
    state = drawn(1, 1, 40000, dtype=torch.float32)
    layer = narrow.layers[0]
    y, _ = narrow(torch.zeros(1, 1, 1), state)
    total = torch.tanh(state[0].double().roll(1, -1) + layer.bias[0].double())
    assert_close(y[0], 0.7 * state[0].double() + 0.3 * total)


def test_noise_enters_the_activation() -> None:
    res = Reservoir(2, 18, density=0.2, noise=0.5, dtype=torch.float64)
    x = drawn(4, 3, 2, dtype=torch.float64)
    torch.manual_seed(3)
    y, _ = res(x)
    torch.manual_seed(3)
    noise = torch.randn(1, 4, 3, 18, dtype=torch.float64) * 0.5
    exact, _ = layer_reference(res.layers[0], x, noise=noise[0])
    assert_close(y, exact)
    res.eval()
    assert_close(res(x)[0], reference(res, x)[0])


def test_changed_weights_are_noticed_by_autograd() -> None:
    res = Reservoir(2, 18)
    x = drawn(4, 3, 2, dtype=torch.float32).requires_grad_()
    y, _ = res(x)
    res.weight_ih.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_empty_batch() -> None:
    res = Reservoir(2, 18)
    y, h = res(torch.empty(4, 0, 2))
    assert y.shape == (4, 0, 18)
    assert h.shape == (1, 0, 18)
    y, h = res(torch.empty(0, 2, 2), torch.ones(1, 2, 18))
    assert y.shape == (0, 2, 18)
    assert (h == 1).all()


def test_small_calls_have_one_thread() -> None:
    assert _engine.threads(1000) == 1
    assert _engine.threads(1 << 30) == min(torch.get_num_threads(), 64)
