"""The search finds what is better, in populations, and its alpha is the best of its path."""

from __future__ import annotations

import pytest
import torch

optuna = pytest.importorskip("optuna", reason="tune needs Optuna")

from fastrnn.reservoir import ESN, Reservoir, Ridge, datasets, tune  # noqa: E402


def test_the_search_reports_what_a_network_scores() -> None:
    u, y = datasets.narma10(900, seed=0)
    result = tune(u, y, hidden_size=40, trials=24, population=8, density=0.2, progress=False)
    values = [trial.value for trial in result.study.trials]
    assert len(values) == 24
    assert result.score == min(values) < 0.5 * sorted(values)[12]
    cut = 675
    res = Reservoir(1, 40, density=0.2, dtype=torch.float64, **result.parameters)
    alone = ESN(1, 1, reservoir=res, readout=Ridge(result.alpha)).fit(u[:cut], y[:cut], 100)
    error = (alone.predict(u)[cut:] - y[cut:]).square().mean() / y[cut:].var(correction=0)
    assert float(error) == pytest.approx(result.score, rel=1e-3)
    assert result.esn.readout.report.alpha == result.alpha
    again = tune(u, y, hidden_size=40, trials=24, population=8, density=0.2, progress=False)
    assert again.parameters == result.parameters


def test_the_picture() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    u, y = datasets.narma10(400, seed=0)
    result = tune(u, y, hidden_size=20, trials=3, population=2, density=0.2, progress=True)
    assert [axes.get_xlabel() for axes in result.plot().axes] == [*result.parameters, "trial"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be at least 1"),
        ({"population": 0}, "population must be at least 1"),
        ({"validation": 1.0}, r"validation must be in \(0, 1\)"),
        ({"washout": 400}, "washout must leave"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    u, y = datasets.narma10(400)
    with pytest.raises(ValueError, match=f"tune: {message}"):
        tune(u, y, **options)
