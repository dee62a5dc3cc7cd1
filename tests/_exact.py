"""Ridge regression by other means: rows to fit, and their answers in 60 digits and by hand."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def rows(n: int, features: int, decades: float = 0.0, outputs: int = 2) -> tuple[Tensor, Tensor]:
    """Return states whose singular values fall over so many decades, and noisy targets."""
    generator = torch.Generator().manual_seed(n + features)
    left = torch.linalg.qr(torch.randn(n, features, dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(
        torch.randn(features, features, dtype=torch.float64, generator=generator)
    ).Q
    states = (left * torch.logspace(0, -decades, features, dtype=torch.float64)) @ right
    states *= math.sqrt(n)
    truth = torch.randn(features, outputs, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, outputs, dtype=torch.float64, generator=generator)
    return states + 3.0, states @ truth + 0.1 * noise - 1.0


def exact(
    states: Tensor, targets: Tensor, alpha: float, weights: Tensor | None = None
) -> np.ndarray:
    """Solve the centred normal equations in 60 digits."""
    from mpmath import mp

    with mp.workdps(60):
        x, y = mp.matrix(states.tolist()), mp.matrix(targets.tolist())
        w = [1.0] * x.rows if weights is None else weights.tolist()
        total = mp.fsum(w)
        for matrix in (x, y):
            for j in range(matrix.cols):
                mean = mp.fsum(w[i] * matrix[i, j] for i in range(matrix.rows)) / total
                for i in range(matrix.rows):
                    matrix[i, j] = (matrix[i, j] - mean) * mp.sqrt(w[i])
        gram = x.T * x + alpha * mp.eye(x.cols)
        solution = mp.lu_solve(gram, x.T * y[:, 0])
        columns = [solution] + [mp.lu_solve(gram, x.T * y[:, k]) for k in range(1, y.cols)]
        return np.array([[float(value) for value in column] for column in columns])


def gcv_by_hand(states: Tensor, targets: Tensor, alpha: float) -> float:
    n = states.shape[0]
    centred, y = states - states.mean(0), targets - targets.mean(0)
    inner = centred.T @ centred + alpha * torch.eye(states.shape[1], dtype=torch.float64)
    hat = centred @ torch.linalg.solve(inner, centred.T)
    error = (y - hat @ y).square().sum(0) * n / (n - float(hat.trace()) - 1) ** 2
    return float((error / y.square().mean(0)).mean())
