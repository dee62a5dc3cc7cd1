"""Whole models to fastrnn and back: what changes is the class of the recurrent modules alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn
from _support import CELLS, Case, assert_bitwise, run, twin
from fastrnn.conversion import Conversion

KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """More make torch no faster at these sizes, and on a busy machine far slower."""
    torch.set_num_threads(1)


class Model(nn.Module):
    """Recurrent modules of every kind, one of them in two places, weights tied between others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.layers = nn.ModuleList([nn.GRU(12, 5), nn.RNN(5, 5, nonlinearity="relu")])
        self.cells = nn.ModuleDict({k: getattr(nn, k)(5, 5) for k in KINDS[3:]})
        self.again = self.layers[0]
        self.tied = nn.GRU(12, 5)
        self.tied.weight_hh_l0 = self.layers[0].weight_hh_l0
        self.head = nn.Linear(5, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.encoder(self.embedding(tokens))
        y = self.layers[0](y)[0] + self.again(y)[0] + self.tied(y)[0]
        y = self.layers[1](y)[0][:, -1]
        h, _ = self.cells["LSTMCell"](y)
        return self.head(self.cells["GRUCell"](h) + self.cells["RNNCell"](y))


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("compatible", [False, True])
def test_root_is_an_rnn(cell: str, compatible: bool) -> None:
    case = Case(cell, layers=2, bidirectional=True)
    ours, theirs = twin(case)
    expected, before = run(ours, case), pickle.dumps(theirs)
    module = fastrnn.convert(theirs, compatible=compatible)
    assert module is theirs
    assert type(module) is getattr(fastrnn.compat if compatible else fastrnn, case.kind)
    assert isinstance(module, getattr(nn, case.kind)) is compatible
    assert_bitwise(run(module, case), expected)
    assert fastrnn.to_torch(module) is theirs
    assert type(module) is getattr(nn, case.kind)
    for parameter in module.parameters():
        parameter.requires_grad_()
    assert pickle.dumps(module) == before


@pytest.mark.parametrize("compatible", [False, True])
def test_model(compatible: bool) -> None:
    torch.manual_seed(1)
    model, tokens = Model().eval(), torch.randint(0, 9, (3, 7))
    expected, structure, bytes_before = model(tokens), classes(model), pickle.dumps(model)
    parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    report: list[Conversion] = []

    assert fastrnn.convert(model, compatible=compatible, strict=True, report=report) is model

    namespace: Any = fastrnn.compat if compatible else fastrnn
    assert [(c.name, c.before, c.after, c.reason) for c in report] == [
        (name, getattr(nn, kind), getattr(namespace, kind), None)
        for name, kind in [
            ("encoder", "LSTM"),
            ("layers.0", "GRU"),
            ("layers.1", "RNN"),
            *((f"cells.{k}", k) for k in KINDS[3:]),
            ("tied", "GRU"),
        ]
    ]
    assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == parameters
    assert model.again is model.layers[0]
    assert model.tied.weight_hh_l0 is model.layers[0].weight_hh_l0
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model(tokens), expected)
    assert not model.encoder.training

    fastrnn.to_torch(model, strict=True)
    assert classes(model) == structure
    assert pickle.dumps(model) == bytes_before
    assert torch.equal(model(tokens), expected)


def test_training_continues_through_both_ways() -> None:
    """The optimizer keeps its parameters, and converting does not change the course."""
    tokens, losses = torch.randint(0, 9, (3, 7)), []
    for turns in (False, True):
        torch.manual_seed(1)
        model = Model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(6):
            if turns:
                (fastrnn.convert if step % 2 else fastrnn.to_torch)(model)
            torch.manual_seed(step)  # dropout
            loss = model(tokens).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[6:], losses[:6], rtol=1e-4, atol=1e-6)


