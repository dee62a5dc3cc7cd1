"""RNNCell, LSTMCell and GRUCell against torch.nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from _support import DTYPES, Tensors, Truth, assert_accurate, assert_bitwise

KINDS = {
    "tanh": ("RNNCell", {}),
    "relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}
SHAPES = ((1, 1, 1), (3, 5, 7), (7, 4, 8), (2, 9, 16), (33, 17, 15), (300, 6, 33), (0, 4, 5))


def build(namespace: Any, kind: str, dtype: torch.dtype, *sizes: int, bias: bool = True) -> Any:
    name, options = KINDS[kind]
    torch.manual_seed(sum(sizes))
    return getattr(namespace, name)(*sizes, bias=bias, **options).to(dtype)


def step(module: Any, x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> Tensors:
    """Run one step; return new states and the gradient of everything."""
    lstm = isinstance(module, (nn.LSTMCell, fastrnn.LSTMCell))
    dtype = module.weight_ih.dtype
    leaves = [t.to(dtype).requires_grad_() for t in (x, *states)]
    given = tuple(leaves[1:]) if lstm else leaves[1] if states else None
    result = module(leaves[0], given if states else None)
    outputs = result if lstm else (result,)
    torch.manual_seed(5)
    upstream = [torch.randn(o.shape).to(dtype) for o in outputs]
    names = ["x", "h0", "c0"][: len(leaves)]
    sources = dict(zip(names, leaves, strict=True)) | dict(module.named_parameters())
    gradients = torch.autograd.grad(outputs, list(sources.values()), upstream)
    results = dict(zip(("h", "c"), (o.detach() for o in outputs), strict=False))
    return results | {f"d.{n}": g for n, g in zip(sources, gradients, strict=True)}


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_one_step(
    dtype: torch.dtype,
    kind: str,
    shape: tuple[int, int, int],
    bias: bool,
    given: bool,
    batched: bool,
) -> None:
    batch, inputs, hidden = shape
    rows = (batch,) if batched else ()
    x = torch.randn(*rows, inputs)
    count = 2 if kind == "lstm" else 1
    states = tuple(torch.randn(*rows, hidden) for _ in range(count)) if given else ()
    theirs32 = build(nn, kind, torch.float32, inputs, hidden, bias=bias)
    exact = build(nn, kind, torch.float64, inputs, hidden, bias=bias)
    ours = build(fastrnn, kind, dtype, inputs, hidden, bias=bias)
    ours.load_state_dict(exact.state_dict())
    known = Truth(step(theirs32, x, states), step(exact, x, states))
    assert_accurate(step(ours, x, states), dtype, known)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_construction(kind: str, bias: bool) -> None:
    ours, theirs = (build(ns, kind, torch.float32, 5, 7, bias=bias) for ns in (fastrnn, nn))
    assert repr(ours) == repr(theirs)
    assert_bitwise(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.bias_ih is None) == (theirs.bias_ih is None) == (not bias)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.core
@pytest.mark.cpu_engine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_weights_that_a_step_packs_as_it_goes(
    kind: str, dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether packed weights are kept depends on their size, and changes no bit."""
    cell = build(fastrnn, kind, dtype, 9, 70)
    x = torch.randn(batch, 9).to(dtype)

    def run() -> list[torch.Tensor]:
        results = []
        for least in (0, 1 << 60):
            monkeypatch.setattr("fastrnn._ops.LARGE_WEIGHTS", least)
            monkeypatch.setattr("fastrnn._ops.LARGE_FOR_ROWS", least)
            result = cell(x)
            results.append(result[0] if kind == "lstm" else result)
        return results

    with torch.no_grad():
        before = run()
        cell.weight_ih.data.mul_(-1)
        after = run()
    assert torch.equal(*before)
    assert torch.equal(*after)
    assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_cell_equals_layer(kind: str) -> None:
    """The k-order of a product depends on K alone: a layer is its cell, step by step, bitwise."""
    cell = build(fastrnn, kind, torch.float32, 9, 17)
    name, options = KINDS[kind]
    layer = getattr(fastrnn, name.removesuffix("Cell"))(9, 17, **options)
    layer.load_state_dict({f"{n}_l0": t for n, t in cell.state_dict().items()})
    x = torch.randn(11, 5, 9)
    with torch.no_grad():
        state: Any = None
        outputs = []
        for row in x:
            state = cell(row, state)
            outputs.append(state[0] if kind == "lstm" else state)
        assert torch.equal(torch.stack(outputs), layer(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_trains_over_time(kind: str) -> None:
    """Gradients flow through a loop of steps as they do in torch."""
    sums = []
    for namespace in (fastrnn, nn):
        cell = build(namespace, kind, torch.float64, 3, 4)
        torch.manual_seed(1)
        x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
        state: Any = None
        for row in x:
            state = cell(row, state)
        (state[0] * state[1] if kind == "lstm" else state).sum().backward()
        sums.append([x.grad, *(p.grad for p in cell.parameters())])
    torch.testing.assert_close(sums[0], sums[1])


BAD = {
    "rank 0": lambda m: m(torch.zeros(())),
    "rank 3": lambda m: m(torch.zeros(2, 3, 4)),
    "features": lambda m: m(torch.zeros(3, 5)),
    "integer": lambda m: m(torch.zeros(3, 4, dtype=torch.int64)),
    "complex": lambda m: m(torch.zeros(3, 4, dtype=torch.complex64)),
    "double": lambda m: m(torch.zeros(3, 4, dtype=torch.float64)),
    "meta": lambda m: m(torch.zeros(3, 4, device="meta")),
    "state rank": lambda m: m(torch.zeros(3, 4), states(m, 1, 3, 6)),
    "state size": lambda m: m(torch.zeros(3, 4), states(m, 3, 5)),
    "state batch": lambda m: m(torch.zeros(3, 4), states(m, 2, 6)),
    "state broadcast": lambda m: m(torch.zeros(3, 4), states(m, 1, 6)),
    "state dtype": lambda m: m(torch.zeros(3, 4), states(m, 3, 6, dtype=torch.float64)),
    "unbatched x, batched state": lambda m: m(torch.zeros(4), states(m, 3, 6)),
}


def states(module: Any, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    state = torch.zeros(shape, dtype=dtype)
    return (state, state) if isinstance(module, (nn.LSTMCell, fastrnn.LSTMCell)) else state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_bad_input_fails_as_in_torch(kind: str, call: Any) -> None:
    ours, theirs = (build(ns, kind, torch.float32, 4, 6) for ns in (fastrnn, nn))
    with pytest.raises(Exception) as reference:  # noqa: PT011 -- torch's kind is the expectation
        call(theirs)
    with pytest.raises(reference.type, match=rf"^{type(ours).__name__}: .*\bgot\b"):
        call(ours)


def test_unknown_nonlinearity() -> None:
    for namespace in (fastrnn, nn):
        with pytest.raises((RuntimeError, ValueError)):
            namespace.RNNCell(3, 4, nonlinearity="sine")(torch.zeros(1, 3))
