"""Networks: fits of every kind of data, predictions, forecasts, and what they refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastrnn
from fastrnn.reservoir import (
    ESN,
    FORCE,
    LMS,
    NVAR,
    RLS,
    Ensemble,
    Logistic,
    Reservoir,
    Ridge,
    RingReservoirs,
    SklearnReadout,
)

DOUBLE = torch.float64


def waves(steps: int, features: int = 2, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Return sums of sines that no linear map of few steps continues."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(3, features, generator=generator, dtype=DOUBLE) * 6
    speed = torch.tensor([0.31, 0.1237, 0.0711], dtype=DOUBLE)[:, None]
    t = torch.arange(steps, dtype=DOUBLE)[:, None, None]
    return torch.tanh(torch.sin(t * speed + phase).sum(1)).to(dtype)


def network(features: int = 2, outputs: int = 2, size: int = 40, **options: Any) -> ESN:
    reservoir = {"density": 0.2, "dtype": DOUBLE, "seed": 3}
    for name in ("batch_first", "noise", "feedback_size", "num_layers", "bidirectional", "leak"):
        if name in options:
            reservoir[name] = options.pop(name)
    return ESN(features, outputs, reservoir=Reservoir(features, size, **reservoir), **options)


def same(one: ESN, other: ESN, tolerance: float = 1e-6) -> None:
    scale = float(one.readout.weight.abs().max())
    difference = (one.readout.weight - other.readout.weight).abs().max()
    assert float(difference) <= tolerance * scale


ALPHA = 1e-3


def by_hand(esn: ESN, series: list[tuple[Tensor, Tensor]], washout: int) -> tuple[Tensor, Tensor]:
    """Return W and b from all states in memory."""
    states, targets = [], []
    for x, y in series:
        s = esn.reservoir.eval()(x)[0]
        states.append(torch.cat([s, x], 1)[washout:] if esn.input_to_readout else s[washout:])
        targets.append(y[washout:])
    s, y = torch.cat(states), torch.cat(targets)
    mean, offset = s.mean(0), y.mean(0)
    c = s - mean
    gram = c.T @ c + ALPHA * torch.eye(s.shape[1], dtype=DOUBLE)
    weight = torch.linalg.solve(gram, c.T @ (y - offset)).T
    return weight, offset - weight @ mean


@pytest.mark.parametrize("input_to_readout", [False, True])
@pytest.mark.parametrize("washout", [0, 30])
def test_fit_is_ridge_on_the_states(input_to_readout: bool, washout: int) -> None:
    x = waves(1500)
    esn = network(readout=Ridge(ALPHA), input_to_readout=input_to_readout)
    esn.fit(x[:-1], x[1:], washout=washout)
    weight, bias = by_hand(esn, [(x[:-1], x[1:])], washout)
    torch.testing.assert_close(esn.readout.weight, weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(esn.readout.bias, bias, rtol=1e-6, atol=1e-8)
    assert esn.readout.report.rows == 1499 - washout


def test_a_list_of_unequal_series() -> None:
    series = [waves(n, seed=n) for n in (40, 200, 75, 41)]
    pairs = [(x[:-1], x[1:]) for x in series]
    esn = network(readout=Ridge(ALPHA)).fit(*map(list, zip(*pairs, strict=True)), washout=20)
    weight, bias = by_hand(esn, pairs, 20)
    torch.testing.assert_close(esn.readout.weight, weight, rtol=1e-6, atol=1e-8)
    together = esn.predict([x for x, _ in pairs])
    for (x, _), predicted in zip(pairs, together, strict=True):
        torch.testing.assert_close(predicted, esn.predict(x))
        torch.testing.assert_close(
            predicted, esn.reservoir(x)[0] @ weight.T + bias, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_batch_is_its_series(batch_first: bool) -> None:
    x = torch.stack([waves(120, seed=seed) for seed in range(3)], 1)
    esn = network(readout=Ridge(ALPHA), batch_first=batch_first)
    given = x.transpose(0, 1) if batch_first else x
    early, late = (given[:, :-1], given[:, 1:]) if batch_first else (given[:-1], given[1:])
    esn.fit(early, late, washout=10)
    alone = network(readout=Ridge(ALPHA))
    alone.fit([x[:-1, b] for b in range(3)], [x[1:, b] for b in range(3)], washout=10)
    same(esn, alone)
    predicted = esn.predict(early)
    assert predicted.shape == early.shape
    one = predicted[1] if batch_first else predicted[:, 1]
    torch.testing.assert_close(one, esn.predict(x[:-1, 1]))
    trajectory = esn.forecast(given, 5)
    assert trajectory.shape == ((3, 5, 2) if batch_first else (5, 3, 2))
    one = trajectory[1] if batch_first else trajectory[:, 1]
    torch.testing.assert_close(one, esn.forecast(x[:, 1], 5))


@pytest.mark.parametrize("solver", ["auto", "cholesky", "tsqr", "cholqr3"])
def test_a_loader_streams_one_long_series(solver: str) -> None:
    """Pieces of a series, with the state carried on, are the series."""
    x = waves(1001)
    pieces = DataLoader(TensorDataset(x[:-1], x[1:]), batch_size=64, shuffle=False)
    esn = network(readout=Ridge(ALPHA, solver)).fit(pieces, washout=100, continued=True)
    same(esn, network(readout=Ridge(ALPHA)).fit(x[:-1], x[1:], washout=100))
    assert esn.readout.report.rows == 900


def test_a_generator_is_read_once() -> None:
    x = waves(401)
    esn = network(readout=Ridge(ALPHA))
    esn.fit(((x[i : i + 100], x[i + 1 : i + 101]) for i in range(0, 400, 100)), continued=True)
    assert esn.readout.solver_ == "tsqr"
    same(esn, network(readout=Ridge(ALPHA)).fit(x[:-1], x[1:]))


def test_partial_fit_in_any_order() -> None:
    series = [waves(90, seed=seed) for seed in range(5)]
    esn = network(readout=Ridge(ALPHA))
    for x in series[::-1]:
        esn.partial_fit(x[:-1], x[1:], washout=10)
    esn.finalize()
    other = network(readout=Ridge(ALPHA))
    other.fit([x[:-1] for x in series], [x[1:] for x in series], washout=10)
    same(esn, other)
    long = waves(601)
    esn = network(readout=Ridge(ALPHA)).partial_fit(long[:200], long[1:201], washout=50)
    esn.partial_fit(long[200:600], long[201:], washout=50, continued=True).finalize()
    same(esn, network(readout=Ridge(ALPHA)).fit(long[:-1], long[1:], washout=50))


def test_sample_weights() -> None:
    x = waves(300)
    weights = torch.zeros(299, dtype=DOUBLE)
    weights[50:] = 1
    esn = network(readout=Ridge(ALPHA)).fit(x[:-1], x[1:], sample_weight=weights)
    same(esn, network(readout=Ridge(ALPHA)).fit(x[:-1], x[1:], washout=50))


def test_float32_states_are_summed_in_float64() -> None:
    x = waves(2000, dtype=torch.float32)
    esn = ESN(2, 2, 40, density=0.2, dtype=torch.float32, readout=Ridge(ALPHA))
    esn.fit(x[:-1], x[1:], washout=50)
    states = esn.reservoir(x[:-1])[0][50:].double()
    c, y = states - states.mean(0), x[51:].double()
    gram = c.T @ c + ALPHA * torch.eye(40, dtype=DOUBLE)
    expected = torch.linalg.solve(gram, c.T @ (y - y.mean(0))).T
    torch.testing.assert_close(esn.readout.weight, expected, rtol=1e-5, atol=1e-7)
    assert esn.predict(x).dtype == torch.float32


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("input_to_readout", [False, True])
@pytest.mark.parametrize("increments", [False, True])
def test_forecast_is_the_loop_by_hand(
    square: bool, input_to_readout: bool, increments: bool
) -> None:
    """traj[i] predicts x[T + i]: the first is the last prediction of the warm-up."""
    x = waves(400)
    esn = network(
        num_layers=2, square=square, input_to_readout=input_to_readout, increments=increments
    )
    esn.fit(x[:-1], x[1:], washout=50)
    trajectory = esn.forecast(x, 20)
    inputs = x
    for i in range(20):
        out = esn.predict(inputs)[-1]
        torch.testing.assert_close(trajectory[i], out, rtol=1e-6, atol=1e-7)
        inputs = torch.cat([inputs, trajectory[i : i + 1]])
    assert esn.forecast(x, 0).shape == (0, 2)


def test_forecast_with_drivers() -> None:
    x = waves(300, 3)
    esn = network(3, 2).fit(x[:-1], x[1:, :2], washout=30)
    trajectory = esn.forecast(x[:200], 10, x[200:210, 2:])
    inputs = x[:200]
    for i in range(10):
        torch.testing.assert_close(trajectory[i], esn.predict(inputs)[-1], rtol=1e-6, atol=1e-7)
        inputs = torch.cat([inputs, torch.cat([trajectory[i], x[200 + i, 2:]])[None]])


def test_forecast_with_a_map() -> None:
    x = waves(300, 2)
    esn = network(2, 1, feedback_map=lambda out: torch.cat([out, out * out], 1))
    first = x[:, :1]
    both = torch.cat([first, first * first], 1)
    esn.fit(both[:-1], first[1:], washout=30)
    trajectory = esn.forecast(both[:200], 3)
    torch.testing.assert_close(trajectory[0], esn.predict(both[:200])[-1])
    more = torch.cat([both[:200], torch.cat([trajectory[:1], trajectory[:1] ** 2], 1)])
    torch.testing.assert_close(trajectory[1], esn.predict(more)[-1])


def test_output_feedback_is_forced_in_fit_and_free_in_predict() -> None:
    u, y = waves(500, 1), waves(500, 1, seed=9)
    esn = network(1, 1, feedback_size=1, readout=Ridge(ALPHA)).fit(u, y, washout=50)
    forced = torch.cat([torch.zeros(1, 1, dtype=DOUBLE), y[:-1]])
    states = esn.reservoir(u, feedback=forced)[0]
    torch.testing.assert_close(esn.predict(u, feedback=y), esn.readout(states))
    h, fed, expected = None, torch.zeros(1, 1, dtype=DOUBLE), []
    for t in range(100):
        s, h = esn.reservoir(u[t : t + 1], h, feedback=fed)
        fed = esn.readout(s)
        expected.append(fed)
    torch.testing.assert_close(esn.predict(u[:100]), torch.cat(expected), rtol=1e-7, atol=1e-8)
    free = esn.forecast(u[:300], 4, u[300:304], outputs=y[:300])
    torch.testing.assert_close(free[0], esn.predict(u[:300], feedback=y[:300])[-1])


def test_predict_resets_and_its_state_is_explicit() -> None:
    x = waves(300)
    esn = network().fit(x[:-1], x[1:], washout=20)
    assert torch.equal(esn.predict(x), esn.predict(x))
    head, h = esn.predict(x[:120], return_state=True)
    whole = esn.predict(x)
    assert torch.equal(torch.cat([head, esn.predict(x[120:], h)]), whole)
    torch.testing.assert_close(esn(x), whole)


def test_gradients_and_sequential() -> None:
    x = waves(60).requires_grad_()
    esn = network(size=12).fit(x[:-1].detach(), x[1:].detach())
    model = nn.Sequential(nn.Linear(2, 2, dtype=DOUBLE), esn, nn.Linear(2, 1, dtype=DOUBLE))
    model(x).sum().backward()
    assert float(x.grad.abs().min(0).values.max()) > 0
    assert model[0].weight.grad is not None
    assert not list(esn.parameters())


@pytest.mark.parametrize("readout", [Ridge(ALPHA), Logistic(1e-4), None])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_classes_of_whole_series(readout: Any, pooling: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator)
    series = [
        torch.sin(torch.arange(20 + i % 7)[:, None] * (0.3 + 0.3 * int(k)) + i).double() + 0.5 * k
        for i, k in enumerate(labels)
    ]
    if readout is None:
        linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
        readout = SklearnReadout(linear_model.RidgeClassifier(ALPHA))
    esn = network(1, 3, pooling=pooling, readout=readout, leak=0.8)
    esn.fit(series[:40], list(labels[:40]))
    scores = torch.stack(esn.predict(series))
    assert scores.shape == (60, 3)
    assert float((scores.argmax(1) == labels)[40:].double().mean()) > 0.8
    torch.testing.assert_close(esn.predict(series[4]), scores[4])
    torch.testing.assert_close(esn(series[4]), scores[4])


def test_the_mean_leaves_out_the_same_steps_everywhere() -> None:
    series = [waves(50, seed=k) for k in range(6)]
    esn = network(2, 2, pooling="mean", washout=30).fit(series, [0, 1] * 3)
    torch.testing.assert_close(esn(series[0]), esn.predict(series[0]))
    for call in (esn.predict, esn, lambda x: esn.predict([x])):
        with pytest.raises(ValueError, match="ESN: washout must be shorter than every series"):
            call(series[0][:30])
    with pytest.raises(ValueError, match="ESN: washout must be given to the constructor"):
        esn.fit(series, [0, 1] * 3, washout=5)


def test_logistic_is_the_convex_minimum() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 4, generator=generator, dtype=DOUBLE)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    y = (x[:, 0] + 0.5 * torch.randn(200, generator=generator, dtype=DOUBLE) > 0).long()
    y += (x[:, 1] > 1).long()
    ours = Logistic(2.0).fit(x, nn.functional.one_hot(y, 3).double())
    theirs = linear_model.LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(x, y)
    expected = torch.from_numpy(theirs.coef_)
    torch.testing.assert_close(ours.weight, expected, rtol=1e-4, atol=1e-5)


def test_rls_is_ridge_and_forgets() -> None:
    generator = torch.Generator().manual_seed(2)
    s = torch.randn(80, 5, generator=generator, dtype=DOUBLE)
    y = s @ torch.randn(5, 2, generator=generator, dtype=DOUBLE) + 1
    readout = RLS(0.5).fit(s, y)
    rows = torch.cat([s, torch.ones(80, 1, dtype=DOUBLE)], 1)
    expected = torch.linalg.solve(rows.T @ rows + 0.5 * torch.eye(6, dtype=DOUBLE), rows.T @ y).T
    torch.testing.assert_close(readout.weight, expected[:, :-1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(readout.bias, expected[:, -1], rtol=1e-8, atol=1e-9)
    part = RLS(0.5).partial_fit(s[:30], y[:30]).partial_fit(s[30:], y[30:])
    part.finalize()
    assert torch.equal(part.weight, readout.weight)
    factor = 0.9 ** torch.arange(79, -1, -1, dtype=DOUBLE)
    gram = rows.T @ (factor[:, None] * rows) + 0.5 * 0.9**80 * torch.eye(6, dtype=DOUBLE)
    expected = torch.linalg.solve(gram, rows.T @ (factor[:, None] * y)).T
    found = RLS(0.5, forgetting=0.9).fit(s, y)
    torch.testing.assert_close(found.weight, expected[:, :-1], rtol=1e-7, atol=1e-8)


def test_lms_converges() -> None:
    generator = torch.Generator().manual_seed(2)
    s = torch.randn(3000, 5, generator=generator, dtype=DOUBLE)
    truth = torch.randn(5, 1, generator=generator, dtype=DOUBLE)
    readout = LMS(0.5).fit(s, s @ truth - 2)
    torch.testing.assert_close(readout.weight, truth.T, rtol=1e-6, atol=1e-6)


def test_force_learns_in_the_loop() -> None:
    steps = torch.arange(2500, dtype=DOUBLE)
    y = (torch.sin(steps * 0.1) + 0.5 * torch.sin(steps * 0.2))[:, None]
    u = torch.zeros(2500, 0, dtype=DOUBLE)
    readout = FORCE(1.0)
    res = Reservoir(0, 120, spectral_radius=1.3, density=0.1, feedback_size=1, dtype=DOUBLE, seed=1)
    esn = ESN(0, 1, reservoir=res, readout=readout)
    outputs = readout.train_loop(esn, u[:2000], y[:2000], washout=100)
    assert float((outputs[1500:] - y[1500:2000]).abs().max()) < 0.2
    free = esn.forecast(u[:2000], 100, outputs=y[:2000])
    assert float((free - y[2000:2100]).abs().max()) < 0.3


def test_nvar_features_and_forecast() -> None:
    x = waves(40)
    nvar = NVAR(2, 3, skip=2, dtype=DOUBLE)
    features, h = nvar(x)
    assert features.shape == (40, 6 + 21)
    t = 10
    linear = torch.cat([x[t], x[t - 2], x[t - 4]])
    pairs = [linear[i] * linear[j] for i in range(6) for j in range(i, 6)]
    torch.testing.assert_close(features[t], torch.cat([linear, torch.stack(pairs)]))
    first, middle = nvar(x[:13])
    second, end = nvar(x[13:], middle)
    assert torch.equal(torch.cat([first, second]), features)
    assert torch.equal(h, end)
    long = waves(400)
    esn = ESN(2, 2, reservoir=NVAR(2, 3, skip=2, dtype=DOUBLE), increments=True)
    esn.fit(long[:-1], long[1:], washout=4)
    trajectory = esn.forecast(long[:300], 5)
    inputs = long[:300]
    for i in range(5):
        torch.testing.assert_close(trajectory[i], esn.predict(inputs)[-1])
        inputs = torch.cat([inputs, trajectory[i : i + 1]])


def test_ring_bidirectional_and_ensemble() -> None:
    x = waves(300, 6)
    ring = RingReservoirs(6, 3, 1, 20, density=0.5, dtype=DOUBLE)
    esn = ESN(6, 6, reservoir=ring).fit(x[:-1], x[1:], washout=30)
    torch.testing.assert_close(esn.forecast(x, 3)[0], esn.predict(x)[-1])
    both = network(6, 6, bidirectional=True).fit(x, torch.roll(x, -3, 0), washout=5)
    assert both.predict(x).shape == (300, 6)
    members = [ESN(6, 6, 30, density=0.5, seed=seed, dtype=DOUBLE) for seed in range(3)]
    ensemble = Ensemble(members).fit(x[:-1], x[1:], washout=30)
    mean = torch.stack([member.predict(x) for member in members]).mean(0)
    torch.testing.assert_close(ensemble.predict(x), mean)
    torch.testing.assert_close(ensemble.predict([x, x[:50]])[1], mean[:50])
    assert ensemble.forecast(x, 4).shape == (4, 6)


def test_noise_is_for_fitting_only() -> None:
    x = waves(500)
    esn = network(noise=1e-3, readout=Ridge(1e-9)).fit(x[:-1], x[1:], washout=20)
    assert esn.readout.solver_ != "cholqr3"
    assert torch.equal(esn.predict(x), esn.predict(x))
    assert esn.reservoir.training


def test_state_dict_restores_everything() -> None:
    x = waves(200)
    esn = network(readout=Ridge("gcv"), input_to_readout=True).fit(x[:-1], x[1:], washout=20)
    buffer = io.BytesIO()
    torch.save(esn.state_dict(), buffer)
    buffer.seek(0)
    other = ESN(2, 2, reservoir=Reservoir(2, 40, density=0.2, dtype=DOUBLE, seed=99))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.predict(x), esn.predict(x))
    assert other.readout.report == esn.readout.report
    assert torch.equal(other.forecast(x, 9), esn.forecast(x, 9))
    with pytest.raises(ValueError, match="input_size = 3"):
        network(3, 2).load_state_dict(esn.state_dict())


X = waves(100)
NAN = X.clone()
NAN[5, 1] = float("nan")
FLAT = X.clone()
FLAT[:, 0] = 3.0
CASES: list[tuple[Callable[[ESN], Any], str]] = [
    (lambda esn: esn.fit(X, X, washout=100), "washout must be shorter than every series, got 100"),
    (lambda esn: esn.fit([X, X[:9]], [X, X[:9]], washout=9), "washout must be shorter"),
    (lambda esn: esn.fit(X, X, washout=-1), "washout must be an integer >= 0, got -1"),
    (lambda esn: esn.fit(X, X[:-1]), "y must match x"),
    (lambda esn: esn.fit(X, X[:, :1]), "y must match x"),
    (lambda esn: esn.fit(X[:, :1], X), "x must have shape .* I = 2"),
    (lambda esn: esn.fit(X), "y must be given with x"),
    (lambda esn: esn.fit(X[:0], X[:0]), "x must have at least one step"),
    (lambda esn: esn.fit([X, X], [X]), "y must have one entry for each of the 2 series"),
    (lambda esn: esn.fit([X, X], [X, X[:5]]), r"y must match x.*series number 1"),
    (lambda esn: esn.fit([], []), "x must hold at least one series"),
    (lambda esn: esn.fit(NAN, X), "x must be finite, got NaN or infinity in column 1"),
    (lambda esn: esn.fit(X, NAN), "y must be finite, got NaN or infinity in column 1"),
    (lambda esn: esn.fit(FLAT, X), "x must not be constant, got 3.0 throughout column 0"),
    (lambda esn: esn.fit(X, FLAT), "y must not be constant, got 3.0 throughout column 0"),
    (lambda esn: esn.fit(iter([(X, FLAT)])), "y must not be constant"),
    (lambda esn: esn.fit(iter([X])), "x must yield pairs"),
    (lambda esn: esn.fit(iter([])), "x must yield at least one pair"),
    (
        lambda esn: esn.fit(iter([(X, X)]), washout=150, continued=True),
        "washout must be shorter than every series, got 150 for a series of 100 steps",
    ),
    (lambda esn: esn.fit(3, X), "x must be a tensor"),
    (lambda esn: esn.fit(X, X, sample_weight=-torch.ones(100)), "sample_weight must be at least 0"),
    (lambda esn: esn.fit(X, X, sample_weight=torch.ones(9)), "sample_weight must be"),
    (lambda esn: esn.partial_fit(X, X, continued=True), "continued must be False in the first"),
    (lambda esn: esn.finalize(), "finalize needs data"),
    (lambda esn: esn.predict(NAN), "x must be finite"),
    (lambda esn: esn.predict(X[:, :1]), "x must have shape"),
    (lambda esn: esn.forecast(X, -1), "horizon must be an integer and at least 0, got -1"),
    (lambda esn: esn.forecast(X, 1.5), "horizon must be an integer and at least 0, got 1.5"),
    (lambda esn: esn.forecast(X.numpy(), 1), "warmup must be a tensor, got ndarray"),
    (lambda esn: esn.predict(X.numpy()), "x must be a tensor, got ndarray"),
    (lambda esn: esn.fit(X.numpy(), X.numpy()), "x must be a tensor, got ndarray"),
    (lambda esn: esn.forecast(NAN, 3), "warmup must be finite"),
    (lambda esn: esn.forecast(X, 3, X[:3]), "drivers must be None"),
]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_bad_input_names_the_argument_and_leaves_the_fit(
    call: Callable[[ESN], Any], message: str
) -> None:
    x = waves(100)
    esn = network(size=10).fit(x[:-1], x[1:])
    before, report = esn.predict(x), esn.readout.report
    with pytest.raises(ValueError, match=f"ESN: {message}"):
        call(esn)
    assert torch.equal(esn.predict(x), before)
    assert esn.readout.report is report


@pytest.mark.parametrize("name", ["predict", "forecast", "forward"])
def test_before_the_first_fit(name: str) -> None:
    arguments = (X, 3) if name == "forecast" else (X,)
    with pytest.raises(ValueError, match=f"ESN: {name} needs a fit"):
        getattr(network(), name)(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_size": 0}, "output_size must be at least 1"),
        ({"pooling": "max"}, "pooling must be"),
        ({"washout": 1.5}, "washout must be an integer"),
        ({"reservoir": Reservoir(3, 5)}, "reservoir must have input_size = 2"),
        ({"reservoir": Reservoir(2, 5), "leak": 0.1}, "leak must be given to reservoir"),
        ({"feedback_size": 1}, "reservoir must have feedback_size 0 or output_size"),
        ({"output_size": 3, "increments": True}, "increments needs output_size <="),
    ],
)
def test_bad_configuration(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"ESN: {message}"):
        ESN(**({"input_size": 2, "output_size": 2} | options))


def test_unequal_sizes_need_a_map_or_drivers() -> None:
    x = waves(100, 3)
    esn = network(3, 1).fit(x, x[:, :1])
    with pytest.raises(ValueError, match="ESN: output_size must equal input_size for forecast"):
        esn.forecast(x, 5)
    with pytest.raises(ValueError, match="ESN: drivers must have 5 steps of 2 values"):
        esn.forecast(x, 5, x[:4, 1:])
    esn = network(1, 2).fit(x[:, :1], x[:, :2])
    with pytest.raises(ValueError, match="ESN: output_size must equal input_size for forecast"):
        esn.forecast(x[:, :1], 5)


def test_the_package_has_the_names() -> None:
    assert fastrnn.ESN is ESN
    assert fastrnn.Ridge is Ridge
    assert fastrnn.reservoir.ESNRegressor.__name__ == "ESNRegressor"
