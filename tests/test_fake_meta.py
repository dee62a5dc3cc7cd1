"""Tensors without memory: shapes come out, and nothing is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fastrnn
from _support import CELLS, Case, call, twin

CASES = [
    Case(
        cell, 6, 1 if layout == "unbatched" else 5, 4, 7, 2, True, batch_first=first, layout=layout
    )
    for cell in CELLS
    for layout in ("dense", "unbatched")
    for first in (False, True)
] + [Case(cell, 1, 0, 4, 7, bidirectional=True, states=False) for cell in CELLS]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_meta(case: Case, grad: bool) -> None:
    """A module on meta gives the shapes that torch gives."""
    modules = [case.module(namespace).to("meta") for namespace in (fastrnn, nn)]
    tensors = {n: t.to("meta") for n, t in case.inputs().items()}
    with torch.set_grad_enabled(grad):
        ours, theirs = (call(module, case, tensors) for module in modules)
    for name, reference in theirs.items():
        assert ours[name].shape == reference.shape, name
        assert ours[name].dtype == reference.dtype
        assert ours[name].is_meta
        assert ours[name].requires_grad == reference.requires_grad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_meta_gradients(case: Case) -> None:
    module = case.module(fastrnn).to("meta")
    tensors = {n: t.to("meta").requires_grad_() for n, t in case.inputs().items()}
    sources = [*tensors.values(), *module.parameters()]
    outputs = call(module, case, tensors)
    gradients = torch.autograd.grad(sum(t.sum() for t in outputs.values()), sources)
    assert [g.shape for g in gradients] == [s.shape for s in sources]
    assert all(g.is_meta for g in gradients)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_fake_mode(case: Case, grad: bool) -> None:
    """Under FakeTensorMode the outputs are fake and have the real ones' shapes."""
    module = case.module(fastrnn)
    tensors = case.inputs()
    expected = {name: tensor.shape for name, tensor in call(module, case, tensors).items()}
    mode = FakeTensorMode()
    fake = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
    parameters = {n: mode.from_tensor(p) for n, p in module.named_parameters()}
    with mode, torch.set_grad_enabled(grad):
        for name, parameter in parameters.items():
            setattr(module, name, nn.Parameter(parameter))
        outputs = call(module, case, fake)
    for name, shape in expected.items():
        assert isinstance(outputs[name], FakeTensor)
        assert outputs[name].shape == shape
        assert outputs[name].requires_grad == grad


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_fake_input_with_real_weights_is_refused(kind: str) -> None:
    """Such weights have an address, such an input has none: it must not be read."""
    module = getattr(fastrnn, kind)(4, 6)
    x = FakeTensorMode().from_tensor(torch.zeros(5, 3, 4))
    with pytest.raises((RuntimeError, TypeError, AssertionError)):
        module(x)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_from_meta_to_memory(kind: str) -> None:
    """The usual way of large models: build on meta, allocate, load."""
    case_of = {"RNN": "tanh", "LSTM": "lstm", "GRU": "gru"}
    case = Case(case_of[kind], layers=2)
    ours, theirs = twin(case)
    with torch.device("meta"):
        module = getattr(fastrnn, kind)(case.I, case.H, num_layers=2)
    module.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    expected = call(ours, case, case.inputs())
    for name, tensor in call(module, case, case.inputs()).items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_on_meta(kind: str) -> None:
    for shape in ((3, 4), (4,)):
        outputs = []
        for namespace in (fastrnn, nn):
            cell = getattr(namespace, kind)(4, 6, device="meta")
            result = cell(torch.zeros(shape, device="meta"))
            outputs.append([t.shape for t in (result if kind == "LSTMCell" else (result,))])
        assert outputs[0] == outputs[1]
