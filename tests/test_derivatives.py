"""Second derivatives and forward mode: of all inputs and layouts, and of what comes after them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from _support import CELLS, Case, call, run, twin
from fastrnn import _ops
from fastrnn._problem import Ragged
from fastrnn._second_order import double_backward
from fastrnn._transforms import gradients_of_gradients

# torch's own forward-mode rules load by way of it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

CASES = [
    Case(cell, 4, 3, 3, 4, layers, bidirectional, layout=layout, batch_first=layout == "unsorted")
    for cell in CELLS
    for layers, bidirectional, layout in ((1, False, "dense"), (2, True, "unsorted"))
]


def as_function(case: Case, module: nn.Module) -> tuple[Callable[..., Any], list[Tensor]]:
    """Return the module as a function of all its inputs and parameters, and these."""
    tensors = case.inputs(torch.float64)
    parameters = dict(module.named_parameters())
    names = [*tensors, *parameters]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        own = {n: given[n] for n in parameters}
        return tuple(call(_Functional(module, own), case, {n: given[n] for n in tensors}).values())

    values = [*tensors.values(), *parameters.values()]
    return function, [v.detach().requires_grad_() for v in values]


class _Functional:
    def __init__(self, module: nn.Module, parameters: dict[str, Tensor]) -> None:
        self.module, self.parameters = module, parameters

    def __call__(self, *arguments: Any) -> Any:
        return torch.func.functional_call(self.module, self.parameters, arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradgradcheck(case: Case) -> None:
    function, values = as_function(case, case.module(fastrnn, torch.float64))
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


# torch's packing is not differentiable forwards.
DENSE = [case if case.layout == "dense" else replace(case, layout="dense") for case in CASES]


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_forward_mode(case: Case) -> None:
    function, values = as_function(case, case.module(fastrnn, torch.float64))
    assert torch.autograd.gradcheck(
        function, values, check_forward_ad=True, check_batched_forward_grad=True, fast_mode=True
    )


@pytest.mark.parametrize("case", DENSE[::2], ids=str)
def test_forward_over_reverse(case: Case) -> None:
    function, values = as_function(case, case.module(fastrnn, torch.float64))
    assert torch.autograd.gradgradcheck(
        function,
        values,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
        fast_mode=True,
    )


def _ragged(kind: str, T: int, B: int) -> tuple[Ragged | None, tuple[int, ...]]:
    if kind == "dense":
        return None, (T, B)
    offsets = torch.tensor([0, B, 2 * B, 2 * B + 2, 2 * B + 3])
    if kind == "packed":
        return Ragged(offsets, 4, B, 2 * B + 3), (2 * B + 3,)
    table = torch.randperm(T * B)[: 2 * B + 3]
    return Ragged(offsets, 4, B, len(table), table, (T, B)), (T, B)


@pytest.mark.parametrize("given", [True, False], ids=["all", "some"])
@pytest.mark.parametrize("checkpoint_every", [None, pytest.param(2, marks=pytest.mark.cpu_engine)])
@pytest.mark.parametrize("kind", ["dense", "packed", "table"])
@pytest.mark.parametrize("cell", CELLS)
def test_recurrences_equal_the_reference(
    cell: str, kind: str, checkpoint_every: int | None, given: bool
) -> None:
    """The engine's chains, and torch's, give what differentiating the reference twice gives."""
    case = Case(cell, 6, 5, 3, 4, bidirectional=True)
    module = case.module(fastrnn, torch.float64, checkpoint_every=checkpoint_every)
    layer = module._stack().time_major[0]
    weights = [None if w is None else w.detach() for w in module._weights()[0]]
    torch.manual_seed(3)
    ragged, lead = _ragged(kind, 6, 5)
    x = torch.randn(*lead, 3, dtype=torch.float64)
    tensors = case.inputs(torch.float64)
    h0, c0 = tensors["h0"], tensors.get("c0")
    y, h_n, c_n, reserve = _ops.forward(layer, x, ragged, h0, c0, weights, True)
    assert h_n is not None
    gradients = (
        torch.randn_like(y),
        torch.randn_like(h_n) if given else None,
        torch.randn_like(c_n) if c_n is not None and given else None,
    )
    inputs = (x, h0, c0, *weights)
    incoming = [
        None if t is None or (not given and i % 2) else torch.randn_like(t)
        for i, t in enumerate(inputs)
    ]
    wanted = [t is not None for t in inputs]
    found = double_backward(layer, ragged, gradients, (y, reserve), inputs, incoming)
    expected = gradients_of_gradients(layer, ragged, wanted, gradients, inputs, incoming)
    for mine, true in zip(found, expected, strict=True):
        if true is not None:
            assert mine is not None
            torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_penalty(cell: str, dtype: torch.dtype) -> None:
    """A penalty on the gradient of x, as it is trained with, is torch's."""
    case = Case(cell, 7, 4, 5, 6, states=False)
    ours = twin(case, dtype)[0]
    reference = twin(case, torch.float64)[1]
    reference.load_state_dict(ours.state_dict())
    results = []
    for module, own in ((ours, dtype), (reference, torch.float64)):
        x = case.inputs(dtype)["x"].to(own).requires_grad_()
        [slope] = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        penalty = (slope.square().sum(-1).sqrt() - 1).square().mean()
        results.append(torch.autograd.grad(penalty, list(module.parameters())))
    tolerance = 2e-5 if dtype is torch.float32 else 0.06
    for mine, true in zip(*results, strict=True):
        assert mine.dtype is dtype
        assert (mine.double() - true).norm() <= tolerance * true.norm() + 1e-6


