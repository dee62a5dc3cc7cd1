"""The compiled module, and what calls of it leave for the next one: plans, packed weights, memory.

Nothing else in the package imports ``_core``. Calls of layers go through ``_ops``, which checks
them; ``_engine_chains``, ``_stream_ops``, ``_variable_length`` and ``reservoir._engine`` check by
themselves.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, _memory, _threads
from ._problem import Layer

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        "fastrnn: the compiled module fastrnn._core cannot be loaded; install the package with "
        f"`pip install .` rather than import its source folder ({error})"
    ) from error

core = _core

LARGE = 4 << 20
"""Bytes from which memory is worth large pages, as NumPy has it."""

# torch 2.10 has this table; without it every tensor is checked property by property.
_core.use_tensors(list(_checks.PLAIN), getattr(Tensor, "__dlpack_c_exchange_api__", None))
_CPU = torch.device("cpu")

torchs_threads = _threads.torchs()
if torchs_threads:
    _core.use_threads(*torchs_threads)


def aligned(size: int) -> int:
    """Round up to whole cache lines, at least one: the engine takes no null pointer for memory."""
    return max((size + 63) & ~63, 64)


class Plan:
    """A problem, the sizes of its buffers in bytes, and whether C++ may make its outputs."""

    __slots__ = (
        "backward_workspace final_h layout packed packing problem saved small_outputs threads "
        "workspace".split()
    )

    def __init__(
        self,
        problem: _core.Problem,
        layout: _core.Layout,
        packing: tuple[str, torch.dtype],
        threads: int,
        final_h: int,
        small_outputs: bool,
    ) -> None:
        self.problem = problem
        self.layout = layout
        self.packed = aligned(problem.packed_bytes)
        self.packing = (*packing, self.packed)  # layouts of one layer differ in size
        self.workspace = aligned(problem.workspace_bytes)
        self.backward_workspace = aligned(problem.backward_workspace_bytes)
        self.saved = problem.saved
        self.threads = threads
        self.final_h = aligned(final_h)
        self.small_outputs = small_outputs
        """Whether no output of a batch without lengths is large enough for large pages."""


@functools.lru_cache(maxsize=1024)
def plan_of(
    layer: Layer,
    dtype: torch.dtype,
    T: int,
    B: int,
    ragged: bool,
    training: bool,
    checkpoint_every: int,
    threads: int,
    isa: str,  # the sizes, and the layout of packed weights, hold for one instruction set
    samples: int = 1,
) -> Plan:
    problem = _core.Problem(
        cell=layer.spec.name,
        dtype="int8" if layer.quantized else _checks.DTYPES[dtype],
        activation=layer.activation,
        T=T,
        B=B,
        I=layer.input_size,
        H=layer.hidden_size,
        P=layer.proj_size,
        directions=layer.directions,
        reverse=False,
        bias=layer.bias,
        ragged=ragged,
        training=training,
        checkpoint_every=checkpoint_every,
        threads=threads,
        samples=samples,
    )
    row, rows = layer.output_size * dtype.itemsize, T * B * layer.directions
    kept = problem.saved * layer.hidden_size * _checks.value_dtype(dtype).itemsize
    small_outputs = not ragged and rows * max(row, kept if training else 0) < LARGE
    layout = _core.Layout(layer.x_batch_first, layer.y_batch_first, layer.step)
    return Plan(problem, layout, (isa, dtype), threads, B * row, small_outputs)


def plan_now(
    layer: Layer,
    dtype: torch.dtype,
    T: int,
    B: int,
    ragged: bool,
    training: bool,
    checkpoint_every: int,
    samples: int = 1,
) -> Plan:
    """Return the plan for the threads and the instruction set that are now in use."""
    now = torch.get_num_threads(), _core.isa()
    return plan_of(layer, dtype, T, B, ragged, training, checkpoint_every, *now, samples)


def stream_problem(layer: Layer, dtype: torch.dtype, batch: int) -> _core.Problem:
    """Return the engine's problem of a stream's first layer: one step, on one thread."""
    return plan_of(layer, dtype, 1, batch, False, False, 0, 1, _core.isa()).problem


def training_problem(
    layer: Layer, dtype: torch.dtype, T: int, B: int, ragged: bool
) -> _core.Problem:
    """Return the engine's problem of a training pass that keeps every step."""
    return plan_now(layer, dtype, T, B, ragged, True, 0).problem


@functools.lru_cache(maxsize=1024)
def saved_values(layer: Layer) -> int:
    """Return how many values per unit and row backward needs: the same for all sizes."""
    checkpoint_every = layer.checkpoint_steps(1)
    return plan_of(layer, torch.float32, 1, 1, False, True, checkpoint_every, 1, _core.isa()).saved


@functools.cache
def cell_info(name: str) -> _core._CellInfo:
    """Return the engine's counts of a cell."""
    return _core.cell_info(name)


class Packed(NamedTuple):
    """A packed copy of a layer's weights, and the last call that used it."""

    content: bytes | None
    """Fingerprint of the weights when they were packed; ``None``: they do not change."""
    packing: object
    memory: Tensor
    layer: Layer
    plan: Plan


PackedCache = dict[int, Packed]
"""By the index of a layer. An entry is only ever replaced: another thread may be reading it."""


def large_pages(memory: Tensor) -> Tensor:
    """Return memory that is about to be written for the first time, in large pages if it is large.

    Where pages are small, a fault for each takes longer than writing what it holds.
    """
    if memory.nbytes >= LARGE and memory.is_cpu:
        _core.advise_large_pages(memory.data_ptr(), memory.nbytes)
    return memory


def allocate(size: int) -> Tensor:
    """Return that many bytes on the CPU, whatever torch's default device is."""
    return large_pages(torch.empty(size, dtype=torch.uint8, device=_CPU))


scratch_memory = _memory.Scratch(allocate)
