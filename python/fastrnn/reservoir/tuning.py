"""Search for good reservoirs: Optuna proposes populations, which run in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._moments import Gram
from ._series import Reader
from ._solve import Spectrum, validation_error
from .esn import ESN
from .population import Population
from .reservoir import Reservoir
from .ridge import Ridge

BLOCK = 512


@dataclass
class Tuning:
    """What ``tune`` found."""

    parameters: dict[str, float]
    """The best arguments of ``Reservoir``."""
    alpha: float
    """The best penalty for them."""
    score: float
    """Their validation error: mean square error over the targets' variance, mean over outputs."""
    study: Any
    """The ``optuna.Study``; each trial's alpha is its user attribute."""
    esn: ESN
    """A network with the best reservoir, fitted to all of the data."""

    def plot(self) -> Any:
        """Return a matplotlib figure of the error over each parameter and over the trials."""
        from matplotlib.figure import Figure

        trials = [trial for trial in self.study.trials if trial.value is not None]
        names = [*self.parameters, "trial"]
        figure = Figure(figsize=(3 * len(names), 3), layout="constrained")
        for axes, name in zip(
            figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True
        ):
            at = [trial.number if name == "trial" else trial.params[name] for trial in trials]
            axes.scatter(at, [trial.value for trial in trials], s=12, alpha=0.6)
            axes.set(xlabel=name, yscale="log")
            if name == "input_scaling":
                axes.set_xscale("log")
            if name in self.parameters:
                axes.axvline(self.parameters[name], color="tab:red", linewidth=1)
        figure.axes[0].set_ylabel("validation error (NMSE)")
        return figure


def propose(trial: Any) -> dict[str, float]:
    """Return the default space: radius 0.1 to 1.5, leak, input scaling and bias."""
    return {
        "spectral_radius": trial.suggest_float("spectral_radius", 0.1, 1.5),
        "leak": trial.suggest_float("leak", 0.05, 1.0, log=True),
        "input_scaling": trial.suggest_float("input_scaling", 0.01, 10.0, log=True),
        "bias": trial.suggest_float("bias", 0.0, 1.0),
    }


def tune(
    x: Tensor,
    y: Tensor,
    *,
    hidden_size: int = 200,
    trials: int = 64,
    population: int = 16,
    washout: int = 100,
    validation: float = 0.25,
    space: Callable[[Any], dict[str, float]] = propose,
    study: Any = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Tuning:
    """Search for the reservoir with the smallest error on the last part of a series.

    Optuna proposes ``population`` reservoirs at a time. They run side by side over the series;
    sums over the training and the validation rows then give the error of every alpha, so alpha is
    no part of the search.

    Args:
        x: (T, I).
        y: (T, O).
        hidden_size: N.
        trials: reservoirs tried, >= 1. Default 64.
        population: of these at a time, >= 1. Default 16.
        washout: steps at the start that are not fitted.
        validation: share of the steps, the last ones, that the error is measured on, in (0, 1).
        space: what asks an ``optuna`` trial for arguments of ``Reservoir``.
        study: an ``optuna.Study`` that minimises, to go on with; default a new one with the TPE
            sampler.
        seed: of the sampler and the reservoirs.
        progress: whether to show a bar (tqdm).
        options: further arguments of ``Reservoir``, the same for all.

    Returns:
        ``Tuning``: the best arguments, alpha, error, the study and a fitted network.

    Raises:
        ValueError: if an argument is out of range or shapes do not fit.
        ImportError: without Optuna.
    """
    import optuna

    _check(trials, population, validation)
    options = {"dtype": x.dtype if x.is_floating_point() else torch.float64} | options
    piece = Reader(x.shape[-1], y.shape[-1], False, False, options["dtype"]).piece(x, y, None)
    series, targets = piece.x[:, 0], piece.y[:, 0].double()
    cut = round(series.shape[0] * (1 - validation))
    if not washout + 2 <= cut < series.shape[0]:
        raise ValueError(
            f"tune: washout must leave at least 2 of the {cut} training steps, got {washout}"
        )
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "seed": seed} | options
    if study is None:
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        optuna.logging.set_verbosity(verbosity)
    bar = _bar(trials, progress)
    done = 0
    while done < trials:
        count = min(population, trials - done)
        asked = [study.ask() for _ in range(count)]
        members = [Reservoir(series.shape[1], **(sizes | space(trial))) for trial in asked]
        found = _errors(Population(members), series, targets, washout, cut)
        for trial, (score, alpha) in zip(asked, found, strict=True):
            trial.set_user_attr("alpha", alpha)
            study.tell(trial, score)
        done += count
        bar.update(count)
        bar.set_postfix(nmse=f"{study.best_value:.2e}")
    bar.close()
    best = study.best_trial
    alpha = best.user_attrs["alpha"]
    res = Reservoir(series.shape[1], **(sizes | space(optuna.trial.FixedTrial(best.params))))
    esn = ESN(series.shape[1], targets.shape[1], reservoir=res, readout=Ridge(alpha))
    esn.fit(x, y, washout)
    return Tuning(dict(best.params), alpha, float(best.value), study, esn)


def _check(trials: int, population: int, validation: float) -> None:
    if trials < 1:
        raise ValueError(f"tune: trials must be at least 1, got {trials}")
    if population < 1:
        raise ValueError(f"tune: population must be at least 1, got {population}")
    if not 0 < validation < 1:
        raise ValueError(f"tune: validation must be in (0, 1), got {validation}")


def _bar(trials: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=trials, desc="tune", unit="reservoir", disable=not progress)


@torch.no_grad()
def _errors(
    members: Population, x: Tensor, y: Tensor, washout: int, cut: int
) -> list[tuple[float, float]]:
    """Return the smallest validation error of each member, and its alpha."""
    members.eval()
    N, O = members.output_size, y.shape[1]
    sums = [(Gram(N, O), Gram(N, O)) for _ in range(members.members)]
    h = None
    for start in range(0, x.shape[0], BLOCK):
        states, h = members(x[start : start + BLOCK], h)
        stop = start + states.shape[1]
        parts = (max(start, washout), min(stop, cut)), (max(start, cut), stop)
        for m, both in enumerate(sums):
            for gram, (low, high) in zip(both, parts, strict=True):
                if low < high:
                    gram.update(states[m, low - start : high - start], y[low:high])
    variance = y[cut:].var(0, correction=0).clamp_min(1e-300)
    return [_best(train, test, variance) for train, test in sums]


def _best(train: Gram, test: Gram, variance: Tensor) -> tuple[float, float]:
    spectrum = Spectrum(train)
    best = (float("inf"), spectrum.largest)
    for i in range(29):
        alpha = (spectrum.largest or 1.0) * 10.0 ** (-0.5 * i)
        if spectrum.resolves(alpha) or i == 0:
            weight = spectrum.coefficients(alpha)
            bias = train.mean[train.features :] - weight @ train.mean[: train.features]
            error = validation_error(test, weight, bias) / test.weight
            best = min(best, (float((error / variance).mean()), alpha))
    return best
