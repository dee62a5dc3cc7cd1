"""What one call of the engine is about, apart from the tensors: a layer, and ragged rows."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

if TYPE_CHECKING:  # the cells build on this module
    from .cells._spec import CellSpec

Weights = list[Tensor | None]
"""``w_ih, w_hh, b_ih, b_hh, w_hr`` of each direction; ``None`` for what a layer does not have.

If they are 8-bit, the scales of ``w_ih, w_hh, w_hr`` follow.
"""

Function = TypeVar("Function", bound=Callable[..., object])


def constant_when_traced(function: Function) -> Function:
    """Have Dynamo call a function of constants for real, and keep what it returned.

    This is ``torch.compiler.assume_constant_result`` without its import of all of Dynamo, which
    would nearly double the time to import torch and this package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


AUTO = -1
"""As ``checkpoint_every``: about the square root of the number of steps."""


def check_checkpoint_every(owner: str, value: object) -> None:
    """Raise ValueError for a ``checkpoint_every`` that is none."""
    if value is None or value == "auto" or (type(value) is int and value >= 1):
        return
    raise ValueError(
        f"{owner}: checkpoint_every must be None, 'auto' or an int of at least 1, got {value!r}"
    )


def checkpoint_steps(value: int | str | None) -> int:
    """Return the option ``checkpoint_every`` as a Layer has it."""
    return value if isinstance(value, int) else AUTO if value == "auto" else 0


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer, all its directions.

    Layers are compared by identity, which makes them cheap keys.

    Args:
        owner: the class that error messages speak of.
        index: position in the stack.
        count: layers in the stack.
        step: a single time step without a time axis, as the ``*Cell`` modules do it.
        x_batch_first: the input is (B, T, I), else (T, B, I).
        y_batch_first: the output is (B, T, D*O), else (T, B, D*O).
        names: of the weights of each direction; ``None`` where there is none.
        shapes: of the same.
        quantized: weights are 8-bit, with scales, and packed copies of them are snapshots.
        checkpoint_every: K, the steps between the states kept for backward; 0: all are; ``AUTO``.
    """

    owner: str
    spec: CellSpec
    activation: str
    input_size: int
    hidden_size: int
    proj_size: int
    directions: int
    bias: bool
    index: int
    count: int
    step: bool
    x_batch_first: bool
    y_batch_first: bool
    names: tuple[str | None, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    quantized: bool = False
    checkpoint_every: int = 0

    output_size: int = field(init=False)
    """Width of the output of one direction."""
    width: int = field(init=False)
    """Width of the output, all directions."""
    key: str = field(init=False)
    """What :func:`layer_of` makes an equal layer of: dispatcher operators take no objects."""

    def __post_init__(self) -> None:
        output_size = self.proj_size or self.hidden_size
        key = json.dumps(
            [
                self.owner,
                self.spec.name,
                self.activation,
                self.input_size,
                self.hidden_size,
                self.proj_size,
                self.directions,
                self.bias,
                self.index,
                self.count,
                self.step,
                self.x_batch_first,
                self.y_batch_first,
                self.quantized,
                self.checkpoint_every,
            ]
        )
        object.__setattr__(self, "output_size", output_size)
        object.__setattr__(self, "width", self.directions * output_size)
        object.__setattr__(self, "key", key)

    def checkpoint_steps(self, T: int) -> int:
        """Return K for T steps, 0 if everything is kept."""
        return math.isqrt(T - 1) + 1 if self.checkpoint_every == AUTO else self.checkpoint_every


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of a batch of sequences of several lengths.

    Args:
        offsets: int64 on CPU, (T + 1): rows before each step.
        T: number of steps, the longest length.
        B: number of sequences.
        N: number of rows, the sum of the lengths.
        rows: where input and output are padded: int64 on CPU, (N): of each row in packed order the
            number ``t * batch + b`` among theirs, whether they are batch-first or not. ``None``:
            they are packed.
        padded: number of steps and of sequences in padded input and output.
    """

    offsets: Tensor
    T: int
    B: int
    N: int
    rows: Tensor | None = None
    padded: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Stack:
    """The layers of a module, for input that is time-major (or packed) and batch-first."""

    owner: str
    spec: CellSpec
    input_size: int
    hidden_size: int
    proj_size: int
    directions: int
    time_major: tuple[Layer, ...]
    batch_first: tuple[Layer, ...]