@pytest.mark.parametrize("cell", CELLS)
def test_third_derivatives(cell: str) -> None:
    case = Case(cell, 3, 2, 3, 4, states=False)
    results = []
    for module in twin(case, torch.float64):
        x = case.inputs(torch.float64)["x"].requires_grad_()
        value = module(x)[0].pow(3).sum()
        for _ in range(3):
            [slope] = torch.autograd.grad(value, x, create_graph=True)
            value = slope.square().sum()
        results.append(slope)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("cell", CELLS)
def test_a_first_gradient_with_a_graph_is_the_same(cell: str) -> None:
    """Keeping what second derivatives need changes no bit of the first ones."""
    case = Case(cell, 7, 4, 5, 6, bidirectional=True)
    module = case.module(fastrnn)
    expected = run(module, case)
    tensors = {n: t.requires_grad_() for n, t in case.inputs().items()}
    outputs = call(module, case, tensors)
    torch.manual_seed(8)
    upstream = [torch.randn(o.shape) for o in outputs.values()]
    sources = tensors | dict(module.named_parameters())
    found = torch.autograd.grad(
        list(outputs.values()), list(sources.values()), upstream, create_graph=True
    )
    for name, gradient in zip(sources, found, strict=True):
        assert torch.equal(gradient, expected[f"d.{name}"]), name


def test_lengths() -> None:
    """Padding, NaN included, reaches no second derivative."""
    module = fastrnn.GRU(3, 4, dtype=torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    lengths = [2, 5, 0]
    for b, length in enumerate(lengths):
        x[length:, b] = torch.nan
    x.requires_grad_()
    [slope] = torch.autograd.grad(
        module(x, lengths=lengths)[0].square().sum(), x, create_graph=True
    )
    found = torch.autograd.grad(slope.square().sum(), [x, *module.parameters()])
    assert all(not g.isnan().any() for g in found)
    assert not found[0][3:, 0].any()
    totals = [torch.zeros_like(p) for p in module.parameters()]
    for b, length in enumerate(lengths[:2]):
        own = x.detach()[:length, b].requires_grad_()
        [slope] = torch.autograd.grad(module(own)[0].square().sum(), own, create_graph=True)
        for total, g in zip(
            totals,
            torch.autograd.grad(slope.square().sum(), list(module.parameters())),
            strict=True,
        ):
            total += g
    for mine, true in zip(found[1:], totals, strict=True):
        torch.testing.assert_close(mine, true)


def _second(case: Case, module: nn.Module, hooks: Any, autocast: bool) -> list[Tensor]:
    """Return the gradients of a penalty on all first gradients."""
    tensors = {n: t.requires_grad_() for n, t in case.inputs().items()}
    sources = [*tensors.values(), *module.parameters()]
    with hooks:
        y = sum(t.square().sum() for t in call(module, case, tensors).values())
        slopes = torch.autograd.grad(y, sources, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return list(torch.autograd.grad(sum(s.square().sum() for s in slopes), sources))


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_is_kept_out(cell: str) -> None:
    """The second backward pass within autocast is the one outside, as the first is."""
    case = Case(cell, 6, 5, 3, 20, bidirectional=True)
    module = case.module(fastrnn)
    plain, cast = (_second(case, module, contextlib.nullcontext(), on) for on in (False, True))
    for mine, true in zip(cast, plain, strict=True):
        assert torch.equal(mine, true)


@pytest.mark.cpu_engine
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_saved_tensors_that_changed_are_refused(cell: str) -> None:
    """Whatever a hook hands back in place of what was saved, nothing is read as what it is not."""
    case = Case(cell, 6, 5, 3, 20)
    module = case.module(fastrnn)
    expected = _second(case, module, contextlib.nullcontext(), False)

    def hooks(unpack: Any) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack)

    def strided(t: Tensor) -> Tensor:
        return torch.stack((t, t), -1)[..., 0] if t.dim() > 2 else t

    for mine, true in zip(_second(case, module, hooks(strided), False), expected, strict=True):
        assert torch.equal(mine, true)
    for change in (Tensor.double, Tensor.bfloat16, lambda t: t[..., :-1]):
        # The reserve and the gradients of the gates are (D, N, slots, H).
        def spoil(t: Tensor, change: Any = change) -> Tensor:
            return change(t) if t.dim() == 4 and t.shape[-1] == 20 else t

        with pytest.raises(RuntimeError, match=r"saved|dtype|shape"):
            _second(case, module, hooks(spoil), False)


@pytest.mark.parametrize("cell", CELLS)
def test_meta_has_second_derivatives(cell: str) -> None:
    case = Case(cell, 6, 5, 3, 20)
    module = case.module(fastrnn).to("meta")
    tensors = {n: t.to("meta").requires_grad_() for n, t in case.inputs().items()}
    sources = [*tensors.values(), *module.parameters()]
    y = sum(t.sum() for t in call(module, case, tensors).values())
    slopes = torch.autograd.grad(y, sources, create_graph=True)
    second = torch.autograd.grad(sum(s.square().sum() for s in slopes), sources)
    assert [g.shape for g in second] == [s.shape for s in sources]
    assert all(g.is_meta for g in second)
