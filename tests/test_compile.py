"""torch.compile, torch.export, make_fx and the dispatcher operators beneath them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from _support import CELLS, Case, call, output_of, python, run
from fastrnn._problem import constant_when_traced

# Dynamo and Inductor warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CASES = [
    Case(cell, 5, 3, 4, 6, 2, True, batch_first=first, states=first)
    for cell in CELLS
    for first in (False, True)
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_equals_eager(case: Case, backend: str) -> None:
    """In one graph, forward and training, bit for bit."""
    if backend == "inductor" and case.states:
        pytest.skip("one of each pair of cases for the slow backend")
    module = case.module(fastrnn)
    expected = run(module, case)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    tensors = {n: t.requires_grad_() for n, t in case.inputs().items()}
    outputs = call(compiled, case, tensors)
    torch.manual_seed(8)
    upstream = [torch.randn(o.shape) for o in outputs.values()]
    sources = tensors | dict(module.named_parameters())
    found = torch.autograd.grad(list(outputs.values()), list(sources.values()), upstream)
    for name, value in outputs.items():
        assert torch.equal(value, expected[name]), name
    for name, gradient in zip(sources, found, strict=True):
        torch.testing.assert_close(gradient, expected[f"d.{name}"], rtol=0, atol=1e-6)
    with torch.no_grad():
        for name, value in call(compiled, case, case.inputs()).items():
            assert torch.equal(value, expected[name]), name


def test_import_leaves_the_compiler_out() -> None:
    """It takes about as long to import as the rest of torch, and not everyone compiles."""
    program = "import sys, fastrnn; print('torch._dynamo' in sys.modules)"
    assert output_of(python(program)).strip() == "False"


def test_constant_when_traced() -> None:
    """The mark is the one that torch's own decorator leaves."""

    def torchs() -> None: ...

    def ours() -> None: ...

    torch.compiler.assume_constant_result(torchs)
    assert vars(constant_when_traced(ours)) == vars(torchs) != {}


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_sizes_may_change(cell: str, backend: str) -> None:
    module = getattr(fastrnn, cell)(4, 6, num_layers=2, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    x = torch.randn(5, 3, 4)
    compiled(x)[0].sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T, B in ((7, 3), (9, 5), (2, 2), (30, 8)):
            x = torch.randn(T, B, 4)
            y = compiled(x)[0]
            assert torch.equal(y, module(x)[0])
            y.sum().backward()


@pytest.mark.parametrize("cell", ["RNN", "GRUCell"])
def test_after_ordinary_calls(cell: str) -> None:
    """What these leave for the next call is nothing to a compiled one, before and after."""
    module = getattr(fastrnn, cell)(4, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 4) if cell == "GRUCell" else torch.randn(7, 5, 4)
    with torch.no_grad():
        expected = module(x)
        module(x)
        got = compiled(x)
        with torch._dynamo.config.patch(error_on_recompile=True):
            module(x[:2])
            again = compiled(x)
            module.bias_ih_l0.zero_() if cell == "RNN" else module.bias_ih.zero_()
            other, wanted = compiled(x), module(x)
    first = [t if isinstance(t, Tensor) else t[0] for t in (expected, got, again, wanted, other)]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[3], first[4])
    assert not torch.equal(first[0], first[3])


@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell"])
def test_single_steps(cell: str) -> None:
    module = getattr(fastrnn, cell)(4, 6)

    def steps(x: Tensor) -> Tensor:
        state = None
        for row in x:
            state = module(row, state)
        return state[0] if isinstance(state, tuple) else state

    x = torch.randn(3, 2, 4)
    compiled = torch.compile(steps, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), steps(x))


def test_inside_a_larger_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), fastrnn.GRU(5, 6))

    def forward(x: Tensor) -> Tensor:
        return model(x)[0].relu().mean(0)

    x = torch.randn(7, 3, 4)
    compiled = torch.compile(forward, fullgraph=True, backend="inductor")
    torch.testing.assert_close(compiled(x), forward(x))


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_export(cell: str, tmp_path: Path) -> None:
    module = getattr(fastrnn, cell)(4, 6, bidirectional=True).eval()
    x = torch.randn(5, 3, 4)
    sizes = {0: torch.export.Dim("T", min=2, max=100), 1: torch.export.Dim("B", min=2, max=100)}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "module.pt2")
    loaded = torch.export.load(tmp_path / "module.pt2").module()
    other = torch.randn(9, 4, 4)
    assert torch.equal(loaded(other)[0], module(other)[0])


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_make_fx(cell: str, mode: str) -> None:
    module = getattr(fastrnn, cell)(4, 6)
    own = dict(module.named_parameters())
    x = torch.randn(5, 3, 4)

    def gradients(x: Tensor, own: dict[str, Tensor]) -> tuple[Tensor, ...]:
        y = torch.func.functional_call(module, own, (x,))[0]
        return torch.autograd.grad(y.square().sum(), list(own.values()))

    graph = make_fx(gradients, tracing_mode=mode)(x, own)
    for mine, true in zip(graph(x, own), gradients(x, own), strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_make_fx_before_dispatch(cell: str, recorded: bool) -> None:
    """Also of a module whose next call would be like the last one."""
    module = getattr(fastrnn, cell)(4, 6)
    x, other = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    with torch.set_grad_enabled(recorded):
        module(x), module(x)
        graph = make_fx(lambda x: module(x)[0], pre_dispatch=True)(x)
        assert torch.equal(graph(other), module(other)[0])
        assert graph(other).requires_grad == recorded


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_see_operators() -> None:
    """The second derivatives too; numbers are those without a mode."""
    module = fastrnn.GRU(4, 6, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)

    def penalty() -> tuple[Tensor, ...]:
        [slope] = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), list(module.parameters()))

    expected = penalty()
    with _Counting() as mode:
        found = penalty()
    for name in ("forward", "backward", "double_backward"):
        assert f"fastrnn.{name}.default" in mode.seen
    for mine, true in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell: str, packed: bool) -> None:
    case = Case(cell, 5, 2, 3, 4, bidirectional=True, bias=cell != "gru")
    module = case.module(fastrnn, torch.float64)
    layer = module._stack().time_major[0]
    weights = [None if w is None else w.detach().requires_grad_() for w in module._weights()[0]]
    tensors = {n: t.requires_grad_() for n, t in case.inputs(torch.float64).items()}
    x, h0, c0 = tensors["x"], tensors["h0"], tensors.get("c0")
    table: tuple[Any, ...] = (None, None, 0, 0, 0)
    if packed:
        x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
        table = (torch.tensor([0, 2, 4, 6, 7, 8]), None, 2, 0, 0)
    operators = torch.ops.fastrnn
    inputs = (x, h0, c0, *weights)
    opcheck(operators.forward.default, (x, *table, layer.key, True, *inputs[1:]))
    with torch.no_grad():
        y, h_n, c_n, reserve = operators.forward(x, *table, layer.key, True, *inputs[1:])
    dy = torch.randn_like(y).requires_grad_()
    dc_n = torch.randn_like(c_n) if case.is_lstm else None
    outcome = (dy, torch.randn_like(h_n), dc_n, y, reserve)
    wanted = [t is not None for t in inputs]
    opcheck(operators.backward.default, (*outcome, *table, layer.key, wanted, *inputs))
    plain = [None if t is None else t.detach() for t in (*outcome, *inputs)]
    incoming = [torch.randn_like(t) for t in inputs if t is not None]
    arguments = (*plain[:5], *table, layer.key, incoming, wanted, *plain[5:])
    opcheck(operators.double_backward.default, arguments)
