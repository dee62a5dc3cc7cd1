"""Readouts for classes, and any scikit-learn estimator as a readout. These keep their rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .readout import LinearReadout, Readout


class Logistic(LinearReadout):
    """Softmax regression: scores y = W s + b whose softmax are the classes' probabilities.

    Minimises sum_t w_t CE(softmax(W s_t + b), y_t) + alpha / 2 |W|^2 over standardised states by
    L-BFGS in float64. All rows of a fit are kept until ``finalize``, so it is meant for one row a
    series (pooling), or for short data.

    Args:
        alpha: the penalty, >= 0; above 0 the minimum is unique. Default 1.
        max_steps: of L-BFGS, >= 1. Default 300.

    Attributes:
        weight, bias: of the states as they come, float64.

    Shape:
        Input (..., features), output (..., classes): scores, not probabilities.

    Raises:
        ValueError: if an argument is out of range.

    Source: D. Cox, The regression analysis of binary sequences (1958).
    """

    def __init__(self, alpha: float = 1.0, max_steps: int = 300) -> None:
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"Logistic: alpha must be finite and at least 0, got {alpha}")
        if max_steps < 1:
            raise ValueError(f"Logistic: max_steps must be at least 1, got {max_steps}")
        self.alpha, self.max_steps = alpha, max_steps

    def begin(
        self, features: int, outputs: int, rows: int | None = None, repeat: str = "exact"
    ) -> None:
        """Start a fit; see ``Readout.begin``."""
        if outputs < 2:
            raise ValueError(f"Logistic: output_size must be at least 2 classes, got {outputs}")
        self._pending = []

    def update(self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> None:
        """Keep rows: states and probabilities (or ones and zeros) of the classes."""
        self._require_pending().append(_kept(states, targets, sample_weight))

    @torch.enable_grad()
    def finalize(self) -> None:
        """Fit all rows that came."""
        states, targets, weights = _joined(self._require_pending(), "Logistic")
        if weights is None:
            weights = torch.ones(len(states), dtype=torch.float64)
        mean = states.mean(0)
        scale = states.std(0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        rows = (states - mean) / scale
        weight = torch.zeros(targets.shape[1], rows.shape[1], dtype=torch.float64)
        bias = torch.zeros(targets.shape[1], dtype=torch.float64)
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=self.max_steps,
            tolerance_grad=1e-9 * len(rows),
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            scores = nn.functional.linear(rows, weight, bias)
            error = nn.functional.cross_entropy(scores, targets, reduction="none")
            total = (weights * error).sum() + self.alpha / 2 * weight.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        plain = weight.detach() / scale
        self._commit(plain, bias.detach() - plain @ mean)


class SklearnReadout(Readout):
    """Any scikit-learn regressor or classifier as a readout.

    Rows are kept until ``finalize`` fits a fresh clone to them. A classifier is fitted to the class
    of the largest target, and its output is its probabilities, or one-hot classes where it has no
    ``predict_proba``.

    Args:
        estimator: what has scikit-learn's ``fit`` and ``predict``.

    Shape:
        Input (..., features), output (..., outputs).
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator
        self.fitted_estimator: Any = None
        self._outputs = 0

    @property
    def fitted(self) -> bool:
        """Whether there is a fit to predict with."""
        return self.fitted_estimator is not None

    def begin(
        self, features: int, outputs: int, rows: int | None = None, repeat: str = "exact"
    ) -> None:
        """Start a fit; see ``Readout.begin``."""
        self._pending = []

    def update(self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> None:
        """Keep rows."""
        self._require_pending().append(_kept(states, targets, sample_weight))

    def finalize(self) -> None:
        """Fit a clone of the estimator to all rows that came."""
        from sklearn.base import clone, is_classifier

        states, targets, weights = _joined(self._require_pending(), "SklearnReadout")
        fresh = clone(self.estimator)
        wanted = targets.argmax(1) if is_classifier(fresh) else targets
        wanted = wanted.squeeze(1) if wanted.dim() == 2 and wanted.shape[1] == 1 else wanted
        options = {} if weights is None else {"sample_weight": weights.numpy()}
        fresh.fit(states.numpy(), wanted.numpy(), **options)
        self.fitted_estimator, self._outputs = fresh, targets.shape[1]

    def forward(self, states: Tensor) -> Tensor:
        """Return the estimator's predictions; there are no gradients."""
        from sklearn.base import is_classifier

        self._require_fit()
        fitted = self.fitted_estimator
        rows = states.detach().double().reshape(-1, states.shape[-1]).numpy()
        if not is_classifier(fitted):
            found = torch.as_tensor(fitted.predict(rows), dtype=states.dtype)
        else:
            classes = torch.as_tensor(fitted.classes_)
            found = torch.zeros(len(rows), self._outputs, dtype=states.dtype)
            if hasattr(fitted, "predict_proba"):
                found[:, classes] = torch.as_tensor(fitted.predict_proba(rows), dtype=states.dtype)
            else:
                found[torch.arange(len(rows)), torch.as_tensor(fitted.predict(rows))] = 1
        return found.reshape(*states.shape[:-1], self._outputs)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the fitted estimator, which ``torch.save`` pickles."""
        return {"estimator": self.fitted_estimator, "outputs": self._outputs}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take a fitted estimator."""
        self.fitted_estimator, self._outputs = state["estimator"], state["outputs"]


def _kept(
    states: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return states.double().clone(), targets.double().clone(), weights


def _joined(
    rows: list[tuple[Tensor, Tensor, Tensor | None]], owner: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    if not rows:
        raise ValueError(f"{owner}: finalize needs rows, and none came; call partial_fit() first")
    weights = [part[2] for part in rows if part[2] is not None]
    if weights and len(weights) < len(rows):
        raise ValueError(f"{owner}: sample_weight must be given for all rows or none")
    states, targets = (torch.cat([part[i] for part in rows]) for i in (0, 1))  # type: ignore[misc]
    return states, targets, torch.cat(weights) if weights else None