def test_hooks_flags_and_attributes_stay() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].weight_ih_l0.register_hook(lambda g: seen.append("gradient"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    model[0].weight_hh_l0.requires_grad_(False)
    model[0].note = "mine"
    model[0].register_buffer("steps", torch.zeros(1))
    model.eval()
    fastrnn.convert(model)
    assert (model[0].note, model[0].training) == ("mine", False)
    assert "0.steps" in model.state_dict()
    model[0](torch.zeros(2, 1, 3, requires_grad=True))[0].sum().backward()
    assert sorted(seen) == ["backward", "forward", "gradient"]
    assert model[0].weight_hh_l0.grad is None
    assert model[0].weight_ih_l0.grad is not None


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_parametrized(kind: str) -> None:
    module = getattr(nn, kind)(3, 4)
    name = "weight_hh" if "Cell" in kind else "weight_hh_l0"
    parametrizations.weight_norm(module, name)
    parametrizations.spectral_norm(module.eval(), name.replace("hh", "ih"))
    x = torch.randn(2, 3) if "Cell" in kind else torch.randn(2, 1, 3)
    expected, before = module(x)[0], type(module)
    fastrnn.convert(module, strict=True)
    assert parametrize.is_parametrized(module, name)
    assert isinstance(module, getattr(fastrnn, kind))
    torch.testing.assert_close(module(x)[0], expected)
    if "Cell" in kind:  # nn.LSTM's call has left results in it that cannot be copied
        torch.testing.assert_close(copy.deepcopy(module)(x)[0], expected)
    fastrnn.to_torch(module, strict=True)
    assert type(module).__bases__ == before.__bases__
    assert torch.equal(module(x)[0], expected)
    fastrnn.convert(module)
    parametrize.remove_parametrizations(module, name)
    parametrize.remove_parametrizations(module, name.replace("hh", "ih"))
    assert type(module) is getattr(fastrnn, kind)
    torch.testing.assert_close(module(x)[0], expected)


class Mine(nn.LSTM):
    pass


class MineToo(fastrnn.GRU):
    pass


def left_alone() -> dict[str, tuple[nn.Module, str]]:
    """Return modules that are not converted, with what the reason says."""
    scripted = torch.jit.script(nn.Sequential(nn.GRU(3, 4)))
    quantized = nn.Sequential(torch.ao.nn.quantized.dynamic.GRU(3, 4))
    return {
        "subclass": (nn.Sequential(Mine(3, 4)), "subclass"),
        "scripted": (scripted, "TorchScript"),
        "quantized": (quantized, "quantized"),
        "complex": (nn.Sequential(nn.GRU(3, 4, dtype=torch.complex64)), "complex64"),
        "empty": (nn.Sequential(nn.GRUCell(0, 4)), "no elements"),
    }


@pytest.mark.filterwarnings("ignore")  # torch's, about torch.jit and torch.ao
@pytest.mark.parametrize("name", ["subclass", "scripted", "quantized", "complex", "empty"])
def test_left_alone(name: str) -> None:
    model, reason = left_alone()[name]
    model_of_both = nn.ModuleList([nn.LSTM(3, 4), model])
    before = classes(model_of_both)
    with pytest.raises(TypeError, match=reason):
        fastrnn.convert(model_of_both, strict=True)
    assert classes(model_of_both) == before  # all or nothing
    report: list[Conversion] = []
    fastrnn.convert(model_of_both, report=report)
    assert [c.reason is None for c in report] == [True, False]
    assert reason in str(report[1].reason)
    assert report[1].before is report[1].after
    assert [type(m) for m in model.modules()] == before[2:]


def test_unsupported_device() -> None:
    module = nn.LSTM(3, 4, device="meta")
    assert type(fastrnn.convert(module)) is fastrnn.LSTM  # a model may be converted before loading
    assert module(torch.zeros(2, 1, 3, device="meta"))[0].is_meta


def test_again_does_nothing() -> None:
    module = fastrnn.convert(nn.Sequential(nn.LSTM(3, 4)))
    report: list[Conversion] = []
    assert type(fastrnn.convert(module, report=report)[0]) is fastrnn.LSTM
    fastrnn.to_torch(module)
    assert type(fastrnn.to_torch(module, report=report, strict=True)[0]) is nn.LSTM
    assert not report


def test_to_torch_drops_what_changes_no_result() -> None:
    module = fastrnn.LSTM(3, 4, 2, checkpoint_every="auto")
    x = torch.randn(5, 2, 3)
    expected = module(x)[0]
    fastrnn.to_torch(module, strict=True)
    assert repr(module) == repr(nn.LSTM(3, 4, 2))
    assert vars(module).keys() == vars(nn.LSTM(3, 4, 2)).keys()
    torch.testing.assert_close(module(x)[0], expected)
    assert fastrnn.convert(module).checkpoint_every is None


def test_to_torch_leaves_alone() -> None:
    quantized = fastrnn.quantize_dynamic(nn.LSTM(3, 4))
    model = nn.ModuleList([quantized, MineToo(3, 4), fastrnn.GRU(3, 4), Mine(3, 4)])
    with pytest.raises(TypeError, match="8-bit"):
        fastrnn.to_torch(model, strict=True)
    report: list[Conversion] = []
    fastrnn.to_torch(model, report=report)
    assert [type(m) for m in model] == [fastrnn.Quantized, MineToo, nn.GRU, Mine]
    assert [c.reason is None for c in report] == [False, False, True]
    with pytest.raises(TypeError, match="the module '1' must be convertible, got MineToo"):
        fastrnn.to_torch(nn.ModuleList([nn.Linear(1, 1), MineToo(3, 4)]), strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_compat_classes(kind: str) -> None:
    """Both libraries' classes, made by fastrnn's constructor with torch's numbers."""
    ours, theirs = getattr(fastrnn.compat, kind), getattr(nn, kind)
    options: dict[str, Any] = {"bias": False} if "Cell" in kind else {"num_layers": 2}
    torch.manual_seed(0)
    module = ours(3, 4, **options)
    torch.manual_seed(0)
    reference = theirs(3, 4, **options)
    assert isinstance(module, theirs)
    assert isinstance(module, getattr(fastrnn, kind))
    assert repr(module) == repr(reference)
    for a, b in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(2, 3) if "Cell" in kind else torch.randn(5, 2, 3)
    torch.testing.assert_close(module(x), reference(x))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(copied) is ours
        torch.testing.assert_close(copied(x), reference(x))
    with fastrnn.accelerate() as report:
        module(x)
    assert not report.accelerated  # it does not pass through torch's code
    assert type(fastrnn.to_torch(module)) is theirs


@pytest.mark.filterwarnings("ignore")  # Dynamo's, about breaks in the graph
def test_compat_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # Dynamo cannot trace the poison of fresh memory
    torch._dynamo.reset()
    module, x = fastrnn.compat.GRU(3, 4), torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.compile(module, backend="eager")(x), module(x))
    torch._dynamo.reset()