@functools.lru_cache(maxsize=1024)
def make_stack(
    owner: str,
    spec: CellSpec,
    activation: str,
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    num_layers: int = 1,
    directions: int = 1,
    bias: bool = True,
    quantized: bool = False,
    checkpoint_every: int = 0,
) -> Stack:
    """Describe the layers of a module; equal arguments give the same object."""

    def layers(batch_first: bool) -> tuple[Layer, ...]:
        return tuple(
            make_layer(
                owner,
                spec,
                activation,
                width,
                hidden_size,
                proj_size,
                directions,
                bias,
                index,
                num_layers,
                False,
                # Between layers data are time-major, so that dropout draws torch's numbers.
                batch_first and index == 0,
                batch_first and index == num_layers - 1,
                quantized,
                checkpoint_every,
            )
            for index, width in enumerate(widths)
        )

    between = directions * (proj_size or hidden_size)
    widths = [input_size] + [between] * (num_layers - 1)
    return Stack(
        owner,
        spec,
        input_size,
        hidden_size,
        proj_size,
        directions,
        layers(False),
        layers(True),
    )


@functools.lru_cache(maxsize=1024)
def make_step(
    owner: str, spec: CellSpec, activation: str, input_size: int, hidden_size: int, bias: bool
) -> Layer:
    """Describe a single time step; equal arguments give the same object."""
    return make_layer(
        owner, spec, activation, input_size, hidden_size, 0, 1, bias, 0, 1, True, False, False
    )


@functools.lru_cache(maxsize=1024)
def make_layer(
    owner: str,
    spec: CellSpec,
    activation: str,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    bias: bool,
    index: int,
    count: int,
    step: bool,
    x_batch_first: bool,
    y_batch_first: bool,
    quantized: bool = False,
    checkpoint_every: int = 0,
) -> Layer:
    """Describe one layer; equal arguments give the same object."""
    suffix = "" if step else f"_l{index}"
    return Layer(
        owner,
        spec,
        activation,
        input_size,
        hidden_size,
        proj_size,
        directions,
        bias,
        index,
        count,
        step,
        x_batch_first,
        y_batch_first,
        _names(directions, bias, proj_size, suffix, quantized),
        _shapes(spec, input_size, hidden_size, proj_size, directions, bias, quantized),
        quantized,
        checkpoint_every,
    )


@constant_when_traced
def stack_of(owner: str, cell: str, *options: object) -> Stack:
    """Return ``make_stack`` of a cell's name: of constants alone, as compilers want it."""
    from .cells._spec import SPECS

    return make_stack(owner, SPECS[cell], *options)


@constant_when_traced
def step_of(owner: str, cell: str, *options: object) -> Layer:
    """Return ``make_step`` of a cell's name: of constants alone, as compilers want it."""
    from .cells._spec import SPECS

    return make_step(owner, SPECS[cell], *options)


@functools.lru_cache(maxsize=1024)
def layer_of(key: str) -> Layer:
    """Return the layer that has this ``key``."""
    from .cells._spec import SPECS

    owner, name, *rest = json.loads(key)
    return make_layer(owner, SPECS[name], *rest)


def _names(
    directions: int, bias: bool, proj_size: int, suffix: str, quantized: bool
) -> tuple[str | None, ...]:
    names: list[str | None] = []
    for tail in (suffix, f"{suffix}_reverse")[:directions]:
        names += [f"weight_ih{tail}", f"weight_hh{tail}"]
        names += [f"bias_ih{tail}", f"bias_hh{tail}"] if bias else [None, None]
        names += [f"weight_hr{tail}" if proj_size else None]
        if quantized:
            names += [n and f"scale_{n[7:]}" for n in (*names[-5:-3], names[-1])]
    return tuple(names)


def _shapes(
    spec: CellSpec,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    bias: bool,
    quantized: bool,
) -> tuple[tuple[int, ...] | None, ...]:
    rows = spec.gates * hidden_size
    vector = (rows,) if bias else None
    projection = (proj_size, hidden_size) if proj_size else None
    one: tuple[tuple[int, ...] | None, ...] = (
        (rows, input_size),
        (rows, proj_size or hidden_size),
        vector,
        vector,
        projection,
    )
    if quantized:
        one += ((rows,), (rows,), (proj_size,) if proj_size else None)
    return one * directions
