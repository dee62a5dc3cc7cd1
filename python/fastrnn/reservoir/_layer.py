"""One layer of one direction, of one reservoir or of a population: its weights as buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _ops
from . import _engine
from .matrices import STRIP, Entries

# Time of what a block of 16 units needs, in units of one vector of dense float32 weights: the
# cheapest layout is taken. A strip reads unaligned states; single entries cost a load of each
# operand, whatever their width; a vector of a window is looked up in registers, which is slow where
# no instruction does it. In float64 vectors are twice as long and a lookup takes two, and once
# the zeros of windows no longer fit in a cache they cost more than they save.
STRIP_COST, ENTRY_COST, WINDOW_COST, SLOW_WINDOW_COST = 1.3, 0.8, 1.7, 16.0
DOUBLE_WINDOW_BYTES = 8 << 20
WINDOW = 32
UNSIGNED = 1 << 16


class PackedMatrix(nn.Module):
    """M square matrices in the layout that the engine multiplies fastest.

    ``state_dict`` holds the stored numbers and the layout; loading replaces both.
    """

    weights: Tensor
    columns: Tensor
    rows: Tensor

    def __init__(self, members: Sequence[Entries], dtype: torch.dtype) -> None:
        super().__init__()
        self.members, self.size = len(members), members[0].size
        self.layout, self.strips = _choose(members, dtype)
        pack = {
            "strips": _pack_strips,
            "rows": _pack_rows,
            "panels": _pack_panels,
            "windows": _pack_windows,
        }[self.layout]
        weights, columns, rows = pack(members, self.strips)
        self.register_buffer("weights", weights.to(dtype))
        self.register_buffer("columns", columns)
        self.register_buffer("rows", rows)

    def stored(self) -> _engine.Matrix:
        """Return what the engine takes."""
        return _engine.Matrix(self.layout, self.weights, self.columns, self.rows, self.strips)

    def entries(self, member: int = 0) -> Entries:
        """Return one member's stored entries, zeros among strips and panels left out."""
        N, weights = self.size, self.weights.to(torch.float64)
        unit = torch.arange(-(-N // STRIP) * STRIP).reshape(-1, 1, STRIP)
        columns = self.columns.long() % UNSIGNED if self._narrow() else self.columns.long()
        if self.layout == "rows":
            pointers = self.rows[member]
            part = slice(int(pointers[0]), int(pointers[-1]))
            return Entries(N, _row_numbers(pointers), columns[part], weights[part])
        if self.layout == "windows":
            windows = -(-N // WINDOW)
            key = _row_numbers(self.rows[member])
            part = slice(int(self.rows[member, 0]), int(self.rows[member, -1]))
            row = (key // windows * STRIP)[:, None] + torch.arange(STRIP)
            column = (key % windows * WINDOW)[:, None] + columns[part]
            kept = weights[part] != 0
            return Entries(N, row[kept], column[kept], weights[part][kept])
        if self.layout == "strips":
            column = (columns[member][:, :, None] + unit % STRIP) % N
        else:
            column = torch.arange(N)[None, :, None].expand(weights[member].shape)
        row = unit.expand(weights[member].shape)
        kept = weights[member] != 0
        return Entries(N, row[kept], column[kept], weights[member][kept])

    def multiply_rows(self, factor: Tensor) -> None:
        """Multiply row n of every member's matrix by ``factor[n]``, in place."""
        N, blocks = self.size, -(-self.size // STRIP)
        if self.layout == "rows":
            for pointers in self.rows:
                part = slice(int(pointers[0]), int(pointers[-1]))
                self.weights[part] *= factor[_row_numbers(pointers)]
            return
        padded = factor.new_ones(blocks * STRIP)
        padded[:N] = factor
        if self.layout == "windows":
            for pointers in self.rows:
                part = slice(int(pointers[0]), int(pointers[-1]))
                block = _row_numbers(pointers) // -(-N // WINDOW)
                self.weights[part] *= padded.reshape(blocks, STRIP)[block]
            return
        self.weights *= padded.reshape(blocks, 1, STRIP)

    def get_extra_state(self) -> dict[str, Any]:
        return {"layout": self.layout, "strips": self.strips, "size": self.size}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.layout, self.strips = state["layout"], state["strips"]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Take buffers of any number of entries: they depend on the matrix, not on its size."""
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None and state["size"] != self.size:
            raise ValueError(
                f"load_state_dict: {prefix[:-1]} must have N = {self.size} units, "
                f"got {state['size']}"
            )
        for name, own in list(self.named_buffers(recurse=False)):
            given = state_dict.get(prefix + name)
            if given is not None and given.shape != own.shape:
                dtype = own.dtype if own.is_floating_point() else given.dtype
                self.register_buffer(name, own.new_empty(given.shape, dtype=dtype))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _narrow(self) -> bool:
        return self.columns.dtype == torch.int16


class ReservoirLayer(nn.Module):
    """The weights of M members of one layer; ``weight_ih`` and the others may be written to.

    Buffers: ``weight_ih`` (M, N, I), ``weight_fb`` (M, N, F), ``bias`` and ``leak`` (M, N), and the
    matrices ``recurrent`` and, for ES2N, ``carry``.
    """

    weight_ih: Tensor
    weight_fb: Tensor
    bias: Tensor
    leak: Tensor

    def __init__(
        self,
        weight_ih: Tensor,
        weight_fb: Tensor,
        bias: Tensor,
        leak: Tensor,
        recurrent: Sequence[Entries],
        carry: Sequence[Entries] | None,
        activation: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.activation = activation
        given = {"weight_ih": weight_ih, "weight_fb": weight_fb, "bias": bias, "leak": leak}
        for name, value in given.items():
            self.register_buffer(name, value.to(dtype).contiguous())
        self.recurrent = PackedMatrix(recurrent, dtype)
        self.carry = None if carry is None else PackedMatrix(carry, dtype)

    def weights(self) -> _engine.Weights:
        """Return what the engine takes."""
        return _engine.Weights(
            self.weight_ih.contiguous(),
            self.weight_fb.contiguous(),
            self.bias.contiguous(),
            self.leak.contiguous(),
            self.recurrent.stored(),
            None if self.carry is None else self.carry.stored(),
            self.activation,
        )


def _row_numbers(pointers: Tensor) -> Tensor:
    return torch.arange(len(pointers) - 1).repeat_interleave(pointers.diff())


def _window_ranks(matrix: Entries) -> tuple[Tensor, Tensor, Tensor]:
    """Sort entries; return the order, each one's window, and its place among the row's in there.

    A window is numbered within all blocks: block times the number of windows plus its own number.
    """
    windows = -(-matrix.size // WINDOW)
    order = torch.argsort(matrix.rows * matrix.size + matrix.columns)
    rows, window = matrix.rows[order], matrix.columns[order] // WINDOW
    _, counts = torch.unique_consecutive(rows * windows + window, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - starts.repeat_interleave(counts)
    return order, rows // STRIP * windows + window, rank


def _window_vectors(matrix: Entries) -> Tensor:
    """Return how many vectors each window of each block needs."""
    size = matrix.size
    _, key, rank = _window_ranks(matrix)
    needed = torch.zeros(-(-size // STRIP) * -(-size // WINDOW), dtype=torch.int64)
    return needed.scatter_reduce_(0, key, rank + 1, "amax")


def _index_dtype(size: int) -> torch.dtype:
    """16 bits where they suffice; torch has no arithmetic on unsigned ones, so it sees int16."""
    return torch.int16 if size <= UNSIGNED else torch.int32


def _strip_keys(matrix: Entries) -> Tensor:
    """Return for each entry its block and the column at which its strip starts, as one number."""
    start = (matrix.columns - matrix.rows % STRIP) % matrix.size
    return matrix.rows // STRIP * matrix.size + start


def _choose(members: Sequence[Entries], dtype: torch.dtype) -> tuple[str, int]:
    size = members[0].size
    blocks = -(-size // STRIP)
    strips, entries, vectors = 0, 0.0, 0.0
    for matrix in members:
        vectors = max(vectors, float(_window_vectors(matrix).sum()) / blocks)
        keys = torch.unique(_strip_keys(matrix))
        strips = max(strips, int(torch.bincount(keys // size, minlength=blocks).max()))
        entries = max(entries, len(matrix.values) / blocks)
    fast = "avx512" in _ops.isa()
    width = dtype.itemsize // 4
    if width == 2 and vectors * blocks * STRIP * 9 > DOUBLE_WINDOW_BYTES:
        fast = False
    costs = {
        "strips": width * strips * STRIP_COST,
        "rows": entries * ENTRY_COST,
        "panels": float(width * size),
        "windows": width * vectors * (WINDOW_COST if fast else SLOW_WINDOW_COST),
    }
    layout = min(costs, key=lambda name: costs[name])
    return layout, strips if layout == "strips" else 0


def _pack_strips(members: Sequence[Entries], strips: int) -> tuple[Tensor, Tensor, Tensor]:
    size, width = members[0].size, STRIP
    blocks = -(-size // width)
    weights = torch.zeros(len(members), blocks, strips, width, dtype=torch.float64)
    columns = torch.zeros(len(members), blocks, strips, dtype=torch.int64)
    for member, matrix in enumerate(members):
        keys, place = torch.unique(_strip_keys(matrix), return_inverse=True)
        block = keys // size
        first = torch.searchsorted(block, torch.arange(blocks))
        slot = torch.arange(len(keys)) - first[block]
        columns[member, block, slot] = keys % size
        at = (block[place], slot[place], matrix.rows % width)
        weights[member].index_put_(at, matrix.values, accumulate=True)
    return weights, columns.to(_index_dtype(size)), torch.empty(0, 0, dtype=torch.int64)


def _pack_rows(members: Sequence[Entries], strips: int) -> tuple[Tensor, Tensor, Tensor]:
    size, start = members[0].size, 0
    weights, columns, rows = [], [], []
    for matrix in members:
        order = torch.argsort(matrix.rows * size + matrix.columns)
        counts = torch.bincount(matrix.rows, minlength=size)
        rows.append(start + torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))
        weights.append(matrix.values[order])
        columns.append(matrix.columns[order])
        start += len(order)
    return torch.cat(weights), torch.cat(columns).to(_index_dtype(size)), torch.stack(rows)


def _pack_panels(members: Sequence[Entries], strips: int) -> tuple[Tensor, Tensor, Tensor]:
    size, width = members[0].size, STRIP
    blocks = -(-size // width)
    padded = torch.zeros(len(members), blocks * width, size, dtype=torch.float64)
    for member, matrix in enumerate(members):
        padded[member, :size] = matrix.dense()
    panels = padded.reshape(len(members), blocks, width, size).transpose(2, 3).contiguous()
    none = torch.empty(0, dtype=torch.int64)
    return panels, none.to(_index_dtype(size)), none.reshape(0, 0)


def _pack_windows(members: Sequence[Entries], strips: int) -> tuple[Tensor, Tensor, Tensor]:
    start = 0
    weights, places, rows = [], [], []
    for matrix in members:
        order, key, rank = _window_ranks(matrix)
        needed = _window_vectors(matrix)
        ends = start + needed.cumsum(0)
        pointers = torch.cat([torch.tensor([start]), ends])
        slot = pointers[key] - start + rank
        lane = matrix.rows[order] % STRIP
        count = int(needed.sum())
        weights.append(torch.zeros(count, STRIP, dtype=torch.float64))
        weights[-1][slot, lane] = matrix.values[order]
        places.append(torch.zeros(count, STRIP, dtype=torch.uint8))
        places[-1][slot, lane] = (matrix.columns[order] % WINDOW).to(torch.uint8)
        rows.append(pointers)
        start += count
    return torch.cat(weights), torch.cat(places), torch.stack(rows)
