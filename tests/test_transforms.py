"""torch.func: vmap over data and weights, gradients of each sample, and their combinations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

import fastrnn
from _support import CELLS, Case, twin

# torch's own forward-mode rules load by way of it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

CASES = [
    Case(cell, 4, 2, 3, 5, layers, bidirectional, batch_first=batch_first, states=False)
    for cell in CELLS
    for layers, bidirectional, batch_first in ((1, False, True), (2, True, False))
]
SAMPLES = 3


def numbers(case: Case) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(SAMPLES, *case.inputs()["x"].shape, dtype=torch.float64)


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in module.named_parameters()}


def loss(module: nn.Module, own: dict[str, Tensor], x: Tensor) -> Tensor:
    y, states = functional_call(module, own, (x,))
    states = states if isinstance(states, tuple) else (states,)
    return y.square().sum() + sum(s.sin().sum() for s in states)


def assert_same(found: Any, expected: list[Any]) -> None:
    """Compare a stacked result with the results one by one."""
    for i, true in enumerate(expected):
        for name in true:
            torch.testing.assert_close(found[name][i], true[name])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vmap_over_data(case: Case) -> None:
    ours, theirs = twin(case, torch.float64)
    x = numbers(case)
    found = vmap(lambda x: ours(x)[0], in_dims=1, out_dims=1)(x.movedim(0, 1))
    torch.testing.assert_close(found, torch.stack([theirs(own)[0] for own in x], dim=1))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vmap_over_weights(case: Case) -> None:
    ours, theirs = twin(case, torch.float64)
    x = numbers(case)[0]
    stacked = {n: torch.stack([p, -p, 2 * p]) for n, p in parameters(ours).items()}
    found = vmap(grad(lambda own: loss(ours, own, x)))(stacked)
    each = [{n: p[i] for n, p in stacked.items()} for i in range(3)]
    assert_same(found, [grad(lambda own: loss(theirs, own, x))(own) for own in each])
    with torch.no_grad():
        outputs = vmap(lambda own: functional_call(ours, own, (x,))[0])(stacked)
    expected = torch.stack([functional_call(theirs, own, (x,))[0] for own in each])
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_each_sample(case: Case) -> None:
    ours, theirs = twin(case, torch.float64)
    x, own = numbers(case), parameters(ours)
    found = vmap(grad(lambda own, x: loss(ours, own, x)), (None, 0))(own, x)
    assert_same(found, [grad(lambda own, x=x: loss(theirs, own, x))(own) for x in x])


@pytest.mark.cpu_engine  # on a GPU products of the gates' gradients, by torch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), [(7, 1), (5, 3), (300, 2)])
def test_bits_of_each_sample(cell: str, dtype: torch.dtype, steps: int, batch: int) -> None:
    """Each sample's gradients are, bit for bit, those of a call of its own."""
    module = twin(Case(cell, steps, batch, 6, 70, bidirectional=True), dtype)[0]
    x = torch.randn(SAMPLES, steps, batch, 6, dtype=dtype)
    found = vmap(grad(lambda own, x: loss(module, own, x)), (None, 0))(parameters(module), x)
    for i, each in enumerate(x):
        y, states = module(each)
        states = states if isinstance(states, tuple) else (states,)
        total = y.square().sum() + sum(s.sin().sum() for s in states)
        alone = torch.autograd.grad(total, list(module.parameters()))
        for name, true in zip(found, alone, strict=True):
            assert torch.equal(found[name][i], true), name


def test_gradients_of_each_packed_sample() -> None:
    case = Case("gru", 5, 3, 3, 4, layout="packed", states=False)
    ours, theirs = twin(case, torch.float64)
    own = parameters(ours)
    packed = case.pack(case.inputs(torch.float64)["x"])
    data = torch.stack([packed.data, 2 * packed.data])

    def value(module: nn.Module, own: dict[str, Tensor], data: Tensor) -> Tensor:
        return functional_call(module, own, (packed._replace(data=data),))[0].data.square().sum()

    found = vmap(grad(lambda own, data: value(ours, own, data)), (None, 0))(own, data)
    for i, each in enumerate(data):  # torch.func does not take torch's own packed layers
        y = theirs(packed._replace(data=each))[0].data
        expected = torch.autograd.grad(y.square().sum(), list(theirs.parameters()))
        for name, true in zip(own, expected, strict=True):
            torch.testing.assert_close(found[name][i], true)


def test_gradients_of_each_padded_sample() -> None:
    module = fastrnn.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    own = parameters(module)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)

    def value(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, own, (x, None, [2, 0, 5]))[0].square().sum()

    found = vmap(grad(value), (None, 0))(own, x)
    assert_same(found, [grad(value)(own, each) for each in x])


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_jacobians_and_hessians(case: Case) -> None:
    ours, theirs = twin(case, torch.float64)
    x = numbers(case)[0]
    for transform in (jacrev, jacfwd):
        found, expected = (transform(lambda x, m=m: m(x)[0])(x) for m in (ours, theirs))
        torch.testing.assert_close(found, expected)

    def value(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: module(x)[0].square().sum()

    expected = hessian(value(theirs))(x)
    for second in (hessian(value(ours)), jacrev(jacrev(value(ours)))):
        torch.testing.assert_close(second(x), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_nested(cell: str) -> None:
    """grad of vmap, grad of grad, and per-sample gradients of a gradient penalty."""
    case = Case(cell, 3, 2, 3, 4, states=False)
    ours, theirs = twin(case, torch.float64)
    x = numbers(case)

    def penalty(module: nn.Module, own: dict[str, Tensor], x: Tensor) -> Tensor:
        return grad(lambda x: loss(module, own, x))(x).square().sum()

    results = []
    for module in (ours, theirs):
        own = parameters(module)
        total = grad(lambda x, m=module, own=own: vmap(lambda x: loss(m, own, x))(x).sum())
        mapped = (
            total(x)
            if module is ours
            else torch.stack(
                [grad(lambda x, m=module, own=own: loss(m, own, x))(each) for each in x]
            )
        )
        slopes = grad(lambda own, m=module: penalty(m, own, x[0]))(own)
        results.append({"mapped": mapped, **slopes})
    for name, true in results[1].items():
        torch.testing.assert_close(results[0][name], true)
    own = parameters(ours)
    found = vmap(grad(lambda own, x: penalty(ours, own, x)), (None, 0))(own, x)
    assert_same(found, [grad(lambda own, x=x: penalty(theirs, own, x))(own) for x in x])


@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell"])
def test_single_steps(cell: str) -> None:
    torch.manual_seed(0)
    ours, theirs = (getattr(space, cell)(3, 4, dtype=torch.float64) for space in (fastrnn, nn))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(SAMPLES, 2, 3, dtype=torch.float64)

    def value(module: nn.Module, own: dict[str, Tensor], x: Tensor) -> Tensor:
        state = functional_call(module, own, (x,))
        return sum(s.square().sum() for s in (state if isinstance(state, tuple) else (state,)))

    own = parameters(ours)
    found = vmap(grad(lambda own, x: value(ours, own, x)), (None, 0))(own, x)
    assert_same(found, [grad(lambda own, x=x: value(theirs, own, x))(own) for x in x])
