"""Sums over rows from which a linear readout is solved: one pass, bounded memory, mergeable.

A row is z = [states, targets]. All classes keep the weight w, the mean m and the scatter
S = sum_t w_t (z_t - m)(z_t - m)^T of the rows so far; ``Gram`` keeps S itself, ``Triangle`` a
triangular R with R^T R = S, whose condition is only the square root of that of S. Rows are centred
by their block's mean and the means are then combined (Chan, Golub and LeVeque 1979), as
subtracting w m m^T from raw sums would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops

EPSILON = 2.0**-53
PENDING = 32
"""Rows that wait to be added to a Gram matrix together, as each addition reads all of it."""


class Moments:
    """What both forms share: weight, mean and number of rows."""

    def __init__(self, features: int, outputs: int) -> None:
        self.features, self.outputs = features, outputs
        self.width = features + outputs
        self.rows = 0
        self.weight = 0.0
        self.mean = torch.zeros(self.width, dtype=torch.float64)

    def update(self, states: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add a block of rows (n, features), (n, outputs), each counted ``weights[t]`` times."""
        if states.shape[0] == 0:
            return
        weight = float(states.shape[0]) if weights is None else float(weights.sum())
        if weight == 0:
            return
        mean = block_mean(states, targets, weights)
        self._add(states, targets, weights, mean)
        self._add_row(self._blend(weight, mean))
        self.rows += states.shape[0]

    def merge(self, other: Moments) -> None:
        """Add the rows of another accumulator of the same kind."""
        self._add_all(other)
        self._add_row(self._blend(other.weight, other.mean))
        self.rows += other.rows

    @property
    def directions(self) -> int:
        """Dimension of what the rows may span."""
        return self.features

    def copy(self) -> Moments:
        """Return an independent accumulator of the same rows."""
        new = type(self)(self.features, self.outputs)
        new.merge(self)
        return new

    def uncentre(self) -> None:
        """Make the scatter that of the rows themselves, for fits without an intercept."""
        self._add_row(self.mean * math.sqrt(self.weight))
        self.mean = torch.zeros_like(self.mean)

    def reduce(self, group: Any) -> None:
        """Add the rows of all ranks of a ``torch.distributed`` group, in the order of ranks.

        One rank's sums at a time are sent, so that memory does not grow with the number of ranks.
        """
        from torch import distributed

        me = distributed.get_rank(group)
        mine = [
            torch.tensor([self.weight, float(self.rows)], dtype=torch.float64),
            self.mean,
            self._payload(),
        ]
        total = type(self)(self.features, self.outputs)
        for rank in range(distributed.get_world_size(group)):
            source = rank if group is None else distributed.get_global_rank(group, rank)
            parts = mine if rank == me else [torch.empty_like(part) for part in mine]
            for part in parts:
                distributed.broadcast(part, source, group=group)
            other = type(self)(self.features, self.outputs)
            other.weight, other.rows = float(parts[0][0]), int(parts[0][1])
            other.mean = parts[1]
            other._load(parts[2])
            total.merge(other)
        self.weight, self.rows, self.mean = total.weight, total.rows, total.mean
        self._load(total._payload())

    def _blend(self, weight: float, mean: Tensor) -> Tensor:
        """Move the mean to that of both parts; return the row whose square that adds."""
        total = self.weight + weight
        difference = mean - self.mean
        if total > 0:
            self.mean = self.mean + difference * (weight / total)
            difference *= math.sqrt(self.weight * (weight / total))
        self.weight = total
        return difference

    def _add(self, states: Tensor, targets: Tensor, weights: Tensor | None, mean: Tensor) -> None:
        raise NotImplementedError

    def _add_row(self, row: Tensor) -> None:
        raise NotImplementedError

    def _add_all(self, other: Moments) -> None:
        raise NotImplementedError

    def _payload(self) -> Tensor:
        raise NotImplementedError

    def _load(self, payload: Tensor) -> None:
        raise NotImplementedError


def merged(parts: Sequence[Moments]) -> Moments:
    """Return an accumulator of the rows of all parts, which are of one kind."""
    total = parts[0].copy()
    for part in parts[1:]:
        total.merge(part)
    return total


