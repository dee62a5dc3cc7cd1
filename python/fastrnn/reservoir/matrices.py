"""Matrices of reservoirs: topologies, spectral radius, and nothing that depends on the engine.

Every random number comes from ``torch.rand`` or ``torch.randint`` of the given generator, so a seed
stands for the same matrix on every machine (orthogonal ones up to LAPACK's rounding). Matrices are
float64 until the reservoir rounds them to its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

STRIP = 16
"""Neighbouring units whose connections are drawn together: csrc/include/fastrnn/reservoir.h."""


@dataclass(frozen=True)
class Entries:
    """A square sparse matrix: entry e is ``values[e]`` at (``rows[e]``, ``columns[e]``)."""

    size: int
    rows: Tensor
    columns: Tensor
    values: Tensor

    def scaled(self, factor: float) -> Entries:
        """Return the matrix times a number."""
        return Entries(self.size, self.rows, self.columns, self.values * factor)

    def dense(self) -> Tensor:
        """Return the (N, N) matrix."""
        matrix = torch.zeros(self.size, self.size, dtype=self.values.dtype)
        return matrix.index_put_((self.rows, self.columns), self.values, accumulate=True)

    def times(self, v: Tensor) -> Tensor:
        """Return the product with a vector."""
        products = self.values * v[self.columns]
        return torch.zeros_like(v).index_add_(0, self.rows, products)


def from_matrix(matrix: Any, size: int) -> Entries:
    """Take a user's matrix: a tensor, dense or sparse, a NumPy array, or a SciPy sparse matrix."""
    if hasattr(matrix, "tocoo"):
        coo = matrix.tocoo()
        rows, columns = (torch.as_tensor(i.astype("int64")) for i in (coo.row, coo.col))
        values, shape = torch.as_tensor(coo.data.astype("float64")), tuple(coo.shape)
    else:
        tensor = torch.as_tensor(matrix).detach().to("cpu", torch.float64)
        shape = tuple(tensor.shape)
        sparse = tensor.to_sparse().coalesce() if tensor.dim() == 2 else tensor
        if tensor.dim() == 2:
            (rows, columns), values = sparse.indices(), sparse.values()
    if shape != (size, size):
        raise ValueError(
            f"Reservoir: topology must be a matrix of shape (N, N) = ({size}, {size}), got {shape}"
        )
    if not torch.isfinite(values).all():
        raise ValueError("Reservoir: topology must be a matrix of finite numbers, got inf or NaN")
    stored = values != 0
    return Entries(size, rows[stored], columns[stored], values[stored])


def uniform(*shape: int, generator: Generator) -> Tensor:
    """Return float64 numbers from [-1, 1)."""
    return torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1


def distinct(count: int, draws: int, size: int, generator: Generator) -> Tensor:
    """Return (count, draws) numbers of [0, size): each row sorted and without repetition."""
    if draws * 4 > size:
        orders = [torch.randperm(size, generator=generator)[:draws] for _ in range(count)]
        return torch.stack(orders).sort(1).values if orders else torch.empty(0, draws).long()
    drawn = torch.randint(size, (count, draws), generator=generator).sort(1).values
    while True:
        again = torch.zeros_like(drawn, dtype=torch.bool)
        again[:, 1:] = drawn[:, 1:] == drawn[:, :-1]
        repeated = int(again.sum())
        if not repeated:
            return drawn
        drawn[again] = torch.randint(size, (repeated,), generator=generator)
        drawn = drawn.sort(1).values


def in_degree(size: int, density: float) -> int:
    """Return how many units each unit is connected from."""
    return min(size, max(1, round(density * size)))


