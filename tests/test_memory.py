"""Nothing grows: over calls, over shapes, over modules."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from _support import CELLS, Case, call, run, twin

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")


def resident() -> int:
    """Return the bytes this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def assert_no_growth(
    step: Callable[[int], object], iterations: int = 1000, limit: int = 2048
) -> None:
    """Run ``step`` to warm up, then again; a leak of ``limit`` bytes a call would be seen."""
    for i in range(iterations // 3):
        step(i)
    gc.collect()
    before = resident()
    for i in range(iterations):
        step(i)
    gc.collect()
    grown = resident() - before
    assert grown < limit * iterations, f"grew by {grown / iterations:.0f} bytes a call"


@linux
@pytest.mark.parametrize("cell", CELLS)
def test_training(cell: str) -> None:
    case = Case(cell, 5, 4, 8, 16, 2, True)
    module = twin(case)[0]
    assert_no_growth(lambda _: run(module, case))


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@linux
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_ten_thousand_iterations(cell: str) -> None:
    """Training with an optimizer and inference, in turn: neither tensors nor memory grow."""
    case = Case(cell, 4, 3, 8, 16)
    module = twin(case)[0]
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    x = case.inputs()["x"]

    def step(_: int) -> None:
        module(x)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            module(x)

    step(0)
    before = live_tensors()
    assert_no_growth(step, 10_000, 200)
    assert live_tensors() == before


@linux
def test_inference() -> None:
    module = fastrnn.LSTM(32, 64, 2).eval()
    x = torch.randn(6, 4, 32)
    with torch.inference_mode():
        assert_no_growth(lambda _: module(x))


@linux
def test_weights_that_change() -> None:
    """The packed copy of the old weights goes when the new ones are packed."""
    module = fastrnn.GRU(64, 64).eval()
    x = torch.randn(2, 2, 64)

    def step(_: int) -> None:
        module.weight_hh_l0.data.mul_(1.0001)
        module(x)

    with torch.no_grad():
        assert_no_growth(step)


@linux
def test_ever_new_shapes() -> None:
    """Problems are cached, but not for ever."""
    module = fastrnn.GRU(4, 8)

    def step(i: int) -> None:
        x = torch.randn(1 + i % 61, 1 + i % 67, 4)
        lengths = torch.randint(1, x.shape[0] + 1, (x.shape[1],))
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        module(packed)[0].data.sum().backward()

    assert_no_growth(step, 5000)


@linux
def test_modules_that_come_and_go() -> None:
    def step(_: int) -> None:
        module = fastrnn.LSTM(32, 32)
        with torch.no_grad():
            module(torch.zeros(2, 2, 32))

    assert_no_growth(step)


@pytest.mark.parametrize("cell", CELLS)
def test_graph_is_freed(cell: str) -> None:
    """No cycle keeps a graph, an output or a module alive until the collector comes."""
    case = Case(cell, layers=2)
    gc.collect()
    gc.disable()
    try:
        module = case.module(fastrnn)
        tensors = case.inputs()
        outputs = call(module, case, tensors)
        kept = [weakref.ref(t) for t in (module, tensors["x"], *outputs.values())]
        outputs["y"].sum().backward()
        del outputs, module, tensors
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_scratch_does_not_grow_with_time(cell: str) -> None:
    core = pytest.importorskip("fastrnn._core")

    def sizes(steps: int) -> list[int]:
        problem = core.Problem(
            cell, "float32", "tanh", steps, 32, 64, 128, 0, 2, False, True, False, True, 0, 2
        )
        return [problem.workspace_bytes, problem.backward_workspace_bytes, problem.packed_bytes]

    assert sizes(10_000) == sizes(1_000)
