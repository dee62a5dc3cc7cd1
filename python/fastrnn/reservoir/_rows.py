"""The rows themselves, for fits of fewer rows than features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import _ops
from ._moments import Moments, block_mean, symmetric

SLICE = 512
"""Features that are centred and multiplied at a time."""


class Rows(Moments):
    """Copies of the rows, X (n, features), of which X X^T is smaller than the scatter X^T X.

    n^2 features multiply-adds make it instead of n features^2, and its factor takes n^3 operations
    instead of features^3. The rows take no more memory than the scatter would.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.centred = True
        self._blocks: list[tuple[Tensor, Tensor, Tensor | None]] = []

    @property
    def directions(self) -> int:
        """Dimension of what the rows span."""
        return min(self.rows - self.centred, self.features)

    def update(self, states: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add a block of rows (n, features), (n, outputs), each counted ``weights[t]`` times."""
        weight = float(states.shape[0]) if weights is None else float(weights.sum())
        if weight == 0:
            return
        given = None if weights is None else weights.clone()
        self._blocks.append((states.clone(), targets.clone(), given))
        self._blend(weight, block_mean(states, targets, weights))
        self.rows += states.shape[0]

    def merge(self, other: Moments) -> None:
        """Add the rows of another accumulator of the same kind."""
        assert isinstance(other, Rows)
        self._blocks += other._blocks
        self._blend(other.weight, other.mean)
        self.rows += other.rows

    def uncentre(self) -> None:
        """Take the rows as they are, for fits without an intercept."""
        self.centred = False
        self.mean = torch.zeros_like(self.mean)

    def replay(self, sums: Moments) -> None:
        """Add the rows to an accumulator of another kind."""
        for block in self._blocks:
            sums.update(*block)

    def kernel(self) -> Tensor:
        """Return X X^T (n, n) of the centred rows, each times the root of its weight."""
        gram = torch.zeros(self.rows, self.rows, dtype=torch.float64)
        cross, sums = gram[:, :0].contiguous(), gram.new_zeros(self.rows)
        for _, part in self._slices():
            features = part.T.contiguous()
            _ops.gram_update(features, features[:, :0], gram, cross, sums)
        return symmetric(gram)

    def targets(self) -> Tensor:
        """Return Y (n, outputs), centred, each row times the root of its weight."""
        rows = torch.cat([targets for _, targets, _ in self._blocks]).double()
        return self._scaled(rows.sub_(self.mean[self.features :]))

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return X^T c, (features, outputs), for c (n, outputs)."""
        return torch.cat([coefficients.T @ part for _, part in self._slices()], 1).T

    def errors(self, weight: Tensor) -> Tensor:
        """Return the sum of squared errors of each target for W (outputs, features)."""
        left = self.targets()
        for columns, part in self._slices():
            left -= part @ weight[:, columns].T
        return left.square().sum(0)

    def _slices(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield columns, and X there in float64."""
        for first in range(0, self.features, SLICE):
            columns = slice(first, min(first + SLICE, self.features))
            part = torch.cat([states[:, columns] for states, _, _ in self._blocks]).double()
            yield columns, self._scaled(part.sub_(self.mean[columns]))

    def _scaled(self, rows: Tensor) -> Tensor:
        if all(weights is None for _, _, weights in self._blocks):
            return rows
        roots = [
            rows.new_ones(len(states)) if weights is None else weights.sqrt()
            for states, _, weights in self._blocks
        ]
        return rows.mul_(torch.cat(roots).unsqueeze(1))