def symmetric(upper: Tensor) -> Tensor:
    """Return the symmetric matrix of an upper triangle whose other entries are zero."""
    both = upper + upper.T
    both.diagonal().mul_(0.5)
    return both


def _readable(rows: Tensor) -> Tensor:
    """Return rows as the engine reads them: floating-point numbers, those of a row adjacent."""
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.double()
    return rows if rows.stride(1) == 1 else rows.contiguous()


def block_mean(states: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean row of a block."""
    if weights is None:
        return torch.cat([part.mean(0, dtype=torch.float64) for part in (states, targets)])
    sums: Tensor = torch.cat([weights @ part.double() for part in (states, targets)])
    return sums / weights.sum()


class Gram(Moments):
    """The scatter matrix itself: one symmetric product a block."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self._gram = torch.zeros(features, features, dtype=torch.float64)  # the upper triangle
        self._cross = torch.zeros(features, outputs, dtype=torch.float64)
        self._square = torch.zeros(outputs, outputs, dtype=torch.float64)
        self._sums = torch.zeros(features, dtype=torch.float64)
        self._pending: list[tuple[float, Tensor]] = []

    def update(self, states: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add a block of rows (n, features), (n, outputs), each counted ``weights[t]`` times.

        Rows are centred by the mean m of those before, or the first block's own. What that leaves,
        n^2 / (N + n) d d^T for n rows of mean m + d after N, is taken away, and is small beside
        what the block adds.
        """
        weight = float(states.shape[0]) if weights is None else float(weights.sum())
        if weight == 0:
            return
        states, targets = _readable(states), _readable(targets)
        pivot = self.mean if self.weight else block_mean(states, targets, weights)
        shift, target_shift = pivot[: self.features], pivot[self.features :]
        self._sums.zero_()
        _ops.gram_update(
            states, targets, self._gram, self._cross, self._sums, shift, target_shift, weights
        )
        centred = targets.double() - target_shift
        weighted = centred if weights is None else centred * weights.unsqueeze(1)
        self._square.addmm_(centred.T, weighted)
        difference = torch.cat([self._sums, weighted.sum(0)]) / weight
        self.weight += weight
        self.mean = pivot + difference * (weight / self.weight)
        self.rows += states.shape[0]
        self._wait(-1.0, difference * (weight / math.sqrt(self.weight)))

    def _add_row(self, row: Tensor) -> None:
        self._wait(1.0, row)

    def _wait(self, sign: float, row: Tensor) -> None:
        self._pending.append((sign, row))
        if len(self._pending) >= PENDING:
            self._fold()

    def _fold(self) -> None:
        for sign in (1.0, -1.0):
            waiting = [row for s, row in self._pending if s == sign]
            if waiting:
                rows = torch.stack(waiting)
                states, targets = rows[:, : self.features], rows[:, self.features :]
                self._gram.addmm_(states.T, states, alpha=sign)
                self._cross.addmm_(states.T, targets, alpha=sign)
                self._square.addmm_(targets.T, targets, alpha=sign)
        self._pending = []

    def _add_all(self, other: Moments) -> None:
        assert isinstance(other, Gram)
        other._fold()
        self._gram += other._gram
        self._cross += other._cross
        self._square += other._square

    def scatter(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks S_xx, S_xy and S_yy of the scatter."""
        self._fold()
        return symmetric(self._gram.triu_()), self._cross, self._square

    def joint(self) -> Tensor:
        """Return the scatter as one matrix."""
        xx, xy, yy = self.scatter()
        return torch.cat([torch.cat([xx, xy], 1), torch.cat([xy.T, yy], 1)])

    def _payload(self) -> Tensor:
        return self.joint()

    def _load(self, payload: Tensor) -> None:
        width = self.features
        self._gram = payload[:width, :width].clone()
        self._cross = payload[:width, width:].clone()
        self._square = payload[width:, width:].clone()
        self._pending = []


class Triangle(Moments):
    """A triangular factor of the scatter, kept by QR of [R; new rows] (TSQR).

    Rows wait until there are twice as many as columns, so that R is a third of what is factored.

    Source: J. Demmel, L. Grigori, M. Hoemmen and J. Langou, Communication-optimal parallel and
    sequential QR and LU factorizations, SIAM J. Sci. Comput. 34 (2012).
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self._factor = torch.zeros(0, self.width, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self._count = 0

    def _add(self, states: Tensor, targets: Tensor, weights: Tensor | None, mean: Tensor) -> None:
        rows = torch.cat([states.double(), targets.double()], 1).sub_(mean)
        self._wait(rows if weights is None else rows.mul_(weights.sqrt().unsqueeze(1)))

    def _add_row(self, row: Tensor) -> None:
        self._wait(row.unsqueeze(0))

    def _add_all(self, other: Moments) -> None:
        assert isinstance(other, Triangle)
        self._wait(other.factor())

    def _wait(self, rows: Tensor) -> None:
        self._waiting.append(rows)
        self._count += rows.shape[0]
        if self._count >= 2 * self.width:
            self._fold()

    def _fold(self) -> None:
        if self._waiting:
            rows = torch.cat([self._factor, *self._waiting])
            self._factor = torch.linalg.qr(rows, mode="r").R
            self._waiting, self._count = [], 0

    def factor(self) -> Tensor:
        """Return R, (width, width) and upper triangular, of all rows so far."""
        self._fold()
        missing = self.width - self._factor.shape[0]
        return torch.nn.functional.pad(self._factor, (0, 0, 0, missing))

    def _payload(self) -> Tensor:
        return self.factor()

    def _load(self, payload: Tensor) -> None:
        self._factor, self._waiting, self._count = payload.clone(), [], 0


class CholeskyQR3:
    """The same R by Cholesky factors alone, from three passes over the same rows.

    The first pass makes R_1 from the scatter plus a shift, each further one the Cholesky factor of
    the rows times the inverse of what there is so far, which is better and better conditioned.
    Columns are scaled to length 1 first.

    Source: T. Fukaya, R. Kannan, Y. Nakatsukasa, Y. Yamamoto and Y. Yanagisawa, Shifted Cholesky QR
    for computing the QR factorization of ill-conditioned matrices, SIAM J. Sci. Comput. 42 (2020).
    """

    def __init__(self, first: Gram, centred: bool = True) -> None:
        """Start from the scatter of the first pass, uncentred if it is not to be centred."""
        self.centred = centred
        self.features, self.outputs = first.features, first.outputs
        self.directions = first.features
        self.passes = 1
        self.rows, self.weight, self.mean = first.rows, first.weight, first.mean
        scatter = first.joint()
        scale = scatter.diagonal().sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        unit = scatter / scale / scale.unsqueeze(1)
        # Rounding of the scatter is a few EPSILON times its norm; rows enter as a square root.
        norm = float(torch.linalg.matrix_norm(unit, 1))
        unit.diagonal().add_(11 * math.sqrt(first.rows) * first.width * EPSILON * norm)
        self._factor = torch.linalg.cholesky(unit, upper=True) * scale
        self._next = Gram(self.features, self.outputs)

    def update(self, states: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add a block of rows in a second or third pass."""
        rows = torch.cat([states.double(), targets.double()], 1).sub_(self.mean)
        rows = torch.linalg.solve_triangular(self._factor, rows, upper=True, left=False)
        self._next.update(rows[:, : self.features], rows[:, self.features :], weights)

    def reduce(self, group: Any) -> None:
        """Add the sums of all ranks for this pass."""
        self._next.reduce(group)

    def advance(self) -> bool:
        """End a pass; return whether another one is needed.

        Raises:
            torch.linalg.LinAlgError: if the rows are singular to working precision.
        """
        if not self.centred:
            self._next.uncentre()
        self._factor = torch.linalg.cholesky(self._next.joint(), upper=True) @ self._factor
        self._next = Gram(self.features, self.outputs)
        self.passes += 1
        return self.passes < 3

    def factor(self) -> Tensor:
        """Return R, (width, width) and upper triangular."""
        factor: Tensor = self._factor
        return factor
