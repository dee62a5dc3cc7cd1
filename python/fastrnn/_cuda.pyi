"""Types of the CUDA engine's module (cuda/module.cpp). Pointers are integers, 0: absent."""

from typing import TypedDict

has_kernels: bool

class Problem:
    """One layer over one batch; of a stack and of inputs it knows nothing."""

    def __init__(
        self,
        cell: str,
        dtype: str,
        activation: str,
        T: int,
        B: int,
        H: int,
        P: int,
        directions: int,
        ragged: bool,
        training: bool,
    ) -> None: ...

class Device:
    """What plans are made from (cuda/api.h)."""

    major: int
    minor: int
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int
    clock_ghz: float
    l2_gb_per_s: float
    barrier_us: float
    launch_us: float

class Plan:
    """How a pass runs (cuda/api.h)."""

    kernel: str
    backward: bool
    tf32: bool
    units: int
    rows: int
    unit_blocks: int
    row_blocks: int
    layers: int
    splits: int
    threads: int
    blocks: int
    blocks_per_multiprocessor: int
    shared_bytes: int
    weight_bytes: int
    register_bytes: int
    broadcast_bytes: int
    product_us: float
    broadcast_us: float
    wait_us: float
    step_us: float

class _Layout(TypedDict):
    """Counts of a cell; gate g has the gradients input[g] and recurrent[g] of dgates."""

    gates: int
    states: int
    gradients: int
    saved: int
    input: list[int]
    recurrent: list[int]

def layout(cell: str) -> _Layout: ...
def device_named(name: str) -> Device: ...
def plan(
    problem: Problem, device: Device, backward: bool, tf32: bool, kernel: str = ""
) -> Plan: ...
def workspace_bytes(problem: Problem, plan: Plan, /) -> int: ...

# These are there with kernels only.

def versions() -> tuple[int, int]: ...
def device_properties() -> Device: ...
def forward(
    problem: Problem,
    plan: Plan,
    wx: tuple[int, int],
    wx_step: int,
    wx_row: int,
    offsets: int,
    h0: int,
    c0: int,
    w_hh: tuple[int, int],
    b_hh: tuple[int, int],
    w_hr: tuple[int, int],
    y: int,
    y_step: int,
    y_row: int,
    h_n: int,
    c_n: int,
    reserve: int,
    workspace: int,
    stream: int,
    /,
) -> None: ...
def backward(
    problem: Problem,
    plan: Plan,
    offsets: int,
    h0: int,
    c0: int,
    w_hh: tuple[int, int],
    w_hr: tuple[int, int],
    y: int,
    y_step: int,
    y_row: int,
    reserve: int,
    dy: int,
    dy_step: int,
    dy_row: int,
    dh_n: int,
    dc_n: int,
    dgates: tuple[int, int],
    dprojected: tuple[int, int],
    dh0: int,
    dc0: int,
    workspace: int,
    stream: int,
    /,
) -> None: ...

class Stream:
    """Steps through a stack of layers, whose weights and state are the caller's."""

    plan: Plan
    bytes: int

    def __init__(
        self, problem: Problem, inputs: int, layers: int, device: Device, tf32: bool, /
    ) -> None: ...
    def load(self, weights: list[tuple[int, int, int, int, int]], /) -> None: ...
    def step(self, x: int, x_row: int, y: int, y_row: int, state: int, stream: int, /) -> None: ...
    def set_state(self, state: int, h: int, c: int, stream: int, /) -> None: ...
    def get_state(self, state: int, h: int, c: int, stream: int, /) -> None: ...