def sparse(size: int, density: float, generator: Generator) -> Entries:
    """Draw a sparse matrix in which each unit is connected from ``round(density * N)`` others.

    16 successive units draw the first unit's connections together: unit b + i is connected from
    (c + i) mod N for each start c that the block b draws. Weights are independent and uniform. The
    engine then multiplies adjacent weights with adjacent states (docs/architecture.md).
    """
    degree = in_degree(size, density)
    starts = distinct(-(-size // STRIP), degree, size, generator)
    unit = torch.arange(size)
    columns = (starts[unit // STRIP] + (unit % STRIP)[:, None]) % size
    values = uniform(size, degree, generator=generator)
    return Entries(size, unit.repeat_interleave(degree), columns.reshape(-1), values.reshape(-1))


def independent(size: int, density: float, generator: Generator) -> Entries:
    """Draw a sparse matrix as ``sparse`` does, but each unit draws its connections by itself."""
    degree = in_degree(size, density)
    columns = distinct(size, degree, size, generator)
    values = uniform(size, degree, generator=generator)
    rows = torch.arange(size).repeat_interleave(degree)
    return Entries(size, rows, columns.reshape(-1), values.reshape(-1))


def dense(size: int, density: float, generator: Generator) -> Entries:
    """Draw a matrix of independent uniform weights; ``density`` is not used."""
    del density
    return _all_entries(uniform(size, size, generator=generator))


def orthogonal_matrix(size: int, generator: Generator) -> Tensor:
    """Draw an orthogonal matrix: the Q of a matrix of nearly normal numbers, signs fixed."""
    normal = sum(
        torch.rand(size, size, dtype=torch.float64, generator=generator) for _ in range(12)
    )
    q, r = torch.linalg.qr(torch.as_tensor(normal) - 6)
    return torch.as_tensor(q * r.diagonal().sign())


def orthogonal(size: int, density: float, generator: Generator) -> Entries:
    """Draw an orthogonal matrix; ``density`` is not used."""
    del density
    return _all_entries(orthogonal_matrix(size, generator))


def cycle(size: int, density: float = 0, generator: Generator | None = None) -> Entries:
    """Return the simple cycle: unit i is connected from i - 1, all weights 1.

    Source: Rodan and Tino, Minimum complexity echo state network, 2011 (SCR).
    """
    unit = torch.arange(size)
    return Entries(size, unit, (unit - 1) % size, torch.ones(size, dtype=torch.float64))


def delay_line(size: int, density: float = 0, generator: Generator | None = None) -> Entries:
    """Return the delay line: the cycle without the connection from the last unit to the first.

    It is nilpotent, so its spectral radius cannot be scaled: multiply it by a weight of your own
    and pass ``spectral_radius=None``.

    Source: Rodan and Tino, 2011 (DLR).
    """
    unit = torch.arange(1, size)
    return Entries(size, unit, unit - 1, torch.ones(size - 1, dtype=torch.float64))


def cycle_with_jumps(
    size: int,
    density: float = 0,
    generator: Generator | None = None,
    jump_size: int | None = None,
    jump_weight: float = 0.5,
) -> Entries:
    """Return the cycle with connections both ways between units 0, J, 2J, ...

    Args:
        size: N.
        density: not used.
        generator: not used.
        jump_size: J, in [2, N); default the square root of N, at least 2.
        jump_weight: of the jumps, where the weights of the cycle are 1.

    Source: Rodan and Tino, Simple deterministically constructed cycle reservoirs with regular
    jumps, 2012 (CRJ).
    """
    jump = max(2, round(size**0.5)) if jump_size is None else jump_size
    if not 2 <= jump < max(size, 3):
        raise ValueError(
            f"cycle_with_jumps: jump_size must be in [2, N) = [2, {size}), got {jump_size}"
        )
    ring = cycle(size)
    low = torch.arange(0, size - jump + 1, jump)
    high = (low + jump) % size
    joined = low != high
    low, high = low[joined], high[joined]
    weights = torch.full((2 * len(low),), float(jump_weight), dtype=torch.float64)
    return _merged(
        size,
        torch.cat([ring.rows, high, low]),
        torch.cat([ring.columns, low, high]),
        torch.cat([ring.values, weights]),
    )


def small_world(
    size: int,
    density: float,
    generator: Generator,
    rewiring: float = 0.1,
) -> Entries:
    """Draw a ring of neighbours in which each connection is rewired with some probability.

    Args:
        size: N.
        density: each unit is connected from its ``round(density * N)`` nearest neighbours.
        generator: of the rewiring and of the uniform weights.
        rewiring: probability that a connection comes from any unit instead, in [0, 1].

    Source: Watts and Strogatz, Collective dynamics of small-world networks, 1998.
    """
    if not 0 <= rewiring <= 1:
        raise ValueError(f"small_world: rewiring must be in [0, 1], got {rewiring}")
    degree = in_degree(size, density)
    step = torch.arange(degree) // 2 + 1
    offsets = torch.where(torch.arange(degree) % 2 == 0, -step, step)
    columns = (torch.arange(size)[:, None] + offsets) % size
    moved = torch.rand(size, degree, dtype=torch.float64, generator=generator) < rewiring
    anywhere = torch.randint(size, (size, degree), generator=generator)
    columns = torch.where(moved, anywhere, columns)
    values = uniform(size, degree, generator=generator)
    rows = torch.arange(size).repeat_interleave(degree)
    return _merged(size, rows, columns.reshape(-1), values.reshape(-1))


TOPOLOGIES: dict[str, Callable[[int, float, Generator], Entries]] = {
    "sparse": sparse,
    "independent": independent,
    "dense": dense,
    "orthogonal": orthogonal,
    "cycle": cycle,
    "cycle_with_jumps": cycle_with_jumps,
    "delay_line": delay_line,
    "small_world": small_world,
}


def make(topology: Any, size: int, density: float, generator: Generator) -> Entries:
    """Return the matrix that a ``topology`` argument stands for."""
    if isinstance(topology, Entries):
        if topology.size != size:
            raise ValueError(f"Reservoir: topology must have N = {size} units, got {topology.size}")
        return topology
    if not isinstance(topology, str):
        return from_matrix(topology, size)
    if topology not in TOPOLOGIES:
        raise ValueError(
            f"Reservoir: topology must be a matrix or one of {', '.join(TOPOLOGIES)}, "
            f"got {topology!r}"
        )
    return TOPOLOGIES[topology](size, density, generator)


def _all_entries(matrix: Tensor) -> Entries:
    size = matrix.shape[0]
    unit = torch.arange(size)
    return Entries(size, unit.repeat_interleave(size), unit.repeat(size), matrix.reshape(-1))


def _merged(size: int, rows: Tensor, columns: Tensor, values: Tensor) -> Entries:
    """Add up entries of the same place."""
    places, inverse = torch.unique(rows * size + columns, return_inverse=True)
    sums = torch.zeros(len(places), dtype=values.dtype).index_add_(0, inverse, values)
    return Entries(size, places // size, places % size, sums)
