"""The arithmetic contract: what a result must not depend on, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from _support import (
    CELLS,
    DTYPES,
    Case,
    Tensors,
    Truth,
    assert_accurate,
    assert_bitwise,
    call,
    output_of,
    python,
    root_mean_square,
    run,
    truth,
    twin,
)

# T, B, I, H: rows to split over threads, few rows and many units, one row, one step, two partial
# sums, several panels and time blocks.
SHAPES = ((9, 40, 7, 20), (6, 2, 30, 150), (30, 1, 8, 70), (1, 70, 20, 33), (13, 33, 17, 64))
LARGE = ((60, 32, 48, 128), (200, 8, 16, 100), (4, 300, 24, 96))


def on_threads(count: int, module: Any, case: Case, **options: Any) -> Tensors:
    torch.set_num_threads(count)
    return run(module, case, **options)


@pytest.mark.core
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
def test_thread_count(cell: str, shape: tuple[int, ...], layout: str) -> None:
    """Everything, weight gradients included, on 1, 2, 3 and 4 threads."""
    case = Case(cell, *shape, bidirectional=True, layout=layout)
    ours = twin(case)[0]
    expected = on_threads(1, ours, case)
    inference = on_threads(1, ours, case, wants=())
    for count in (2, 3, 4):
        assert_bitwise(on_threads(count, ours, case), expected)
        assert_bitwise(on_threads(count, ours, case, wants=()), inference)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))
def test_run_to_run(cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, 20, 70, 9, 40, 2, True)
    ours = twin(case, dtype)[0]
    expected = run(ours, case)
    for _ in range(10):
        assert_bitwise(run(ours, case), expected)


def part_of(tensors: Tensors, rows: slice) -> Tensors:
    return {name: tensor[:, rows] for name, tensor in tensors.items()}


def differentiate(module: Any, case: Case, tensors: Tensors, upstream: Tensors) -> Tensors:
    """Return outputs and the gradients of the inputs, from given gradients of the outputs."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    outputs = call(module, case, leaves)
    gradients = torch.autograd.grad(
        list(outputs.values()), list(leaves.values()), [upstream[n] for n in outputs]
    )
    found = {n: t.detach() for n, t in outputs.items()}
    return found | {f"d.{n}": g for n, g in zip(leaves, gradients, strict=True)}


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [2, 7, 33, 64, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))
def test_batch_companions(cell: str, batch: int, dtype: torch.dtype) -> None:
    """A sequence alone, among a few, and in the whole batch: the same numbers."""
    case = Case(cell, 7, batch, 9, 37, 2, True)
    ours = twin(case, dtype)[0]
    tensors = case.inputs(dtype)
    upstream = {n: torch.randn_like(t) for n, t in call(ours, case, tensors).items()}
    whole = differentiate(ours, case, tensors, upstream)
    for first, count in ((0, 1), (batch - 1, 1), (batch // 2, 1), (0, batch // 2), (1, batch - 1)):
        torch.set_num_threads(1 + first % 2)
        rows = slice(first, first + count)
        part = differentiate(ours, case, part_of(tensors, rows), part_of(upstream, rows))
        assert_bitwise(part, part_of(whole, rows))


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
def test_companions_with_large_weights(cell: str) -> None:
    """From one row to many, each way of bringing panels that caches do not hold."""
    case = Case(cell, 2, 13, 5, 1100)
    ours = twin(case)[0]
    tensors = case.inputs()
    upstream = {n: torch.randn_like(t) for n, t in call(ours, case, tensors).items()}
    whole = differentiate(ours, case, tensors, upstream)
    for count in (1, 2, 3, 4, 5, 6, 8, 9):
        rows = slice(1, 1 + count)
        part = differentiate(ours, case, part_of(tensors, rows), part_of(upstream, rows))
        assert_bitwise(part, part_of(whole, rows))


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("length", [5, 64, 300])
@pytest.mark.parametrize("batch", [1, 6])
def test_cut_in_time(cell: str, length: int, batch: int) -> None:
    """Two calls that hand the state on equal one call, wherever the cut is."""
    case = Case(cell, length, batch, 9, 37)
    ours = twin(case)[0]
    tensors = case.inputs()
    upstream = {n: torch.randn_like(t) for n, t in call(ours, case, tensors).items()}
    whole = differentiate(ours, case, tensors, upstream)
    states = [n for n in tensors if n != "x"]
    for cut in {1, length // 2, length - 1}:
        first = call(ours, case, tensors | {"x": tensors["x"][:cut]})
        handed = {f"{n}0": first[f"{n}_n"].detach() for n in ("h", "c") if f"{n}_n" in first}
        second = differentiate(
            ours,
            case,
            {"x": tensors["x"][cut:]} | handed,
            upstream | {"y": upstream["y"][cut:]},
        )
        back = {f"{n[0]}_n": second[f"d.{n}"] for n in states}
        first = differentiate(
            ours,
            case,
            tensors | {"x": tensors["x"][:cut]},
            {"y": upstream["y"][:cut]} | back,
        )
        assert torch.equal(torch.cat([first["y"], second["y"]]), whole["y"])
        assert_bitwise(second, whole, [n for n in whole if n in ("h_n", "c_n")])
        # A gradient handed over by autograd is added to dy, where one call adds it to a product.
        torch.testing.assert_close(torch.cat([first["d.x"], second["d.x"]]), whole["d.x"])
        torch.testing.assert_close(*([d[f"d.{n}"] for n in states] for d in (first, whole)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_first(cell: str, shape: tuple[int, ...]) -> None:
    """The order of the axes in memory does not matter, for any gradient."""
    case = Case(cell, *shape, layers=2, bidirectional=True)
    ours = twin(case)[0]
    first = replace(case, batch_first=True)
    other = first.module(fastrnn)
    other.load_state_dict(ours.state_dict())
    upstream = {n: torch.randn_like(t) for n, t in call(ours, case, case.inputs()).items()}
    expected = differentiate(ours, case, case.inputs(), upstream)
    upstream["y"] = upstream["y"].transpose(0, 1)
    found = differentiate(other, first, first.inputs(), upstream)
    for name in ("y", "d.x"):
        found[name] = found[name].transpose(0, 1)
    assert_bitwise(found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_unbatched_and_default_states(cell: str) -> None:
    """Unbatched is a batch of one; absent states are zeros."""
    case = Case(cell, 8, 1, 5, 19, 2, True)
    ours = twin(case)[0]
    tensors = case.inputs()
    batched = call(ours, case, tensors)
    alone = call(ours, replace(case, layout="unbatched"), {n: t[:, 0] for n, t in tensors.items()})
    assert_bitwise(alone, {n: t[:, 0] for n, t in batched.items()})
    zeros = {n: t if n == "x" else torch.zeros_like(t) for n, t in tensors.items()}
    assert_bitwise(call(ours, case, {"x": tensors["x"]}), call(ours, case, zeros))


@pytest.mark.parametrize("cell", CELLS)
def test_one_direction_of_two(cell: str) -> None:
    """Each direction of a bidirectional layer is a layer of its own."""
    case = Case(cell, 8, 5, 7, 19, bidirectional=True)
    ours = twin(case)[0]
    tensors = case.inputs()
    both = call(ours, case, tensors)
    single = replace(case, bidirectional=False)
    width = case.output_size
    for slot, suffix in ((0, ""), (1, "_reverse")):
        module = single.module(fastrnn)
        weights = ours.state_dict()
        module.load_state_dict({n: weights[n + suffix] for n in module.state_dict()})
        x = tensors["x"].flip(0) if slot else tensors["x"]
        states = {n: t[slot : slot + 1] for n, t in tensors.items() if n != "x"}
        found = call(module, single, {"x": x} | states)
        found["y"] = found["y"].flip(0) if slot else found["y"]
        expected = {n: t[slot : slot + 1] for n, t in both.items()}
        expected["y"] = both["y"][..., slot * width : (slot + 1) * width]
        assert_bitwise(found, expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), [(100, 256), (6400, 4)])
def test_sums_over_many_rows(cell: str, steps: int, batch: int) -> None:
    """dW and db over 25,600 rows are no further from float64 than twice torch's."""
    case = Case(cell, steps, batch, 12, 16)
    modules = [*twin(case), case.module(nn, torch.float64)]
    ours, theirs, exact = (run(module, case) for module in modules)
    sums = [n for n in exact if "weight" in n or "bias" in n]
    ours, theirs, exact = ({n: each[n] for n in sums} for each in (ours, theirs, exact))
    assert_accurate(ours, torch.float32, Truth(theirs, exact))


DIGEST = """
import hashlib, sys, torch
from _support import Case, run
import fastrnn

torch.set_num_threads(int(sys.argv[1]))
digest = hashlib.sha256()
for cell in ("tanh", "relu", "lstm", "proj", "gru"):
    case = Case(cell, 12, 33, 9, 40, 2, True, layout="unsorted")
    for tensor in run(case.module(fastrnn), case).values():
        digest.update(tensor.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_process_to_process() -> None:
    """Another process, another thread count, another environment: the same bits."""
    digests = {output_of(python(DIGEST, threads)) for threads in ("1", "2", "4")}
    assert len(digests) == 1


@pytest.mark.parametrize(("T", "B"), [(400, 64), (25_600, 1), (1_563, 64)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_long_sums_are_accurate(cell: str, T: int, B: int) -> None:
    """Weight gradients over 25,600 and 100,032 rows: at most twice the error of torch's."""
    case = Case(cell, T, B, 4, 8)
    exact, theirs = truth(case).exact, truth(case).theirs
    ours = run(twin(case)[0], case)
    for name in exact:
        if name.startswith(("d.weight", "d.bias")):
            found, allowed = (
                root_mean_square(tensors[name].double() - exact[name]) for tensors in (ours, theirs)
            )
            few = 1 + 2 / math.sqrt(exact[name].numel())  # as tolerances.bound allows
            assert found <= 2 * allowed * few, f"{name}: {found:.2g}, torch's {allowed:.2g}"
