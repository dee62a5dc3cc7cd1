"""Types of the compiled module. Pointers are integers, 0 stands for an absent buffer."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]

class Inputs:
    """Where x, the initial states and the weights of a call are; the tensors must stay."""

class Layout:
    """How the rows of x and y lie."""

    def __init__(self, x_batch_first: bool, y_batch_first: bool, step: bool) -> None: ...

class Problem:
    """One layer over one batch: every size and layout follows from it (csrc/include/fastrnn.h)."""

    def __init__(
        self,
        cell: str,
        dtype: str,
        activation: str,
        T: int,
        B: int,
        I: int,
        H: int,
        P: int,
        directions: int,
        reverse: bool,
        bias: bool,
        ragged: bool,
        training: bool,
        checkpoint_every: int,
        threads: int,
        samples: int = 1,
    ) -> None: ...
    def inputs(
        self, x: int, x_step: int, x_row: int, h0: int, c0: int, weights: list[int], /
    ) -> Inputs: ...
    def read_inputs(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor | None],
        batch_first: bool,
        step: bool,
        /,
    ) -> Inputs | None: ...
    def fingerprint(self, inputs: Inputs, /) -> bytes: ...
    def repeat(
        self,
        layout: Layout,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor | None],
        content: bytes | None,
        out: tuple[Tensor | None, Tensor | None] | None,
        packed: int,
        workspace: int,
        h_n: int,
        /,
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None: ...
    def ordinary_forward(
        self,
        layout: Layout,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor | None],
        packed: int,
        workspace: int,
        h_n: int,
        /,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None: ...
    def ordinary_backward(
        self,
        layout: Layout,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor | None],
        wanted: Sequence[bool],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        y: Tensor,
        reserve: Tensor | None,
        workspace: int,
        /,
    ) -> tuple[Tensor | None, ...] | None: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def packs_as_used(self) -> bool: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def backward_workspace_bytes(self) -> int: ...
    @property
    def saved(self) -> int: ...

class Stream:
    """A stack of layers that takes one step at a time; problem is the first layer's."""

    def __init__(self, problem: Problem, layers: int) -> None: ...
    def load(self, weights: list[int], /) -> None: ...
    def step(self, x: int, x_row: int, y: int, y_row: int, /) -> None: ...
    def step_tensor(self, x: object, /) -> Tensor | None:
        """Return y, or None if there is anything special about x."""

    def set_state(self, h: int, c: int, /) -> None: ...
    def get_state(self, h: int, c: int, /) -> None: ...

def segments(
    T: int, B: int, lengths: Ints | None, reset: npt.NDArray[np.bool_] | None
) -> tuple[int, int, int, int, Ints, Ints, Ints, npt.NDArray[np.bool_], Ints]: ...
def use_tensors(types: list[type], table: object, /) -> None: ...
def use_threads(start: int, end: int, within: int, /) -> None: ...
def version() -> str: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...

class _CellInfo(TypedDict):
    """Counts of a cell (csrc/include/fastrnn/fastrnn.h)."""

    gates: int
    states: int
    saved: int
    gradients: int
    state_slots: list[int]
    of_input: list[int]
    of_recurrent: list[int]

def cell_info(name: str) -> _CellInfo: ...
def forward(
    problem: Problem,
    inputs: Inputs,
    offsets: int,
    table: tuple[int, int, int],
    y: int,
    y_step: int,
    y_row: int,
    h_n: int,
    c_n: int,
    reserve: int,
    packed: int,
    repack: bool,
    workspace: int,
    /,
) -> None: ...
def backward(
    problem: Problem,
    inputs: Inputs,
    offsets: int,
    table: tuple[int, int, int],
    y: int,
    y_step: int,
    y_row: int,
    reserve: int,
    dy: int,
    dy_step: int,
    dy_row: int,
    dh_n: int,
    dc_n: int,
    dx: int,
    dx_step: int,
    dx_row: int,
    dh0: int,
    dc0: int,
    dweights: list[int],
    dgates: int,
    workspace: int,
    /,
) -> None: ...
def second_order(
    problem: Problem,
    reverse: bool,
    offsets: int,
    w_hh: int,
    wx: int,
    rh: int,
    before: tuple[int, int],
    v_wx: int,
    v_rh: int,
    v_initial: tuple[int, int],
    dgates: int,
    through: int,
    v_before: int,
    v_y: int,
    v_final: tuple[int, int],
    d: int,
    d_initial: tuple[int, int],
    workspace: int,
    /,
) -> None: ...
def second_order_workspace(problem: Problem, N: int, /) -> int: ...
def fingerprint(pointers: list[int], sizes_in_bytes: list[int], /) -> bytes: ...
def fma_peak(seconds: float = 0.2, dtype: str = "float32") -> float: ...
def read_bandwidth(bytes: int, seconds: float = 0.1) -> float: ...

class ReservoirProblem:
    """M reservoirs on one batch (csrc/include/fastrnn/reservoir.h)."""

    def __init__(
        self,
        dtype: str,
        activation: str,
        M: int,
        T: int,
        B: int,
        I: int,
        F: int,
        N: int,
        reverse: bool,
        threads: int,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...

class ReservoirForecast:
    """A closed loop over some layers; the problem is the first layer's, T the horizon."""

    def __init__(
        self,
        problem: ReservoirProblem,
        layers: int,
        O: int,
        square: bool,
        sees_input: bool,
        ring: bool,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...

class Polynomial:
    """A closed loop over products of delayed inputs."""

    def __init__(
        self,
        dtype: str,
        T: int,
        B: int,
        I: int,
        O: int,
        delays: int,
        skip: int,
        order: int,
        features: int,
        square: bool,
        sees_input: bool,
        threads: int,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...

class Gram:
    """Sums over n rows of N states and O targets."""

    def __init__(self, states: str, targets: str, n: int, N: int, O: int, threads: int) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...

def reservoir_forward(
    problem: ReservoirProblem,
    weights: list[int],
    x: int,
    x_strides: list[int],
    feedback: int,
    feedback_strides: list[int],
    noise: int,
    lengths: int,
    h0: int,
    y: int,
    y_strides: list[int],
    h_n: int,
    activated: int,
    workspace: int,
    /,
) -> None: ...
def reservoir_backward(
    problem: ReservoirProblem,
    weights: list[int],
    lengths: int,
    activated: int,
    dy: int,
    dy_strides: list[int],
    dh_n: int,
    dx: int,
    dx_strides: list[int],
    dfeedback: int,
    dfeedback_strides: list[int],
    dh0: int,
    workspace: int,
    /,
) -> None: ...
def reservoir_forecast(
    forecast: ReservoirForecast,
    weights: list[list[int]],
    w_out: int,
    b_out: int,
    reads: int,
    drivers: int,
    drivers_strides: list[int],
    u: int,
    state: int,
    out: int,
    out_strides: list[int],
    workspace: int,
    /,
) -> None: ...
def polynomial_forecast(
    polynomial: Polynomial,
    monomials: int,
    w_out: int,
    b_out: int,
    drivers: int,
    drivers_strides: list[int],
    window: int,
    out: int,
    out_strides: list[int],
    workspace: int,
    /,
) -> None: ...
def gram_accumulate(
    gram: Gram,
    states: int,
    states_row: int,
    targets: int,
    targets_row: int,
    shift: int,
    target_shift: int,
    row_weights: int,
    gram_sums: int,
    cross: int,
    sums: int,
    workspace: int,
    /,
) -> None: ...
def advise_large_pages(start: int, bytes: int) -> None: ...
