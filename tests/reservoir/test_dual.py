"""Fits of fewer rows than features, whose rows are kept: the dual form, against the primal one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from _exact import exact, gcv_by_hand, rows
from fastrnn.reservoir import ESN, Reservoir, Ridge
from fastrnn.reservoir._moments import Gram
from fastrnn.reservoir._rows import Rows

GENERATOR = torch.Generator().manual_seed(0)


def few(n: int, features: int, decades: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return n rows whose singular values fall over so many decades."""
    states, targets = rows(features, features, decades)
    return states[:n].clone(), targets[:n].clone()


def primal(states: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Solve by the scatter, as rows that are many are."""
    readout = Ridge(alpha, "cholesky")
    readout.begin(states.shape[1], targets.shape[1], 10**9)
    readout.update(states, targets)
    readout.finalize()
    assert readout.report.form == "primal"
    return readout.weight


def by_svd(states: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Solve at the condition of the rows themselves."""
    left, singular, right = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    gains = (singular / (singular.square() + alpha)).unsqueeze(1)
    gains[-1] = 0  # centred rows span a dimension less
    return (right.T @ (gains * (left.T @ (targets - targets.mean(0))))).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [2, 13, 29])
def test_the_dual_form_agrees_with_sixty_digits(dtype: torch.dtype, weighted: bool, n: int) -> None:
    states, targets = (part.to(dtype) for part in few(n, 30))
    weights = torch.rand(n, dtype=torch.float64, generator=GENERATOR) if weighted else None
    readout = Ridge(1e-3).fit(states, targets, weights)
    truth = exact(states, targets, 1e-3, weights)
    np.testing.assert_allclose(readout.weight.numpy(), truth, rtol=1e-9, atol=1e-11)
    w = torch.ones(n, dtype=torch.float64) if weights is None else weights
    mean = (w @ targets.double() - readout.weight @ (w @ states.double())) / w.sum()
    torch.testing.assert_close(readout.bias, mean, rtol=1e-10, atol=1e-12)
    assert readout.report[:1] + readout.report[-1:] == ("cholesky", "dual")
    assert readout.report.rows == n
    assert readout.report.rank == n - 1
    assert not readout.weight.isnan().any()


def test_condition_is_that_of_the_scatter() -> None:
    states, targets = few(40, 100)
    readout = Ridge(1e-5).fit(states, targets)
    centred = states - states.mean(0)
    largest = float(torch.linalg.matrix_norm(centred, 2)) ** 2
    assert 0.4 <= readout.condition_ / ((largest + 1e-5) / 1e-5) <= 1.3


