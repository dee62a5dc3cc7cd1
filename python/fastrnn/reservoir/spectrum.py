"""The spectral radius of a matrix of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _engine
from ._layer import ReservoirLayer
from .matrices import Entries, uniform

DENSE_EIGENVALUES = 256
"""Up to this size all eigenvalues are computed."""

RESIDUAL = 1e-6
"""Of the largest Ritz value, relative to it, where the Arnoldi iteration stops."""


def with_spectral_radius(matrix: Entries, radius: float | None) -> Entries:
    """Scale a matrix to a spectral radius, or leave it as it is for ``None``."""
    if radius is None:
        return matrix
    if radius == 0:
        return matrix.scaled(0.0)
    found = spectral_radius(matrix)
    if found == 0:
        raise ValueError(
            "Reservoir: spectral_radius cannot be set, since every eigenvalue of the recurrent "
            "matrix is 0 (it is nilpotent); pass spectral_radius=None and weights of your own"
        )
    return matrix.scaled(radius / found)


def spectral_radius(matrix: Entries) -> float:
    """Return the largest modulus of an eigenvalue, to ten digits.

    Small matrices: all eigenvalues. Large ones: Arnoldi iteration from a fixed start, until the
    residual of the largest Ritz value is 1e-6 of it (its error is far smaller). Rounding to ten
    digits makes the result the same on machines whose LAPACK rounds differently.
    """
    if _acyclic(matrix):
        return 0.0
    if matrix.size <= DENSE_EIGENVALUES:
        found = float(torch.linalg.eigvals(matrix.dense()).abs().max())
    else:
        found = _arnoldi(matrix)
    return float(f"{found:.9e}")


def _acyclic(matrix: Entries) -> bool:
    """Say whether no unit reaches itself: all eigenvalues are 0 then, which rounding would hide."""
    stored = matrix.values != 0
    rows, columns = matrix.rows[stored], matrix.columns[stored]
    while len(rows):
        fed = torch.zeros(matrix.size, dtype=torch.bool)
        fed[rows] = True
        keep = fed[columns]  # what comes from a unit that nothing feeds is on no cycle
        if bool(keep.all()):
            return False
        rows, columns = rows[keep], columns[keep]
    return True


def _arnoldi(matrix: Entries) -> float:
    """Return the modulus of the dominant eigenvalue by Arnoldi iteration without restarts."""
    N = matrix.size
    generator = torch.Generator().manual_seed(0)
    start = uniform(N, generator=generator)
    product = _product(matrix)
    most = min(N, 4000)
    basis = torch.empty(min(most, 128) + 1, N, dtype=torch.float64)
    basis[0] = start / start.norm()
    projected = torch.zeros(most + 1, most, dtype=torch.float64)
    check, found = 64, 0.0
    for j in range(most):
        if j + 2 > len(basis):
            basis = torch.cat([basis, torch.empty(min(len(basis), most + 1 - len(basis)), N)])
        v = product(basis[j])
        length = v.norm()
        while True:
            before = length
            overlap = basis[: j + 1] @ v
            v = v - overlap @ basis[: j + 1]
            projected[: j + 1, j] += overlap
            length = v.norm()
            if length > 0.5 * before:  # else what rounding left along the basis matters: again
                break
            if length <= 1e-14 * projected[: j + 1, j].norm():
                break
        projected[j + 1, j] = length
        invariant = bool(length <= 1e-14 * projected[: j + 2, j].norm())
        if j + 1 == check or j + 1 == most or invariant:
            found, residual = _dominant(projected[: j + 1, : j + 1], float(length))
            if invariant or residual <= RESIDUAL * found:
                return found
            check = check * 5 // 4
        basis[j + 1] = v / length
    return found


def _dominant(projected: Tensor, length: float) -> tuple[float, float]:
    """Return the largest Ritz value's modulus and the bound of its residual."""
    values, vectors = torch.linalg.eig(projected)
    place = int(values.abs().argmax())
    return float(values[place].abs()), length * float(vectors[-1, place].abs())


def _product(matrix: Entries) -> Callable[[Tensor], Tensor]:
    """Return the product with a vector: one step of a linear reservoir without input or leak."""
    N = matrix.size
    none = torch.empty(1, N, 0, dtype=torch.float64)
    bias = torch.zeros(1, N, dtype=torch.float64)
    layer = ReservoirLayer(none, none, bias, bias + 1, [matrix], None, "identity", torch.float64)
    settings = _engine.Run(layer.weights(), None, None, False, False)
    step = torch.empty(1, 1, 1, 0, dtype=torch.float64)
    return lambda v: _engine.run(step, None, v.reshape(1, 1, N), settings)[1].reshape(N)
