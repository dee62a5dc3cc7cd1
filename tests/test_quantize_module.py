"""`fastrnn.Quantized` as a module: made, copied, saved, refreshed, refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from _support import CELLS, Case, assert_bitwise, call, run

KINDS = ("RNN", "LSTM", "GRU")


def quantized(case: Case) -> Any:
    return fastrnn.quantize_dynamic(case.module(fastrnn))


@pytest.mark.parametrize("cell", CELLS)
def test_of_torch_and_of_fastrnn(cell: str) -> None:
    """The same weights make the same copy, whichever class they are in; the source stays."""
    case = Case(cell, layers=2, bidirectional=True)
    for namespace in (nn, fastrnn):
        source = case.module(namespace).train()
        before = copy.deepcopy(source.state_dict())
        module = fastrnn.quantize_dynamic(source)
        assert isinstance(module, fastrnn.Quantized)
        assert not module.training
        assert source.training
        assert type(source) is getattr(namespace, case.kind)
        assert_bitwise(source.state_dict(), before)
        assert not list(module.parameters())
        found = call(module, case, case.inputs())
        assert_bitwise(found, call(quantized(case), case, case.inputs()))
    with torch.no_grad():
        source.weight_ih_l0.zero_()
        source.bias_ih_l0.zero_()
    assert_bitwise(call(module, case, case.inputs()), found)


class Model(nn.Module):
    def __init__(self, namespace: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.layers = nn.ModuleList([namespace.LSTM(5, 6), namespace.GRU(6, 6)])
        self.again = self.layers[1]
        self.step = namespace.GRUCell(6, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in (*self.layers, self.again):
            x, _ = layer(x)
        return self.norm(self.step(x[-1]))


@pytest.mark.parametrize("namespace", [fastrnn, nn], ids=["fastrnn", "torch"])
def test_whole_models(namespace: Any) -> None:
    model = Model(namespace).train()
    kinds = [type(m) for m in model.modules()]
    small = fastrnn.quantize_dynamic(model)
    assert [type(m) for m in model.modules()] == kinds
    assert model.training
    assert not any(m.training for m in small.modules())
    assert type(small) is Model
    assert [type(m) for m in small.layers] == [fastrnn.Quantized] * 2
    assert small.again is small.layers[1]
    assert type(small.step) is namespace.GRUCell
    assert small.embed.weight is not model.embed.weight
    x = torch.randn(7, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model.eval()(x), rtol=0, atol=0.02)
        model.embed.weight.zero_()
        model.layers[0].weight_ih_l0.zero_()
        assert not torch.equal(small(x), model(x))


def test_models_without_recurrent_layers() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(nn.ReLU()), fastrnn.GRUCell(2, 3)):
        with pytest.raises(ValueError, match=type(model).__name__):
            fastrnn.quantize_dynamic(model)
    with pytest.raises(TypeError, match="Linear"):
        fastrnn.Quantized(nn.Linear(2, 2))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_copies(cell: str, used: bool) -> None:
    case = Case(cell, layers=2, bidirectional=True)
    module, other = quantized(case), quantized(replace(case, seed=9))
    expected = call(module, case, case.inputs())
    if used:
        call(other, case, case.inputs())
    else:
        module = quantized(case)  # which has packed nothing yet
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_bitwise(call(copied, case, case.inputs()), expected)
        copied.refresh(replace(case, seed=9).module(fastrnn))
        assert not torch.equal(call(copied, case, case.inputs())["y"], expected["y"])
    assert str(other.load_state_dict(module.state_dict())) == "<All keys matched successfully>"
    assert_bitwise(call(other, case, case.inputs()), expected)
    assert_bitwise(call(module, case, case.inputs()), expected)
    size = len(pickle.dumps(quantized(case)))
    assert len(pickle.dumps(module)) == size


def test_loading_into_a_model() -> None:
    first, second = (fastrnn.quantize_dynamic(Model(fastrnn)) for _ in range(2))
    x = torch.randn(5, 2, 4)
    with torch.no_grad():
        second(x)
        second.load_state_dict(first.state_dict())
        assert torch.equal(second(x), first(x))


@pytest.mark.parametrize("cell", CELLS)
def test_refresh(cell: str) -> None:
    case = Case(cell, layers=2)
    module = quantized(case)
    old = call(module, case, case.inputs())
    other = replace(case, seed=5).module(nn)
    module.refresh(other)
    fresh = call(module, case, case.inputs())
    assert_bitwise(fresh, call(fastrnn.quantize_dynamic(other), case, case.inputs()))
    assert not torch.equal(fresh["y"], old["y"])
    for wrong in ({"I": 5}, {"H": 9}, {"layers": 1}, {"bias": False}):
        with pytest.raises(ValueError, match="must have shape"):
            module.refresh(replace(case, **wrong).module(fastrnn))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=r"weight_ih_l0 must be torch.float32"):
            module.refresh(case.module(fastrnn, dtype))
        with pytest.raises(TypeError, match=r"weight_ih_l0 must be torch.float32"):
            fastrnn.quantize_dynamic(case.module(nn, dtype))
    assert_bitwise(call(module, case, case.inputs()), fresh)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("more", [{"layers": 3}, {"bidirectional": True}, {"bias": True}])
def test_refresh_with_more_than_it_has(cell: str, more: dict[str, Any]) -> None:
    """Weights that would be left out are no weights of the same layer."""
    case = Case(cell, layers=2, bias=False)
    module = quantized(case)
    with pytest.raises(ValueError, match="must"):
        module.refresh(replace(case, **more).module(fastrnn))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("move", ["half", "double", "bfloat16", "float"])
def test_numbers_keep_their_dtypes(cell: str, move: str) -> None:
    case = Case(cell, layers=2)
    module = quantized(case)
    before = copy.deepcopy(module.state_dict())
    expected = call(module, case, case.inputs())
    assert getattr(module, move)() is module
    for name, tensor in module.state_dict().items():
        assert tensor.dtype is before[name].dtype
        assert torch.equal(tensor, before[name])
    assert_bitwise(call(module, case, case.inputs()), expected)
    assert_bitwise(call(module.to("cpu", torch.float16), case, case.inputs()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_inputs(kind: str) -> None:
    module = fastrnn.quantize_dynamic(getattr(nn, kind)(4, 6))
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int64):
        with pytest.raises(ValueError, match=rf"{kind}.*input must be torch.float32"):
            module(torch.zeros(3, 2, 4, dtype=dtype))
        with pytest.raises(RuntimeError, match=r"torch\.float32"):
            module.stream(2).step(torch.zeros(2, 4, dtype=dtype))
    for shape in ((3, 2, 5), (0, 2, 4)):
        with pytest.raises(RuntimeError):
            module(torch.zeros(shape))
    state = torch.zeros(1, 2, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="h0"):
        module(torch.zeros(3, 2, 4), (state, state) if kind == "LSTM" else state)
    with pytest.raises(ValueError, match="bidirectional"):
        fastrnn.quantize_dynamic(getattr(nn, kind)(4, 6, bidirectional=True)).stream()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_refused(cell: str) -> None:
    case = Case(cell)
    module, tensors = quantized(case), case.inputs()
    expected = call(module, case, tensors)
    for name, tensor in tensors.items():
        given = tensors | {name: tensor.clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
            call(module, case, given)
        with torch.no_grad():
            assert_bitwise(call(module, case, given), expected)
    assert not call(module, case, tensors)["y"].requires_grad


def test_repr() -> None:
    module = fastrnn.quantize_dynamic(
        nn.LSTM(4, 6, 2, bias=False, batch_first=True, bidirectional=True, proj_size=3)
    )
    assert repr(module) == (
        "Quantized(LSTM, 4, 6, num_layers=2, proj_size=3, bias=False, batch_first=True, "
        "bidirectional=True)"
    )
    assert repr(fastrnn.quantize_dynamic(nn.RNN(4, 6))) == "Quantized(RNN_TANH, 4, 6)"
    assert "Quantized(GRU, 6, 6)" in repr(fastrnn.quantize_dynamic(Model(fastrnn)))


def test_memory() -> None:
    def size(module: nn.Module) -> int:
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    source = fastrnn.LSTM(512, 512)
    assert size(fastrnn.quantize_dynamic(source)) < 0.3 * size(source)


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell: str) -> None:
    case = Case(cell, 3, 0, 4, 6, 2, True)
    found = call(quantized(case), case, case.inputs())
    with torch.no_grad():
        expected = run(case.module(fastrnn), case, wants=())
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_left_out(cell: str) -> None:
    case = Case(cell, layers=3, dropout=0.5)
    module = quantized(case).train()
    expected = call(quantized(replace(case, dropout=0.0)), case, case.inputs())
    assert_bitwise(call(module, case, case.inputs()), expected)


def test_a_refused_refresh_changes_nothing() -> None:
    """Not even the layers before the one that does not fit."""
    case = Case("lstm", layers=2)
    module = quantized(case)
    before = copy.deepcopy(module.state_dict())
    other = replace(case, seed=1).module(fastrnn)
    other.bias_hh_l1 = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="bias_hh_l1"):
        module.refresh(other)
    assert_bitwise(module.state_dict(), before)
