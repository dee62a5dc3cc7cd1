"""The benchmarked problems, as data, and the arithmetic that belongs to each."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GATES = {"elman": 1, "lstm": 4, "gru": 3}
CELLS = tuple(GATES)
MODES = ("inference", "training", "streaming")
SETS = ("quick", "everyday", "deepbench", "single", "few", "all")
# Bytes of a weight. int8: float32 input and output, 8-bit weights, inference and streaming only.
WEIGHT_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int8": 1}

Shape = tuple[int, int, int, int]  # T steps, B sequences, I inputs, H hidden units

# The demo; the shape of the acceptance bars; one sequence, twice; large; weights beyond L2.
QUICK: tuple[Shape, ...] = (
    (28, 32, 28, 128),
    (100, 32, 256, 256),
    (256, 1, 256, 256),
    (1000, 1, 64, 64),
    (100, 64, 512, 512),
    (50, 16, 1024, 1024),
)

EVERYDAY: tuple[Shape, ...] = (
    *QUICK,
    (100, 1, 32, 32),  # sensors, control, audio effects
    (100, 8, 64, 64),
    (1000, 8, 256, 256),
    (100, 1, 512, 512),
    (100, 1, 1024, 1024),
    (28, 128, 28, 128),
    (200, 16, 128, 128),
    (100, 32, 128, 128),
    (35, 20, 650, 650),  # Zaremba et al. (2014), medium language model
    (500, 4, 80, 512),  # speech: 80 filter banks a frame
    (100, 128, 256, 256),
    (50, 128, 1024, 1024),
)

# One sequence of single numbers: nearly all of a step is the recurrent product, which reads W_hh;
# of the first shape, whose W_hh is in L1, it is latency.
SINGLE: tuple[Shape, ...] = (
    (1000, 1, 1, 16),
    (1000, 1, 1, 64),
    (500, 1, 1, 128),
    (256, 1, 1, 256),
    (100, 1, 1, 512),
    (50, 1, 1, 1024),
)

# Few steps, which use each weight once or a few times: decoders, control, chunks of a stream.
FEW: tuple[Shape, ...] = (
    (1, 1, 32, 32),
    (1, 32, 64, 64),
    (1, 1, 256, 256),
    (1, 32, 256, 256),
    (1, 128, 512, 512),
    (2, 1, 512, 512),
    (2, 2, 1024, 1024),
    (4, 64, 128, 128),
    (10, 1, 32, 32),
    (10, 32, 64, 64),
)

# Steps that come one at a time: what counts is the time of one of them, a T-th of the call's.
STREAMING: tuple[Shape, ...] = (
    (64, 1, 32, 32),
    (64, 1, 64, 64),
    (64, 1, 128, 128),
    (64, 1, 256, 256),
    (64, 1, 512, 512),
    (64, 8, 256, 256),
)

DEEPBENCH_FILE = Path(__file__).with_name("deepbench_shapes.csv")
DEEPBENCH_CELLS = {"vanilla": "elman", "lstm": "lstm", "gru": "gru"}


@dataclass(frozen=True)
class Case:
    """One layer, one direction, over one batch: what a row of the result table is about."""

    cell: str
    mode: str
    T: int
    B: int
    I: int
    H: int
    dtype: str = "float32"
    ragged: bool = False
    padded: bool = False  # ragged, and input and output are padded, sequences in any order
    source: str = "everyday"

    @property
    def shape(self) -> str:
        return f"{self.T},{self.B},{self.I},{self.H}"

    @property
    def name(self) -> str:
        return f"{self.cell} {self.mode} {self.shape}{self.layout}"

    @property
    def layout(self) -> str:
        return " lengths" if self.padded else " ragged" if self.ragged else ""

    @property
    def unsorted_lengths(self) -> np.ndarray:
        """The lengths of padded input."""
        order = np.random.default_rng(1).permutation(self.B)
        lengths: np.ndarray = self.lengths[order]
        return lengths

    @property
    def lengths(self) -> np.ndarray:
        """Lengths of the sequences, longest first."""
        if not self.ragged:
            return np.full(self.B, self.T)
        drawn = np.random.default_rng(0).integers(self.T // 2, self.T, self.B, endpoint=True)
        lengths: np.ndarray = np.sort(np.maximum(drawn, 1))[::-1].copy()
        return lengths

    @property
    def rows(self) -> int:
        """Steps of all sequences together."""
        return int(self.lengths.sum())

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products alone, forward; three times in training.

        The backward pass has two products of the forward's size, one for the gradients of the
        weights and one for those of x and h. Gate maths is left out.
        """
        forward = 2 * self.rows * GATES[self.cell] * self.H * (self.I + self.H)
        return forward * (3 if self.mode == "training" else 1)

    @property
    def storage(self) -> str:
        """The dtype of input and output."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def reread_bytes(self) -> int:
        """Size of the weights that are read at each step: W_hh, and W_ih in streaming."""
        columns = self.H + (self.I if self.mode == "streaming" else 0)
        return GATES[self.cell] * self.H * columns * WEIGHT_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """What has to be read of weights at least; twice in training.

        W_ih is read once, since the input product can be made for all steps together, but at each
        step in streaming.
        """
        total = int(self.lengths[0]) * self.reread_bytes
        if self.mode != "streaming":
            total += GATES[self.cell] * self.H * self.I * WEIGHT_BYTES[self.dtype]
        return total * (2 if self.mode == "training" else 1)


@dataclass(frozen=True)
class Data:
    """Input, weights in torch's layout and gate order, and the gradient that comes from above.

    In float64 if the case is, else in float32, which each side rounds to the case's dtype.
    """

    x: np.ndarray  # (T, B, I)
    dy: np.ndarray  # (T, B, H)
    w_ih: np.ndarray  # (G*H, I)
    w_hh: np.ndarray  # (G*H, H)
    b_ih: np.ndarray  # (G*H,)
    b_hh: np.ndarray  # (G*H,)


def make_data(case: Case) -> Data:
    """Draw the same data for every library; the weights as torch.nn draws them."""
    generator = np.random.default_rng(0)
    rows, bound = GATES[case.cell] * case.H, case.H**-0.5
    dtype = "float64" if case.dtype == "float64" else "float32"

    def uniform(*shape: int) -> np.ndarray:
        return generator.uniform(-bound, bound, shape).astype(dtype)

    return Data(
        x=generator.standard_normal((case.T, case.B, case.I), dtype),
        dy=generator.standard_normal((case.T, case.B, case.H), dtype),
        w_ih=uniform(rows, case.I),
        w_hh=uniform(rows, case.H),
        b_ih=uniform(rows),
        b_hh=uniform(rows),
    )


def deepbench() -> list[tuple[str, str, Shape]]:
    """Return (cell, mode, shape) of DeepBench's problems; see README.md for their source."""
    problems = []
    with DEEPBENCH_FILE.open(newline="") as file:
        for row in csv.DictReader(file):
            T, B, H = int(row["timesteps"]), int(row["batch"]), int(row["hidden"])
            mode = "training" if row["set"] == "training_set" else "inference"
            problems.append((DEEPBENCH_CELLS[row["kind"]], mode, (T, B, H, H)))
    return problems


def cases(
    chosen: str | Shape, cells: tuple[str, ...], modes: tuple[str, ...], dtype: str, ragged: bool
) -> list[Case]:
    """Return the cases of a set, or of one shape, smallest first, so that results come early."""
    listed = []
    if not isinstance(chosen, str):
        listed += [
            Case(c, mode, *chosen, dtype, ragged, source="given") for c in cells for mode in modes
        ]
    elif chosen != "deepbench":
        own = {"quick": QUICK, "single": SINGLE, "few": FEW}
        source = chosen if chosen in own else "everyday"
        shapes = own.get(chosen, EVERYDAY)
        listed += [
            Case(cell, mode, *shape, dtype, ragged and mode != "streaming", source=source)
            for cell in cells
            for mode in modes
            for shape in (STREAMING if mode == "streaming" else shapes)
        ]
    if chosen in ("deepbench", "all"):
        listed += [
            Case(cell, mode, *shape, dtype, ragged, source="deepbench")
            for cell, mode, shape in deepbench()
            if cell in cells and mode in modes
        ]
    if dtype == "int8":
        listed = [case for case in listed if case.mode != "training"]
    return sorted(listed, key=lambda case: (case.mode, case.cell, case.flops))
