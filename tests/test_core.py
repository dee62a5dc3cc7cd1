"""The compiled module itself: misuse is an exception, never a crash."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

core = pytest.importorskip("fastrnn._core")

GOOD: dict[str, Any] = {
    "cell": "lstm",
    "dtype": "float32",
    "activation": "tanh",
    "T": 3,
    "B": 2,
    "I": 4,
    "H": 5,
    "P": 0,
    "directions": 1,
    "reverse": False,
    "bias": True,
    "ragged": False,
    "training": True,
    "checkpoint_every": 0,
    "threads": 1,
}
BAD = (
    [{name: -1} for name in ("T", "I", "H")]
    + [
        {"T": 0},
        {"H": 0},
        {"B": -1},
        {"P": -1},
        {"threads": 0},
        {"directions": 0},
        {"directions": 3},
    ]
    + [
        {"cell": "transformer"},
        {"dtype": "int64"},
        {"dtype": "int8"},
        {"checkpoint_every": -1},
        {"activation": "sine"},
    ]
    + [{"cell": "gru", "P": 2}, {"P": 5}, {"directions": 2, "reverse": True}]
    + [{"activation": "relu"}, {"T": 2**40, "B": 2**40}, {"H": 2**62}]
)


def problem(**changes: Any) -> Any:
    return core.Problem(**GOOD | changes)


@pytest.mark.parametrize("change", BAD, ids=str)
def test_bad_problem(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        problem(**change)


def test_good_problems() -> None:
    for cell, dtype, directions, training in itertools.product(
        ("elman", "lstm", "gru"),
        ("float32", "float64", "bfloat16", "float16"),
        (1, 2),
        (False, True),
    ):
        made = problem(cell=cell, dtype=dtype, directions=directions, training=training)
        assert made.packed_bytes >= 0
        assert made.workspace_bytes >= 0
        assert made.saved == core.cell_info(cell)["saved"]
    assert problem(B=0).saved > 0
    assert problem(directions=1, reverse=True).saved > 0
    assert problem(cell="elman", activation="relu").saved >= 0


def test_problem_is_immutable() -> None:
    made = problem()
    for name in ("saved", "T", "packed_bytes"):
        with pytest.raises(AttributeError):
            setattr(made, name, 1)


def test_unknown_cell_and_isa() -> None:
    with pytest.raises(ValueError, match="transformer"):
        core.cell_info("transformer")
    with pytest.raises(ValueError, match="avx1024"):
        core.set_isa("avx1024")


class Call:
    """The arguments of a forward and a backward call, all of them right."""

    def __init__(self) -> None:
        self.problem = problem()
        shapes = {
            "x": (3, 2, 4), "y": (3, 2, 5), "h_n": (1, 2, 5), "c_n": (1, 2, 5),
            "reserve": (1, 6, self.problem.saved, 5), "dy": (3, 2, 5), "dx": (3, 2, 4),
        }  # fmt: skip
        self.memory = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self.weights = [torch.zeros(20, 4), torch.zeros(20, 5), torch.zeros(20), torch.zeros(20)]
        sizes = ("packed_bytes", "workspace_bytes", "backward_workspace_bytes")
        self.scratch = [torch.zeros(getattr(self.problem, s) + 1, dtype=torch.uint8) for s in sizes]
        at = {name: tensor.data_ptr() for name, tensor in self.memory.items()}
        pointers = [*(w.data_ptr() for w in self.weights), 0]
        packed, workspace, other = (t.data_ptr() for t in self.scratch)
        self.inputs: list[Any] = [at["x"], 8, 4, 0, 0, pointers]
        inputs = self.problem.inputs(*self.inputs)
        self.forward: list[Any] = [
            self.problem, inputs, 0, (0, 0, 0), at["y"], 10, 5,
            at["h_n"], at["c_n"], at["reserve"], packed, True, workspace,
        ]  # fmt: skip
        self.backward: list[Any] = [
            self.problem, inputs, 0, (0, 0, 0), at["y"], 10, 5,
            at["reserve"], at["dy"], 10, 5, 0, 0, at["dx"], 8, 4, 0, 0, [0] * 5, 0, other,
        ]  # fmt: skip

    def with_input(self, position: int, value: object) -> None:
        """Replace one of the arguments that ``Problem.inputs`` takes."""
        self.inputs[position] = value
        self.forward[1] = self.backward[1] = self.problem.inputs(*self.inputs)


def test_right_calls_are_right() -> None:
    call = Call()
    core.forward(*call.forward)
    core.backward(*call.backward)
    assert torch.equal(call.memory["y"], torch.zeros(3, 2, 5))


def test_calls_without_x() -> None:
    call = Call()
    call.with_input(0, 0)
    with pytest.raises(ValueError, match=r"\w"):
        core.forward(*call.forward)
    with pytest.raises(ValueError, match=r"\w"):
        core.backward(*call.backward)


@pytest.mark.parametrize("position", [4, 7, 8, 9])
def test_forward_without_a_needed_pointer(position: int) -> None:
    """y, h_n, c_n, and the reserve in training."""
    call = Call()
    call.forward[position] = 0
    with pytest.raises(ValueError, match=r"\w"):
        core.forward(*call.forward)


@pytest.mark.parametrize("position", [4, 7])
def test_backward_without_a_needed_pointer(position: int) -> None:
    """y, the reserve."""
    call = Call()
    call.backward[position] = 0
    with pytest.raises(ValueError, match=r"\w"):
        core.backward(*call.backward)


@pytest.mark.parametrize("count", [0, 4, 6, 10])
def test_wrong_number_of_weights(count: int) -> None:
    call = Call()
    with pytest.raises(ValueError, match=f"got {count}"):
        call.with_input(5, (call.inputs[5] * 2)[:count])
    call.backward[18] = [0] * count
    with pytest.raises(ValueError, match=r"\w"):
        core.backward(*call.backward)


@pytest.mark.parametrize("index", range(4))
def test_missing_weight(index: int) -> None:
    call = Call()
    call.with_input(5, [p if i != index else 0 for i, p in enumerate(call.inputs[5])])
    with pytest.raises(ValueError, match=r"\w"):
        core.forward(*call.forward)


def test_backward_of_an_inference_problem() -> None:
    call = Call()
    call.backward[0] = problem(training=False)
    with pytest.raises(ValueError, match=r"\w"):
        core.backward(*call.backward)


def test_fingerprint() -> None:
    """Every bit counts, and so do order and length."""
    data = torch.arange(1000, dtype=torch.uint8).repeat(3)[:2085].clone()

    def fingerprint(*tensors: torch.Tensor) -> bytes:
        return core.fingerprint([t.data_ptr() for t in tensors], [t.numel() for t in tensors])

    base = fingerprint(data)
    assert isinstance(base, bytes)
    assert len(base) == 16
    assert base == fingerprint(data.clone())
    seen = {base}
    for index in range(len(data)):
        data[index] ^= 1 << index % 8
        seen.add(fingerprint(data))
        data[index] ^= 1 << index % 8
    assert len(seen) == len(data) + 1
    assert fingerprint(data) == base
    assert fingerprint(data.flip(0)) not in seen
    assert len({fingerprint(torch.zeros(n, dtype=torch.uint8)) for n in range(1, 200)}) == 199
    a, b = data[:1000].clone(), data[1000:].clone()
    assert fingerprint(a, b) != fingerprint(b, a)


def test_fingerprint_of_swapped_blocks() -> None:
    """Blocks of 8 to 1024 bytes that change places change the hash."""
    data = torch.randint(0, 255, (4096,), dtype=torch.uint8)

    def fingerprint() -> bytes:
        return core.fingerprint([data.data_ptr()], [data.numel()])

    base = fingerprint()
    for size in (8, 16, 32, 64, 128, 256, 512, 1024):
        block = data[:size].clone()
        data[:size] = data[size : 2 * size]
        data[size : 2 * size] = block
        assert fingerprint() != base
        data[size : 2 * size] = data[:size]
        data[:size] = block
    assert fingerprint() == base
