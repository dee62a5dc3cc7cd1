"""Echo state networks as scikit-learn estimators; importing this needs scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .esn import ESN
from .ridge import Ridge


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: parameters, and rows as the steps of one series."""

    def __init__(
        self,
        hidden_size: int = 200,
        *,
        spectral_radius: float = 0.9,
        leak: float = 0.3,
        density: float = 0.1,
        input_scaling: float = 1.0,
        bias: float = 0.1,
        input_to_readout: bool = True,
        alpha: Any = 1e-2,
        solver: str = "auto",
        washout: int = 0,
        random_state: Any = 0,
    ) -> None:
        self.hidden_size = hidden_size
        self.spectral_radius = spectral_radius
        self.leak = leak
        self.density = density
        self.input_scaling = input_scaling
        self.bias = bias
        self.input_to_readout = input_to_readout
        self.alpha = alpha
        self.solver = solver
        self.washout = washout
        self.random_state = random_state

    def _fit(self, X: Any, y: Tensor) -> None:
        if len(X) <= self.washout + 1:
            raise ValueError(
                f"{type(self).__name__}: X must have more rows than washout + 1 = "
                f"{self.washout + 1}, got n_samples={len(X)}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        esn = ESN(
            X.shape[1],
            y.shape[1],
            self.hidden_size,
            readout=Ridge(self.alpha, self.solver),
            input_to_readout=self.input_to_readout,
            spectral_radius=self.spectral_radius,
            leak=self.leak,
            density=self.density,
            input_scaling=self.input_scaling,
            bias=self.bias,
            seed=seed,
            dtype=torch.float64,
        )
        esn.fit(torch.tensor(X), y, self.washout)
        self.esn_ = esn

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        outputs: np.ndarray = self.esn_.predict(torch.tensor(X)).numpy()
        return outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = False
        return tags


class ESNRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """Regression by an echo state network: the rows of X are the steps of one series.

    So the order of rows matters, and ``predict`` starts from the zero state. Cross-validate with
    ``sklearn.model_selection.TimeSeriesSplit``.

    Args:
        hidden_size, spectral_radius, leak, density, input_scaling, bias: of the ``Reservoir``.
        input_to_readout: whether the readout sees X itself too.
        alpha, solver: of ``Ridge``.
        washout: rows at the start that are not fitted, >= 0.
        random_state: seed of the reservoir, as in scikit-learn.

    Attributes:
        esn_: the fitted ``ESN``.
        n_features_in_: features of X.
    """

    def fit(self, X: Any, y: Any) -> ESNRegressor:
        """Fit X (n, features) and y (n,) or (n, outputs).

        Raises:
            ValueError: for wrong shapes or values.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self._single = y.ndim == 1
        targets = torch.tensor(np.asarray(y, dtype=np.float64))
        self._fit(X, targets.unsqueeze(1) if self._single else targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return (n,) or (n, outputs) for X (n, features), from the zero state."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._single else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class ESNClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Classification of each step of a series by an echo state network: rows of X are steps.

    Ridge regression to one-hot classes; see ``ESNRegressor`` for the parameters and for what the
    order of rows means.

    Attributes:
        esn_: the fitted ``ESN``.
        classes_: the classes.
        n_features_in_: features of X.
    """

    def fit(self, X: Any, y: Any) -> ESNClassifier:
        """Fit X (n, features) and the classes y (n,).

        Raises:
            ValueError: for wrong shapes or values, or a single class.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "ESNClassifier: y must hold at least 2 classes, got one class, "
                f"{self.classes_[0]!r}"
            )
        targets = torch.nn.functional.one_hot(torch.tensor(numbers), len(self.classes_)).double()
        self._fit(X, targets)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores (n, classes), or (n,), positive for the second of two classes."""
        outputs = self._outputs(X)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of each row of X, from the zero state."""
        outputs = self._outputs(X)
        classes: np.ndarray = self.classes_[outputs.argmax(1)]
        return classes
