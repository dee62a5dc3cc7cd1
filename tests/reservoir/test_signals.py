"""Long calls of the reservoir engine end when a signal's handler raises, as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from fastrnn.reservoir import ESN, NVAR, Reservoir, Ridge, RingReservoirs, _engine
from fastrnn.reservoir._forecast import forecast
from fastrnn.reservoir._ops import gram_update

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
MANY = 3_000_000  # steps: at least some ten seconds of any of these calls


class StopError(Exception):
    pass


@pytest.fixture(autouse=True)
def alarm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise in a signal's handler, 0.3 s from now."""
    monkeypatch.undo()  # no poison in gigabytes that nobody touches

    def handle(_number: int, _frame: object) -> None:
        raise StopError

    before = signal.signal(signal.SIGALRM, handle)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def zeros(*shape: int) -> torch.Tensor:
    """Return zeros that the system makes no memory of as long as they are only read."""
    return torch.from_numpy(numpy.zeros(shape, numpy.float32))


def forward() -> object:
    res = Reservoir(1, 600, topology="dense", spectral_radius=None)
    return res(torch.zeros(1, 4, 1).expand(400_000, 4, 1))


def backward() -> object:
    res = Reservoir(1, 600, topology="dense", spectral_radius=None)
    activated, dy = zeros(1, 400_000, 4, 600), zeros(1, 400_000, 4, 600)
    run = _engine.Run(res.layers[0].weights(), None, None, False, False)
    return run.backward(activated, dy, torch.zeros(1, 4, 600), (1, 0), (False, False))


def loop() -> object:
    res = Reservoir(2, 600, topology="dense", spectral_radius=None)
    return forecast(res, torch.zeros(2, 600), None, torch.zeros(1, 4, 600), MANY)


def ring() -> object:
    res = RingReservoirs(8, 4, 1, 300, density=0.3, spectral_radius=None)
    return forecast(res, torch.zeros(8, 1200), None, torch.zeros(4, 1, 3, 300), MANY)


def polynomial() -> object:
    nvar = NVAR(3, 6, order=3)
    weight = torch.zeros(3, nvar.output_size)
    return forecast(nvar, weight, None, torch.zeros(6, 4, 3), MANY)


def gram() -> object:
    sums = [torch.zeros(shape, dtype=torch.float64) for shape in ((900, 900), (900, 1), (900,))]
    states = torch.zeros(1, 900).expand(MANY, 900)
    return gram_update(states, torch.zeros(1, 1).expand(MANY, 1), *sums)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", [forward, backward, loop, ring, polynomial, gram])
def test_a_handler_ends_a_long_call(call: Callable[[], object], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(StopError):
            call()
    finally:
        torch.set_num_threads(before)


def test_an_interrupted_fit_leaves_the_last_one(monkeypatch: Any) -> None:
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    esn = ESN(1, 1, 400, density=0.1, readout=Ridge(1e-3, "cholesky"))
    esn.fit(x[:-1], x[1:])
    expected, report = esn.predict(x), esn.readout.report
    long = x.repeat(2000, 1)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(StopError):
        esn.fit(long[:-1], long[1:])
    assert torch.equal(esn.predict(x), expected)
    assert esn.readout.report is report
    assert torch.equal(esn.fit(x[:-1], x[1:]).predict(x), expected)
