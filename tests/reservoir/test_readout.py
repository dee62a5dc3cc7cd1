"""Ridge readouts: every solver against the normal equations in higher precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from _exact import exact, gcv_by_hand, rows
from fastrnn.reservoir._moments import EPSILON, CholeskyQR3, Gram, Triangle
from fastrnn.reservoir._solve import SAFE, by_cholesky
from fastrnn.reservoir.ridge import Ridge

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("solver", ["cholesky", "tsqr", "cholqr3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_solvers_agree_with_sixty_digits(solver: str, dtype: torch.dtype, weighted: bool) -> None:
    states, targets = (part.to(dtype) for part in rows(61, 7, 2.0))
    weights = torch.rand(61, dtype=torch.float64, generator=GENERATOR) if weighted else None
    readout = Ridge(1e-3, solver).fit(states, targets, weights)
    truth = exact(states, targets, 1e-3, weights)
    np.testing.assert_allclose(readout.weight.numpy(), truth, rtol=1e-10, atol=1e-12)
    w = torch.ones(61, dtype=torch.float64) if weights is None else weights
    mean = (w @ targets.double() - readout.weight @ (w @ states.double())) / w.sum()
    torch.testing.assert_close(readout.bias, mean, rtol=1e-10, atol=1e-12)
    assert readout.report.solver == solver
    assert readout.report.rows == 61


def test_the_loss_is_a_sum() -> None:
    """Twice the rows need twice the penalty."""
    states, targets = rows(50, 5)
    once = Ridge(0.3).fit(states, targets)
    twice = Ridge(0.6).fit(states.repeat(2, 1), targets.repeat(2, 1))
    torch.testing.assert_close(once.weight, twice.weight)


def test_a_weight_counts_rows() -> None:
    states, targets = rows(50, 5)
    counts = torch.arange(50) % 3
    repeated = Ridge(0.1).fit(*(part.repeat_interleave(counts, 0) for part in (states, targets)))
    weighted = Ridge(0.1).fit(states, targets, counts.double())
    torch.testing.assert_close(repeated.weight, weighted.weight)
    torch.testing.assert_close(repeated.bias, weighted.bias)


@pytest.mark.parametrize("solver", ["cholesky", "tsqr", "cholqr3"])
def test_without_intercept(solver: str) -> None:
    states, targets = rows(80, 6)
    readout = Ridge(0.1, solver, intercept=False).fit(states, targets)
    gram = states.T @ states + 0.1 * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(gram, states.T @ targets).T
    torch.testing.assert_close(readout.weight, expected, rtol=1e-9, atol=1e-11)
    assert not readout.bias.any()


@pytest.mark.parametrize("decades", [5.0, 6.0, 6.5, 6.8, 6.95, 7.1, 8.0, 10.0])
def test_cholesky_is_used_only_where_it_is_safe(decades: float) -> None:
    """Where cond(S + alpha I) * 2^-53 <= 1e-2 its predictions are good to about that."""
    states, targets = rows(400, 30, decades)
    gram = Gram(30, 2)
    gram.update(states, targets)
    solution = by_cholesky(gram, 0.0)
    true_condition = float(torch.linalg.cond(states - states.mean(0))) ** 2
    if true_condition * EPSILON > 4 * SAFE:
        assert solution is None
        return
    if solution is None:
        assert true_condition * EPSILON > SAFE
        return
    assert 0.4 * true_condition <= solution.condition <= 1.3 * true_condition
    centred = states - states.mean(0)
    expected = torch.linalg.lstsq(centred, targets - targets.mean(0)).solution.T
    error = (solution.weight - expected) @ (centred.T / math.sqrt(400))
    noise = float((targets - targets.mean(0) - centred @ expected.T).std())
    assert float(error.abs().max()) <= SAFE * noise * 10
    assert float((solution.weight - expected).norm() / expected.norm()) <= SAFE * 10


@pytest.mark.parametrize("solver", ["tsqr", "cholqr3"])
@pytest.mark.parametrize("decades", [6.0, 9.0, 12.0])
def test_qr_solvers_hold_where_the_scatter_is_lost(solver: str, decades: float) -> None:
    """Residuals are those of LAPACK's least squares on the whole matrix."""
    states, targets = rows(500, 40, decades)
    readout = Ridge(0.0, solver).fit(states, targets)
    centred, y = states - states.mean(0), targets - targets.mean(0)
    best = torch.linalg.lstsq(centred, y, driver="gelsd", rcond=1e-16).solution
    residual = (targets - readout(states)).square().sum()
    # What rounding leaves of a fit grows with the condition, and differs between BLAS kernels.
    excess = max(1e-6, 1e-17 * 10**decades)
    assert float(residual) <= float((y - centred @ best).square().sum()) * (1 + excess)
    assert 0.3 <= readout.condition_ / float(torch.linalg.cond(centred)) <= 3


