"""checkpoint_every: less is kept for backward, and not a bit of any result changes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from _support import CELLS, Case, assert_bitwise, call, run

ALL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WRONG = (0, -1, "never", 2.5)
# One K for each way that steps can fall on segments: all alone, some left over, all in one.
EVERY = (1, 2, 7, "exactly", "beyond", "auto")


def assert_unchanged(
    case: Case,
    every: Iterable[int | str] = EVERY,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Compare every output and gradient with those of a run that keeps everything."""
    module = case.module(fastrnn, dtype)
    expected = run(module, case, **options)
    assert not any(tensor.isnan().any() for tensor in expected.values())
    for value in every:
        module.checkpoint_every = {"exactly": case.T, "beyond": case.T + 5}.get(value, value)
        assert_bitwise(run(module, case, **options), expected)


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_cell_and_dtype(cell: str, dtype: torch.dtype) -> None:
    assert_unchanged(Case(cell, 15, 5, 7, 19, bidirectional=True), EVERY, dtype)


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "packed", "unsorted", "unbatched"])
@pytest.mark.parametrize("states", [True, False], ids=["states", "nostates"])
def test_layouts_and_states(cell: str, layout: str, states: bool) -> None:
    batch = 1 if layout == "unbatched" else 6
    case = Case(cell, 11, batch, 5, 17, 2, True, layout=layout, states=states)
    assert_unchanged(case, (1, 4, "auto"))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["packed", "unsorted"])
@pytest.mark.parametrize("dtype", ALL_DTYPES[1:], ids=str)
def test_packed_dtypes(cell: str, layout: str, dtype: torch.dtype) -> None:
    case = Case(cell, 10, 9, 6, 18, bidirectional=True, layout=layout)
    assert_unchanged(case, (1, 3, "beyond"), dtype)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("first", [True, False], ids=["batch_first", "time_major"])
def test_options(cell: str, bias: bool, first: bool) -> None:
    assert_unchanged(Case(cell, 9, 4, 5, 13, 3, True, bias, first, dropout=0.3), (2,))


