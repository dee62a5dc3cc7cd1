"""Modules against torch.nn with the same weights: outputs, states and every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import fastrnn
from _support import CELLS, DTYPES, Case, assert_bitwise, assert_matches_torch, run, twin

# T, B, I, H: around every vector width (2 to 16), odd, one of each alone, more rows than one
# partial sum of the weight gradient (256) in the batch or over time, an empty batch.
SHAPES = (
    (1, 1, 1, 1),
    (3, 1, 2, 2),
    (5, 2, 3, 3),
    (4, 3, 4, 4),
    (7, 5, 5, 5),
    (6, 7, 7, 7),
    (5, 4, 8, 8),
    (9, 3, 9, 9),
    (4, 7, 17, 15),
    (5, 33, 16, 16),
    (3, 5, 15, 17),
    (11, 6, 31, 31),
    (2, 13, 33, 32),
    (3, 9, 40, 33),
    (2, 3, 70, 67),
    (1, 300, 3, 5),
    (2, 257, 6, 10),
    (1, 256, 4, 4),
    (43, 7, 5, 12),
    (300, 1, 3, 6),
    (5, 0, 4, 6),
    (1, 0, 1, 1),
)


def both_dtypes(test: object) -> object:
    # The topmost parameter varies fastest, so both dtypes share the cached truth.
    return pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))(test)


def valid(case: Case) -> bool:
    return not (case.cell == "proj" and case.H == 1)


SHAPE_CASES = [
    case
    for cell, shape, two in itertools.product(CELLS, SHAPES, (False, True))
    if valid(case := Case(cell, *shape, bidirectional=two, seed=sum(shape)))
]
OPTION_CASES = [
    Case(cell, 6, 1 if layout == "unbatched" else 5, 5, 7, layers, two, bias, first, layout=layout)
    for cell, layout, layers, two, bias, first in itertools.product(
        CELLS, ("dense", "unbatched", "packed", "unsorted"), (1, 2, 3), *[(False, True)] * 3
    )
]
OTHER_CASES = [
    Case(cell, 7, 5, 4, 9, layers, two, states=False, layout=layout, seed=3)
    for cell, layout, layers, two in itertools.product(
        CELLS, ("dense", "packed", "unsorted"), (1, 2), (False, True)
    )
] + [Case(cell, 7, 1, 4, 9, 2, states=False, layout="unbatched") for cell in CELLS]


@both_dtypes
@pytest.mark.core
@pytest.mark.parametrize("case", SHAPE_CASES, ids=str)
def test_shapes(case: Case, dtype: torch.dtype) -> None:
    assert_matches_torch(case, dtype)


@both_dtypes
@pytest.mark.parametrize("case", OPTION_CASES, ids=str)
def test_options(case: Case, dtype: torch.dtype) -> None:
    assert_matches_torch(case, dtype)


@both_dtypes
@pytest.mark.core
@pytest.mark.parametrize("case", OTHER_CASES, ids=str)
def test_states_default_to_zero(case: Case, dtype: torch.dtype) -> None:
    assert_matches_torch(case, dtype)


@both_dtypes
@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 7, 33, 300])
@pytest.mark.parametrize("layout", ["packed", "unsorted"])
def test_packed_batches(cell: str, batch: int, layout: str, dtype: torch.dtype) -> None:
    assert_matches_torch(Case(cell, 11, batch, 6, 17, 1, True, layout=layout, seed=batch), dtype)


@both_dtypes
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "packed", "unsorted", "unbatched"])
@pytest.mark.parametrize("probability", [0.3, 1.0])
@pytest.mark.parametrize("first", [False, True], ids=["time_major", "batch_first"])
def test_dropout_draws_what_torch_draws(
    cell: str, layout: str, probability: float, first: bool, dtype: torch.dtype
) -> None:
    batch = 1 if layout == "unbatched" else 4
    case = Case(
        cell, 6, batch, 5, 8, 3, True, batch_first=first, dropout=probability, layout=layout
    )
    ours, theirs = twin(case, dtype)
    ours.train()
    theirs.train()
    if probability < 1:
        with torch.no_grad():
            dropped = run(ours, case, wants=())["y"]
            assert not torch.equal(dropped, run(ours.eval(), case, wants=())["y"])
        ours.train()
    # Each dtype draws masks of its own, so there is no truth in float64 for float32: torch's
    # default closeness it is.
    mine, reference = run(ours, case), run(theirs, case)
    for name, value in mine.items():
        torch.testing.assert_close(value, reference[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_off_in_eval(cell: str) -> None:
    case = Case(cell, 6, 4, 5, 8, 2, dropout=0.5)
    ours, theirs = twin(case)
    plain = Case(cell, 6, 4, 5, 8, 2)
    assert_bitwise(run(ours.eval(), case), run(twin(plain)[0], plain))
    assert not theirs.eval().training


@both_dtypes
@pytest.mark.parametrize("cell", CELLS)
def test_inference_equals_training(cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, 9, 5, 7, 17, 2, True)
    ours = twin(case, dtype)[0]
    trained = run(ours, case)
    with torch.no_grad():
        assert_bitwise(run(ours, case, wants=()), trained, [n for n in trained if "." not in n])
    with torch.inference_mode():
        assert_bitwise(run(ours, case, wants=()), trained, [n for n in trained if "." not in n])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_same_seed_same_parameters(cell: str, bias: bool) -> None:
    case = Case(cell, layers=3, bidirectional=True, bias=bias, seed=11)
    ours, theirs = case.module(fastrnn), case.module(nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_bitwise(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert torch.equal(torch.rand(1), (case.module(fastrnn), torch.rand(1))[1])  # equal draws


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict_both_ways(cell: str) -> None:
    case = Case(cell, layers=2, bidirectional=True)
    ours, theirs = case.module(fastrnn), Case(cell, layers=2, bidirectional=True, seed=5).module(nn)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert_bitwise(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    other = Case(cell, layers=2, bidirectional=True, seed=6).module(nn)
    assert str(other.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    assert_bitwise(dict(other.named_parameters()), dict(theirs.named_parameters()))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
def test_same_training_curve(cell: str, layout: str) -> None:
    """Fit the sum of the inputs in float64, where rounding cannot part the two runs."""
    case = Case(cell, 12, 16, 3, 10, 2, True, dropout=0.2, layout=layout)
    curves = []
    for module in twin(case, torch.float64):
        torch.manual_seed(1)
        head = nn.Linear(2 * case.output_size, 3).double()
        optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 1e-2)
        curve = []
        for step in range(25):
            x = Case(cell, 12, 16, 3, 10, seed=step).inputs(torch.float64)["x"]
            y, _ = module(case.pack(x) if case.packed else x)
            y, target = (y.data, case.pack(x.cumsum(0)).data) if case.packed else (y, x.cumsum(0))
            loss = (head(y) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-6, atol=0)