def test_auto_goes_from_cholesky_to_qr() -> None:
    states, targets = rows(400, 30, 1.0)
    assert Ridge(1e-6).fit(states, targets).solver_ == "cholesky"
    states, targets = rows(400, 30, 11.0)
    assert Ridge(1e-25).fit(states, targets).solver_ == "tsqr"
    assert Ridge(1.0).fit(states, targets).solver_ == "cholesky"
    readout = Ridge(1.0).partial_fit(states, targets)
    readout.finalize()
    assert readout.solver_ == "tsqr"


@pytest.mark.parametrize("solver", ["auto", "tsqr"])
def test_singular_without_penalty_gives_the_shortest_answer(solver: str) -> None:
    states, targets = rows(100, 10)
    states = torch.cat([states, states[:, :4], states.new_full((100, 1), 2.0)], 1)
    readout = Ridge(0.0, solver).fit(states, targets)
    centred, y = states - states.mean(0), targets - targets.mean(0)
    expected = (torch.linalg.pinv(centred, rtol=1e-12) @ y).T
    torch.testing.assert_close(readout.weight, expected, rtol=1e-8, atol=1e-10)
    assert readout.report.rank == 10


def test_cholesky_refuses_singular_states_and_keeps_the_last_fit() -> None:
    states, targets = rows(100, 10)
    readout = Ridge(1.0, "cholesky").fit(states, targets)
    weight = readout.weight.clone()
    readout.alpha = 0.0
    with pytest.raises(
        ValueError, match=r"Ridge: solver 'cholesky' is not safe here.*use a larger"
    ):
        readout.fit(torch.cat([states, states], 1), targets)
    assert torch.equal(readout.weight, weight)
    assert readout.report.alpha == 1.0


def test_cholesky_qr_refuses_a_constant_state() -> None:
    states, targets = rows(100, 10)
    states[:, 3] = 2.0
    with pytest.raises(ValueError, match=r"Ridge: solver 'cholqr3' cannot factor.*use"):
        Ridge(0.0, "cholqr3").fit(states, targets)