# T, B, I, H: one step, one row, more rows than one partial sum of the weight gradient (256), more
# steps than a product takes at once, an empty batch.
SHAPES = ((1, 3, 4, 6), (9, 1, 5, 17), (6, 300, 4, 10), (1, 1, 1, 2), (300, 2, 3, 9), (5, 0, 3, 4))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(cell: str, shape: tuple[int, ...]) -> None:
    assert_unchanged(Case(cell, *shape, bidirectional=shape[0] != 9))


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
@pytest.mark.parametrize("shape", [(17, 40, 7, 20), (30, 1, 8, 150)], ids=str)
def test_thread_count(cell: str, layout: str, shape: tuple[int, ...]) -> None:
    """Rows split over threads, and a single row whose units are."""
    case = Case(cell, *shape, bidirectional=True, layout=layout)
    torch.set_num_threads(1)
    expected = run(case.module(fastrnn), case)
    module = case.module(fastrnn, checkpoint_every=4)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert_bitwise(run(module, case), expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("wants", [("x",), ("h0", "c0"), ("weight_hh_l0",), ("bias_ih_l0", "x")])
@pytest.mark.parametrize("heads", [("y",), ("h_n",), None], ids=str)
def test_some_gradients(cell: str, wants: tuple[str, ...], heads: tuple[str, ...] | None) -> None:
    assert_unchanged(Case(cell, 8, 4, 5, 18), (3,), wants=wants, heads=heads)


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_last_cell_state(cell: str) -> None:
    case = Case(cell, 8, 4, 5, 18)
    assert_unchanged(case, (3,), wants=("x",), heads=("c_n" if case.is_lstm else "h_n",))


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell: str) -> None:
    case = Case(cell, 4, 2, 2, 3, bidirectional=True, layout="unsorted")
    module = case.module(fastrnn, torch.float64, checkpoint_every=2)
    tensors = {n: t.requires_grad_() for n, t in case.inputs(torch.float64).items()}
    parameters = dict(module.named_parameters())

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(module, case, dict(zip(tensors, values, strict=False))).values())

    assert torch.autograd.gradcheck(outputs, (*tensors.values(), *parameters.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_assignable(cell: str) -> None:
    """Each call goes by the value at that time, and its backward by the same."""
    case = Case(cell, 9, 4, 5, 18, 2)
    module = case.module(fastrnn)
    expected = run(module, case)
    for every in (3, "auto", None, 1):
        module.checkpoint_every = every
        assert module.checkpoint_every == every
        assert_bitwise(run(module, case), expected)
    tensors = case.inputs()
    x = tensors["x"].requires_grad_()
    found = []
    for later in (None, 4):
        module.checkpoint_every = 2
        y = call(module, case, tensors)["y"]
        module.checkpoint_every = later
        found.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("every", [1, 4, "auto", 100])
def test_functional(cell: str, every: int | str) -> None:
    case = Case(cell, 10, 4, 5, 18, 2, True)
    module = case.module(fastrnn)
    function = getattr(fastrnn.functional, case.kind.lower())
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    if case.kind == "RNN":
        options["nonlinearity"] = cell

    def gradients(**extra: Any) -> list[Tensor]:
        tensors = {n: t.requires_grad_() for n, t in case.inputs().items()}
        states = (tensors["h0"], tensors["c0"]) if case.is_lstm else tensors["h0"]
        weights = list(module.parameters())
        y, _ = function(tensors["x"], states, weights, **options | extra)
        return [y, *torch.autograd.grad(y.square().sum(), [*tensors.values(), *weights])]

    for found, expected in zip(gradients(checkpoint_every=every), gradients(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_wrong_values(cell: str, wrong: Any) -> None:
    case = Case(cell)
    with pytest.raises(ValueError, match="checkpoint_every"):
        case.module(fastrnn, checkpoint_every=wrong)
    module = case.module(fastrnn, checkpoint_every=3)
    with pytest.raises(ValueError, match="checkpoint_every"):
        module.checkpoint_every = wrong
    assert module.checkpoint_every == 3
    function = getattr(fastrnn.functional, case.kind.lower())
    with pytest.raises(ValueError, match="checkpoint_every"):
        function(case.inputs()["x"], None, list(module.parameters()), checkpoint_every=wrong)


def saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("every", [3, "auto"])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_what_copies_and_texts_have(cell: str, every: int | str) -> None:
    case = Case(cell)
    plain, module = case.module(fastrnn), case.module(fastrnn, checkpoint_every=every)
    assert plain.checkpoint_every is None
    assert repr(module) == f"{repr(plain)[:-1]}, checkpoint_every={every!r})"
    assert list(module.state_dict()) == list(plain.state_dict())
    run(module, case)
    for copied in (copy.deepcopy, copy.copy, saved, lambda m: pickle.loads(pickle.dumps(m))):
        assert copied(module).checkpoint_every == every
    module.load_state_dict(plain.state_dict())
    assert module.double().checkpoint_every == every


def kept_bytes(module: Any, case: Case) -> int:
    """Return the bytes kept for backward beside input, output, states and weights."""
    tensors = case.inputs(next(module.parameters()).dtype)
    tensors["x"].requires_grad_()
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = call(module, case, tensors)
    known = {t.data_ptr() for t in [*tensors.values(), *outputs.values(), *module.parameters()]}
    return sum(t.nbytes for address, t in kept.items() if address not in known)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_memory_for_backward(cell: str, dtype: torch.dtype) -> None:
    """c at every K-th step, in the numbers of the maths, and of a GRU or Elman cell nothing."""
    case = Case(cell, 100, 3, 8, 16, bidirectional=True)
    row = 2 * case.B * case.H * (8 if dtype is torch.float64 else 4)
    # Five numbers a unit of an LSTM, and what is projected; four of a GRU.
    values = {"lstm": 5, "proj": 6, "gru": 4}.get(cell, 0)
    module = case.module(fastrnn, dtype)
    assert kept_bytes(module, case) == case.T * row * values
    for every, rows in ((1, 100), (7, 15), (100, 1), (1000, 1), ("auto", 10)):
        module.checkpoint_every = every
        assert kept_bytes(module, case) == (rows * row if case.is_lstm else 0)


@pytest.mark.parametrize("cell", CELLS)
def test_auto_is_about_the_root(cell: str) -> None:
    """Four times the steps, twice what is kept; it goes by each call's own length."""
    short, long = (Case(cell, T, 2, 4, 8) for T in (64, 256))
    module = short.module(fastrnn, checkpoint_every="auto")
    assert kept_bytes(module, long) == 2 * kept_bytes(module, short)
