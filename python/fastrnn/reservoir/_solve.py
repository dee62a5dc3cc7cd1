"""Ridge regression from the sums of ``_moments``: one alpha by a factor, many by a spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._moments import EPSILON, CholeskyQR3, Gram, Moments, Triangle, merged
from ._rows import Rows

SAFE = 1e-2
"""Cholesky of the scatter is used where cond(S + alpha I) * 2^-53 is at most this."""
TINY = 1e-300
RESOLVED = 1e-12
"""Residuals below this part of the targets' square are lost in the rounding of a scatter."""


@dataclass
class Solution:
    """Coefficients W (outputs, features) of centred rows, with the condition they were got at."""

    weight: Tensor
    condition: float
    rank: int


def is_safe(condition: float) -> bool:
    """Tell whether a Cholesky factor of a scatter of this condition gives a usable answer."""
    return condition * EPSILON <= SAFE


def estimate_condition(
    multiply: Callable[[Tensor], Tensor], divide: Callable[[Tensor], Tensor], size: int
) -> float:
    """Estimate the 2-norm condition of a symmetric matrix from products with it and its inverse.

    Low by a factor of 2 at worst in practice, at O(F^2) a step.
    """
    return _power_norm(multiply, size) * _power_norm(divide, size)


def _power_norm(apply: Callable[[Tensor], Tensor], size: int) -> float:
    """Return about the largest eigenvalue, from below, by power iteration on four vectors.

    Up to eight steps from a fixed seed; fewer once a step adds less than a thousandth: even of
    5,000 equal eigenvalues, one that is twice as large would still add more.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(size, 4, dtype=torch.float64, generator=generator)
    found = 0.0
    for _ in range(8):
        before = found
        vectors = apply(vectors / vectors.norm(dim=0).clamp_min(TINY))
        found = float(vectors.norm(dim=0).max())
        if found <= before * 1.001:
            break
    return found


def by_cholesky(moments: Gram | Rows, alpha: float) -> Solution | None:
    """Solve (S_xx + alpha I) W^T = S_xy, or return ``None`` where that is not safe.

    Of rows X that were kept: (X X^T + alpha I) C = Y, W^T = X^T C, which is the same W.
    """
    if isinstance(moments, Rows):
        matrix, sides = moments.kernel(), moments.targets()
    else:
        matrix, sides, _ = moments.scatter()
    matrix.diagonal().add_(alpha)
    factor, failed = torch.linalg.cholesky_ex(matrix, upper=True)
    if int(failed):
        return None

    def divide(vectors: Tensor) -> Tensor:
        return torch.cholesky_solve(vectors, factor, upper=True)

    condition = estimate_condition(matrix.matmul, divide, len(matrix))
    if not is_safe(condition):
        return None
    solved = divide(sides)
    weight = moments.combine(solved).T if isinstance(moments, Rows) else solved.T
    return Solution(weight, condition, moments.directions)


def by_factor(moments: Triangle | CholeskyQR3, alpha: float) -> Solution:
    """Minimise |R_xx W^T - R_xy|^2 + alpha |W|^2; the shortest W where several do."""
    F = moments.features
    factor = moments.factor()
    square = factor[:F, :F]
    sides = factor[:F, F:]
    if alpha > 0:
        penalty = torch.eye(F, dtype=torch.float64) * alpha**0.5
        rows = torch.cat([factor[:F], torch.nn.functional.pad(penalty, (0, moments.outputs))])
        both = torch.linalg.qr(rows, mode="r").R
        square, sides = both[:F, :F], both[:F, F:]
    lengths = square.norm(dim=0)
    regular = float(square.diagonal().abs().min()) > 0
    # Scaling of columns changes the condition but not the error of the triangular solution.
    if regular and _triangle_condition(square / lengths) * EPSILON * F < SAFE:
        weight = torch.linalg.solve_triangular(square, sides, upper=True).T
        return Solution(weight, _triangle_condition(square), F)
    spectrum = Spectrum(moments)
    return Solution(spectrum.coefficients(alpha), spectrum.condition(alpha), spectrum.rank(alpha))


def _triangle_condition(factor: Tensor) -> float:
    def divide(vectors: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor.T, vectors, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(factor, half, upper=True)
        return solved

    def multiply(vectors: Tensor) -> Tensor:
        product: Tensor = factor.T @ (factor @ vectors)
        return product

    return math.sqrt(estimate_condition(multiply, divide, factor.shape[0]))


class Spectrum:
    """Eigenvalues e and vectors V of S_xx: coefficients and residuals at any alpha.

    W^T(alpha) = V diag(1 / (e + alpha)) V^T S_xy. From R = [R_xx R_xy; 0 R_yy] they come by the SVD
    R_xx = U diag(sqrt(e)) V^T, with V^T S_xy = diag(sqrt(e)) U^T R_xy, and are accurate far below
    the rounding of S. From rows X that were kept, X X^T = U diag(e) U^T, they are
    W^T(alpha) = X^T U diag(1 / (e + alpha)) U^T Y; the other eigenvalues of S_xx are 0.
    """

    def __init__(self, moments: Moments | CholeskyQR3) -> None:
        self.features = moments.features
        self.rows, self.weight, self.mean = moments.rows, moments.weight, moments.mean
        self._kept = moments if isinstance(moments, Rows) else None
        self.directions = moments.directions
        if isinstance(moments, Gram):
            self._from_scatter(*moments.scatter())
        elif isinstance(moments, Rows):
            self._from_rows(moments)
        elif isinstance(moments, Triangle | CholeskyQR3):
            self._from_factor(moments.factor())
        self.largest = float(self.values.max())
        self.smallest = 0.0 if self._kept else float(self.values.min())

    def _from_scatter(self, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
        self.exact = False
        values, self.vectors = torch.linalg.eigh(xx)
        self.values = values.clamp_min(0)
        self._projected = self.vectors.T @ xy
        self._square = yy.diagonal()

    def _from_rows(self, rows: Rows) -> None:
        self.exact = False
        values, self.vectors = torch.linalg.eigh(rows.kernel())
        self.values = values.clamp_min(0)
        targets = rows.targets()
        self._projected = self.vectors.T @ targets
        self._square = targets.square().sum(0)

    def _from_factor(self, factor: Tensor) -> None:
        self.exact = True
        F = self.features
        left, singular, right = torch.linalg.svd(factor[:F, :F])
        self.values, self.vectors = singular.square(), right.T
        self._singular = singular
        self._sides = left.T @ factor[:F, F:]
        self._rest = factor[F:, F:].square().sum(0)
        self._square = factor[:, F:].square().sum(0)

    @property
    def variance(self) -> Tensor:
        """Mean square of each centred target."""
        return self._square / max(self.weight, 1.0)

    def condition(self, alpha: float) -> float:
        """Condition of S_xx + alpha I, or of R_xx augmented by sqrt(alpha) I."""
        low = self.smallest + alpha
        ratio = (self.largest + alpha) / low if low > 0 else float("inf")
        return ratio**0.5 if self.exact else ratio

    def rank(self, alpha: float) -> int:
        """Number of directions that the answer uses."""
        return int((self._gains(alpha) != 0).sum())

    def _gains(self, alpha: float) -> Tensor:
        """Return 1 / (s + alpha / s) for each singular value s of R_xx, 0 for mere rounding."""
        s = self._singular
        kept = s > s.max() * (self.features * 2 * EPSILON if alpha == 0 else 0.0)
        return torch.where(kept, s / (s.square() + alpha), torch.zeros_like(s))

    def coefficients(self, alpha: float) -> Tensor:
        """Return W, (outputs, features)."""
        if self.exact:
            rotated = self._gains(alpha).unsqueeze(1) * self._sides
        else:
            rotated = self._projected / (self.values + alpha).unsqueeze(1)
        weight: Tensor = self.vectors @ rotated
        return self._kept.combine(weight).T if self._kept else weight.T

    def residual(self, alpha: float) -> Tensor:
        """Return the sum of squared errors of each target."""
        if self.exact:
            left = 1 - self._gains(alpha) * self._singular
            error: Tensor = self._rest + (left.unsqueeze(1) * self._sides).square().sum(0)
            return error
        shrunk = (self.values + alpha).unsqueeze(1)
        if self._kept:
            missed: Tensor = (self._projected * (alpha / shrunk)).square().sum(0)
            return missed
        explained = self._projected.square() * (shrunk + alpha) / shrunk.square()
        rest: Tensor = (self._square - explained.sum(0)).clamp_min(0)
        return rest

    def freedom(self, alpha: float) -> float:
        """Return the effective number of parameters without the intercept."""
        if self.exact:
            return float((self._gains(alpha) * self._singular).sum())
        return float((self.values / (self.values + alpha)).sum())

    def resolves(self, alpha: float) -> bool:
        """Tell whether rounding leaves the answer and its residual usable."""
        if self.exact:
            return True
        square = self._square
        if not is_safe(self.condition(alpha)):
            return False
        fine = (self.residual(alpha) >= RESOLVED * square) | (square == 0)
        return self._kept is not None or bool(fine.all())  # no difference that could cancel

    def gcv(self, alpha: float) -> Tensor:
        """Return the generalised cross-validation error of each target.

        rows * residual / (rows - freedom - 1)^2, the 1 for the intercept.

        Source: G. Golub, M. Heath and G. Wahba, Generalized cross-validation as a method for
        choosing a good ridge parameter, Technometrics 21 (1979).
        """
        left = self.rows - self.freedom(alpha) - 1
        if left <= 0:
            return torch.full_like(self._square, float("inf"))
        return self.residual(alpha) * (self.rows / left**2)


def intercept(moments: Any, weight: Tensor) -> Tensor:
    """Return b = mean(y) - W mean(s), for one W or many."""
    F = moments.features
    bias: Tensor = moments.mean[F:] - weight @ moments.mean[:F]
    return bias


def fold_errors(parts: list[Moments], alphas: list[float]) -> Tensor:
    """Return the mean square error (alphas, outputs) of folds left out in turn."""
    filled = [part for part in parts if part.rows]
    if len(filled) < 2:
        raise ValueError(
            "Ridge: alpha='kfold' needs rows in at least 2 folds; give more rows, or a smaller "
            "fold_length"
        )
    errors = torch.zeros(len(alphas), parts[0].outputs, dtype=torch.float64)
    for left_out in filled:
        train = merged([part for part in filled if part is not left_out])
        spectrum = Spectrum(train)
        for i, alpha in enumerate(alphas):
            weight = spectrum.coefficients(alpha)
            errors[i] += validation_error(left_out, weight, intercept(train, weight))
    return errors / max(sum(part.weight for part in filled), 1.0)


def validation_error(moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the sum of squared errors of each target over the rows of an accumulator."""
    F = moments.features
    offset = intercept(moments, weight) - bias
    if isinstance(moments, Triangle):
        factor = moments.factor()
        spread = (factor[:, F:] - factor[:, :F] @ weight.T).square().sum(0)
    elif isinstance(moments, Rows):
        spread = moments.errors(weight)
    else:
        assert isinstance(moments, Gram)
        xx, xy, yy = moments.scatter()
        spread = yy.diagonal() + ((xx @ weight.T - 2 * xy) * weight.T).sum(0)
    return spread.clamp_min(0) + moments.weight * offset.square()
