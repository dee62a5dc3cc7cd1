"""Types of the compiled module. Pointers are integers, 0 stands for an absent buffer."""

from typing import TypedDict

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
    ) -> None: ...
    @property
    def packed_bytes(self) -> int: ...
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
    def set_state(self, h: int, c: int, /) -> None: ...
    def get_state(self, h: int, c: int, /) -> None: ...

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
    x: int,
    x_step: int,
    x_row: int,
    offsets: int,
    table: tuple[int, int, int],
    h0: int,
    c0: int,
    weights: list[int],
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
    x: int,
    x_step: int,
    x_row: int,
    offsets: int,
    table: tuple[int, int, int],
    h0: int,
    c0: int,
    weights: list[int],
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
def fingerprint(pointers: list[int], sizes_in_bytes: list[int], /) -> bytes: ...
def fma_peak(seconds: float = 0.2, dtype: str = "float32") -> float: ...
def read_bandwidth(bytes: int, seconds: float = 0.1) -> float: ...