def test_fewer_rows_than_features() -> None:
    states, targets = rows(40, 40)
    states, targets = states[:12], targets[:12]
    readout = Ridge(0.0).fit(states, targets)
    torch.testing.assert_close(readout(states), targets, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_order_of_blocks_does_not_matter(kind: type) -> None:
    states, targets = rows(300, 8)
    states[:3] += 1e6  # a first block far from the mean of all
    whole = kind(8, 2)
    whole.update(states, targets)
    parts = list(zip(states.split(37), targets.split(37), strict=True))
    left, right = kind(8, 2), kind(8, 2)
    for i, part in enumerate(parts[::-1]):
        (left if i % 2 else right).update(*part)
    left.merge(right)
    torch.testing.assert_close(left.mean, whole.mean, rtol=1e-12, atol=1e-12)
    z = torch.cat([states, targets], 1)
    expected = (z - z.mean(0)).T @ (z - z.mean(0))
    for sums in (left, whole):
        joint = sums.joint() if isinstance(sums, Gram) else sums.factor().T @ sums.factor()
        torch.testing.assert_close(joint, expected, rtol=1e-9, atol=1e-3)


def test_partial_fit_in_any_order_and_more_rows_after_the_end() -> None:
    states, targets = rows(200, 8, 9.0)
    expected = Ridge(0.0, "tsqr").fit(states, targets)
    readout = Ridge(0.0)
    for part in torch.arange(150).split(11)[::-1]:
        readout.partial_fit(states[part], targets[part])
    readout.finalize()
    readout.partial_fit(states[150:], targets[150:])
    readout.finalize()
    torch.testing.assert_close(readout(states), expected(states), rtol=1e-7, atol=1e-7)


def test_columns_of_very_different_sizes() -> None:
    states, targets = rows(200, 9)
    scale = torch.logspace(-9, 9, 9, dtype=torch.float64)
    plain = Ridge(0.0, "cholqr3").fit(states, targets)
    scaled = Ridge(0.0, "cholqr3").fit(states * scale, targets * 1e9)
    torch.testing.assert_close(scaled.weight * scale / 1e9, plain.weight, rtol=1e-9, atol=1e-11)


def test_means_far_from_zero_do_not_cancel() -> None:
    states, targets = rows(300, 5)
    shifted = Ridge(0.1).fit(states + 1e7, targets)
    torch.testing.assert_close(
        shifted.weight, Ridge(0.1).fit(states, targets).weight, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("solver", ["cholesky", "tsqr", "cholqr3", "auto"])
def test_gcv_is_the_textbooks(solver: str) -> None:
    states, targets = rows(60, 20, 1.5)
    alphas = [1e-3, 1e-1, 1.0, 10.0, 100.0]
    readout = Ridge(alphas, solver).fit(states, targets)
    scores = [gcv_by_hand(states, targets, alpha) for alpha in alphas]
    assert readout.alpha_ == alphas[int(np.argmin(scores))]
    assert readout.report.score == pytest.approx(min(scores), rel=1e-6)
    for k, alpha in enumerate(alphas):
        alone = Ridge(alpha).fit(states, targets)
        torch.testing.assert_close(readout.path[0][k], alone.weight, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(readout.path[1][k], alone.bias, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["cholesky", "tsqr"])
def test_blocked_folds(solver: str) -> None:
    states, targets = rows(103, 10, 1.0)
    alphas = [1e-2, 1.0, 100.0]
    readout = Ridge(alphas, solver, criterion="kfold", folds=4).fit(states, targets)
    scores = []
    for alpha in alphas:
        error = torch.zeros(2, dtype=torch.float64)
        for fold in torch.arange(103).split(26):
            keep = torch.ones(103, dtype=torch.bool)
            keep[fold] = False
            alone = Ridge(alpha).fit(states[keep], targets[keep])
            error += (targets[fold] - alone(states[fold])).square().sum(0)
        scores.append(float((error / (targets - targets.mean(0)).square().sum(0)).mean()))
    assert readout.alpha_ == alphas[int(np.argmin(scores))]
    assert readout.report.score == pytest.approx(min(scores), rel=1e-9)


@pytest.mark.parametrize("alpha", ["gcv", "kfold"])
def test_search_without_candidates(alpha: str) -> None:
    """Noise calls for a penalty, which Cholesky is enough for; without noise QR goes below."""
    states, targets = rows(200, 50, 4.0)
    noisy = Ridge(alpha).fit(states, targets)
    assert noisy.solver_ == "cholesky"
    assert noisy.alpha_ > 1e-6
    clean = Ridge(alpha).fit(states, states @ torch.ones(50, 2, dtype=torch.float64))
    assert clean.solver_ in ("cholqr3", "tsqr")
    assert clean.alpha_ < 1e-9


def test_an_alpha_for_each_output() -> None:
    states, targets = rows(200, 50, 3.0)
    noise = torch.randn(200, dtype=torch.float64, generator=GENERATOR)
    targets = torch.stack([targets[:, 0], noise], 1)
    both = Ridge("gcv", per_output=True).fit(states, targets)
    for k in range(2):
        alone = Ridge("gcv").fit(states, targets[:, k])
        assert both.alpha_[k] == pytest.approx(alone.alpha_)
        torch.testing.assert_close(both.weight[k], alone.weight[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha must be finite and at least 0, got -1.0"),
        ({"alpha": float("nan")}, "alpha must be finite"),
        ({"alpha": [1.0, -2.0]}, "alpha must be finite and at least 0, got -2.0"),
        ({"alpha": []}, "alpha must hold at least one"),
        ({"alpha": None}, "alpha must be a number"),
        ({"alpha": "loo"}, "alpha must be a number"),
        ({"solver": "svd"}, "solver must be one of"),
        ({"criterion": "aic"}, "criterion must be"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"fold_length": 0}, "fold_length must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"Ridge: {message}"):
        Ridge(**arguments)


def test_bad_rows_leave_the_last_fit() -> None:
    states, targets = rows(50, 4)
    readout = Ridge()
    with pytest.raises(ValueError, match="Ridge: forward needs a fit"):
        readout(states)
    with pytest.raises(ValueError, match="Ridge: finalize needs rows"):
        readout.finalize()
    readout.fit(states, targets)
    before = readout(states)
    broken = states.clone()
    broken[7, 2] = float("nan")
    for arguments, message in [
        ((broken, targets), "states must be finite, got NaN or infinity in column 2"),
        ((states, broken), "targets must be finite, got NaN or infinity in column 2"),
        ((states, targets[:-1]), "targets must have shape"),
        ((states[:0], targets[:0]), "states must have shape"),
        ((states[:1], targets[:1]), "states must have at least 2 rows"),
        ((states, targets, torch.ones(49)), "sample_weight must have shape"),
        ((states, targets, -torch.ones(50)), "sample_weight must be finite and at least 0"),
    ]:
        with pytest.raises(ValueError, match=f"Ridge: {message}"):
            readout.fit(*arguments)
    assert torch.equal(readout(states), before)
    with pytest.raises(ValueError, match="Ridge: states must have 4 features"):
        readout(states[:, :3])


def test_state_dict_brings_fit_and_configuration() -> None:
    states, targets = rows(50, 4)
    readout = Ridge("gcv", per_output=True).fit(states, targets)
    other = Ridge(1.0)
    other.load_state_dict(readout.state_dict())
    assert torch.equal(other(states), readout(states))
    assert other.report == readout.report
    assert other.config() == readout.config()
    fresh = Ridge()
    fresh.load_state_dict(Ridge(2.0).state_dict())
    assert not fresh.fitted
    assert fresh.alpha == 2.0


def test_cholesky_qr_has_the_singular_values_of_the_rows() -> None:
    """To rounding of the largest, as Householder reflections have; the scatter alone loses half."""
    states, targets = rows(600, 50, 13.0)
    gram = Gram(50, 2)
    gram.update(states, targets)
    factor = CholeskyQR3(gram)
    for _ in range(2):
        factor.update(states, targets)
        factor.advance()
    z = torch.cat([states, targets], 1)
    expected = torch.linalg.svdvals(z - z.mean(0))
    found = torch.linalg.svdvals(factor.factor())
    assert float((found - expected).abs().max()) <= 1e-14 * float(expected.max())
    assert float(expected.min()) < 1e-11 * float(expected.max())
