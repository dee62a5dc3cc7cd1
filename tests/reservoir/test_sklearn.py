"""The estimators keep scikit-learn's contract."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", reason="the estimators need scikit-learn")

from sklearn.model_selection import GridSearchCV, TimeSeriesSplit  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from fastrnn.reservoir import ESNClassifier, ESNRegressor  # noqa: E402

ROWS_ARE_TIME = dict.fromkeys(
    ("check_methods_sample_order_invariance", "check_methods_subset_invariance"),
    "rows are the steps of a series, so their order matters",
)


@pytest.mark.parametrize("estimator", [ESNRegressor, ESNClassifier])
def test_check_estimator(estimator: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            estimator(hidden_size=30), expected_failed_checks=ROWS_ARE_TIME, on_fail=None
        )
    bad = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert not bad
    expected = {r["check_name"] for r in results if r["status"] == "xfail"}
    assert expected == set(ROWS_ARE_TIME)


def test_a_search_over_a_series() -> None:
    x = np.sin(np.arange(400) * 0.2)[:, None] + np.sin(np.arange(400) * 0.077)[:, None]
    search = GridSearchCV(
        ESNRegressor(hidden_size=50, washout=20),
        {"spectral_radius": [0.5, 0.9], "alpha": [1e-6, 1e-2]},
        cv=TimeSeriesSplit(3),
    )
    search.fit(x[:-1], x[1:, 0])
    assert search.best_score_ > 0.95


def test_classes_that_only_memory_tells_apart() -> None:
    """The sign of the step before."""
    x = np.random.default_rng(0).uniform(-1, 1, (1500, 1))
    y = np.where(np.roll(x[:, 0], 1) > 0, "up", "down")
    model = ESNClassifier(hidden_size=100, leak=1.0).fit(x[:1000], y[:1000])
    assert model.score(x[1000:], y[1000:]) > 0.95