@pytest.mark.parametrize("decades", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("alpha", [1e-9, 1e-6, 1e-2])
def test_it_is_used_only_where_it_is_safe(decades: float, alpha: float) -> None:
    """Predictions are then good to a hundredth of the residual, as those of the scatter are."""
    states, targets = few(60, 200, decades)
    readout = Ridge(alpha).fit(states, targets)
    centred, y = states - states.mean(0), targets - targets.mean(0)
    values = torch.linalg.svdvals(centred).square()
    if float(values[0]) / alpha * 2.0**-53 > 4e-2:
        assert readout.solver_ == "tsqr"
    if float(values[0]) / alpha * 2.0**-53 < 0.5e-2:
        assert readout.solver_ == "cholesky"
    expected = by_svd(states, targets, alpha)
    residual = (y - centred @ expected.T).square().mean().sqrt()
    error = (centred @ (readout.weight - expected).T).square().mean().sqrt()
    assert float(error) <= 1e-2 * float(residual) + 1e-12


@pytest.mark.parametrize("features", [3, 511, 512, 513, 1100])
def test_slices_of_features(features: int) -> None:
    states, targets = rows(40, 7)
    states = states[:, :1] * torch.randn(features, dtype=torch.float64, generator=GENERATOR)
    states += torch.randn(40, features, dtype=torch.float64, generator=GENERATOR)
    kept = Rows(features, 2)
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        kept.update(states[part], targets[part])
    centred = states - states.mean(0)
    torch.testing.assert_close(kept.kernel(), centred @ centred.T)
    torch.testing.assert_close(kept.targets(), targets - targets.mean(0))
    side = torch.randn(40, 2, dtype=torch.float64, generator=GENERATOR)
    torch.testing.assert_close(kept.combine(side), centred.T @ side)
    weight = torch.randn(2, features, dtype=torch.float64, generator=GENERATOR)
    left = targets - targets.mean(0) - centred @ weight.T
    torch.testing.assert_close(kept.errors(weight), left.square().sum(0))


@pytest.mark.parametrize("n", [20, 59, 60, 61, 130])
@pytest.mark.parametrize("block", [1, 17, 200])
def test_rows_become_a_scatter_once_they_are_many(n: int, block: int) -> None:
    """Whatever the blocks, partial fits are the fit of all rows, which are kept below F."""
    states, targets = rows(130, 60)
    readout = Ridge(1e-2, "cholesky")
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        given = states[part].clone()
        readout.partial_fit(given, targets[part])
        given.zero_()  # the caller's memory is the caller's
        if start <= 1 < part.stop < n:
            readout.finalize()  # an answer between does not disturb the sums
    readout.finalize()
    torch.testing.assert_close(
        readout.weight, primal(states[:n], targets[:n], 1e-2), rtol=1e-8, atol=1e-10
    )
    assert readout.report.form == ("dual" if n < 60 else "primal")
    assert isinstance(readout._pending.parts[0], Rows if n < 60 else Gram)


def test_without_intercept() -> None:
    """Rows are not centred then, and X X^T needs no penalty: the shortest W."""
    states, targets = few(20, 50)
    for alpha in (0.0, 0.1):
        readout = Ridge(alpha, "cholesky", intercept=False).fit(states, targets)
        inner = states @ states.T + alpha * torch.eye(20, dtype=torch.float64)
        expected = (states.T @ torch.linalg.solve(inner, targets)).T
        torch.testing.assert_close(readout.weight, expected, rtol=1e-7, atol=1e-9)
        assert not readout.bias.any()
        assert readout.report.form == "dual"
        assert readout.report.rank == 20


def test_no_penalty_gives_the_shortest_answer() -> None:
    states, targets = few(20, 50)
    readout = Ridge(0.0)
    passes = []
    update = readout.update
    readout.update = lambda *rows: passes.append(update(*rows))  # type: ignore[method-assign]
    readout.fit(states, targets)
    expected = (torch.linalg.pinv(states - states.mean(0), rtol=1e-12) @ targets).T
    torch.testing.assert_close(readout.weight, expected, rtol=1e-7, atol=1e-9)
    assert readout.report[:1] + readout.report[-1:] == ("tsqr", "primal")
    assert len(passes) == 1, "kept rows need no second pass"
    with pytest.raises(ValueError, match="solver 'cholesky' is not safe here"):
        Ridge(0.0, "cholesky").fit(states, targets)


@pytest.mark.parametrize("solver", ["auto", "tsqr"])
def test_gcv(solver: str) -> None:
    states, targets = few(40, 70, 1.5)
    alphas = [1e-3, 1e-1, 1.0, 10.0, 100.0]
    readout = Ridge(alphas, solver).fit(states, targets)
    scores = [gcv_by_hand(states, targets, alpha) for alpha in alphas]
    assert readout.alpha_ == alphas[int(np.argmin(scores))]
    assert readout.report.score == pytest.approx(min(scores), rel=1e-6)
    assert readout.report.form == ("dual" if solver == "auto" else "primal")
    for k, alpha in enumerate(alphas):
        expected = primal(states, targets, alpha)
        torch.testing.assert_close(readout.path[0][k], expected, rtol=1e-6, atol=1e-9)
    chosen = Ridge("gcv").fit(states, targets)
    assert chosen.report.form == "dual"
    torch.testing.assert_close(
        chosen.weight, by_svd(states, targets, chosen.alpha_), rtol=1e-9, atol=1e-12
    )


def test_blocked_folds() -> None:
    states, targets = few(43, 80, 1.0)
    alphas = [1e-2, 1.0, 100.0]
    readout = Ridge(alphas, criterion="kfold", folds=4).fit(states, targets)
    other = Ridge(alphas, "tsqr", criterion="kfold", folds=4).fit(states, targets)
    assert readout.report.form == "dual"
    assert readout.alpha_ == other.alpha_
    assert readout.report.score == pytest.approx(other.report.score, rel=1e-9)
    torch.testing.assert_close(readout.weight, other.weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("washout", [0, 30])
def test_short_series(washout: int) -> None:
    """A network with more units than steps: pieces, lists and one tensor are the same fit."""
    x = torch.sin(torch.arange(151.0, dtype=torch.float64)[:, None] * torch.tensor([0.3, 0.11]))
    options: dict[str, Any] = {"density": 0.1, "dtype": torch.float64}

    def network() -> ESN:
        return ESN(2, 2, reservoir=Reservoir(2, 300, **options), readout=Ridge(1e-6, "cholesky"))

    whole = network().fit(x[:-1], x[1:], washout=washout)
    assert whole.readout.report.form == "dual"
    states = whole.reservoir(x[:-1])[0][washout:]
    torch.testing.assert_close(
        whole.readout.weight, primal(states, x[1 + washout :], 1e-6), rtol=1e-5, atol=1e-6
    )
    pieces = ((x[i : i + 50], x[i + 1 : i + 51]) for i in (0, 50, 100))
    streamed = network().fit(pieces, washout=washout, continued=True)
    torch.testing.assert_close(streamed.readout.weight, whole.readout.weight)
    restored = network()
    restored.load_state_dict(whole.state_dict())
    assert restored.readout.report == whole.readout.report


def test_reports_from_before_there_was_a_form() -> None:
    states, targets = rows(50, 4)
    state = Ridge(0.1).fit(states, targets).state_dict()
    del state["_extra_state"]["report"]["form"]
    readout = Ridge()
    readout.load_state_dict(state)
    assert readout.report.form == "primal"


def test_an_interrupted_update_is_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ctrl-C leaves of a block is not solved from, and the last fit stays."""
    states, targets = rows(100, 6)
    readout = Ridge(0.1, "cholesky").fit(states, targets)
    weight = readout.weight
    readout.partial_fit(states[:50], targets[:50])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gram, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            readout.partial_fit(states[50:], targets[50:])
    for call in (readout.finalize, lambda: readout.partial_fit(states, targets)):
        with pytest.raises(ValueError, match=r"an interrupted update .* call reset\(\)"):
            call()
    assert torch.equal(readout.weight, weight)
    readout.reset()
    readout.partial_fit(states, targets)
    readout.finalize()
    torch.testing.assert_close(readout.weight, weight)
