"""What else users do with a module: save, copy, print, hook, move, switch, wrap."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from _support import CELLS, Case, assert_bitwise, call, run, twin

KINDS = ("RNN", "LSTM", "GRU")
ALL = (*KINDS, *(f"{kind}Cell" for kind in KINDS))
CASES = [Case(cell, layers=2, bidirectional=True) for cell in CELLS]


def saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, saved, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_copies(case: Case, copied: Any, used: bool) -> None:
    module = case.module(fastrnn).eval()
    expected = run(module, case)
    if used:
        run(module, case, wants=())
    other = copied(module)
    assert type(other) is type(module)
    assert_bitwise(run(other, case), expected)
    with torch.no_grad():
        if copied is not copy.copy:  # which shares the parameters
            other.weight_hh_l0.add_(1)
    assert_bitwise(run(module, case), expected)
    run(module, case, wants=())


def test_pickle_is_small() -> None:
    """Packed weights and scratch are not part of a module's state."""
    module = fastrnn.LSTM(16, 64).eval()
    before = len(pickle.dumps(module))
    with torch.no_grad():
        module(torch.zeros(4, 2, 16))
    assert len(pickle.dumps(module)) == before
    assert list(module.state_dict()) == list(nn.LSTM(16, 64).state_dict())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_repr(case: Case) -> None:
    assert repr(case.module(fastrnn)) == repr(case.module(nn))
    dropout = Case(case.cell, layers=2, dropout=0.5, batch_first=True, bias=False)
    assert repr(dropout.module(fastrnn)) == repr(dropout.module(nn))


@pytest.mark.parametrize("kind", ALL)
def test_type_and_signature(kind: str) -> None:
    ours, theirs = getattr(fastrnn, kind), getattr(nn, kind)
    assert issubclass(ours, nn.RNNCellBase if "Cell" in kind else nn.RNNBase)
    assert not issubclass(ours, theirs)  # Dynamo refuses those
    assert ours.__module__.startswith("fastrnn")
    module = ours(3, 4)
    assert isinstance(module, nn.Module)
    parameters = dict(inspect.signature(ours.forward).parameters)
    for name, reference in inspect.signature(theirs.forward).parameters.items():
        parameter = parameters.pop(name)
        assert (parameter.kind, parameter.default) == (reference.kind, reference.default)
    assert parameters.keys() == (set() if "Cell" in kind else {"lengths", "reset_mask"})
    assert all(parameter.default is None for parameter in parameters.values())


@pytest.mark.parametrize("namespace", [fastrnn, nn], ids=["fastrnn", "torch"])
def test_positional_arguments(namespace: Any) -> None:
    """The order of the constructors' arguments is torch's."""
    lstm = namespace.LSTM(3, 8, 2, False, True, 0.25, True, 4, "cpu", torch.float64)
    assert (lstm.num_layers, lstm.bias, lstm.batch_first, lstm.dropout) == (2, False, True, 0.25)
    assert (lstm.bidirectional, lstm.proj_size, lstm.weight_hh_l0.dtype) == (True, 4, torch.float64)
    gru = namespace.GRU(3, 8, 2, True, False, 0.25, True, device="cpu", dtype=torch.float64)
    assert (gru.num_layers, gru.bias, gru.batch_first, gru.bidirectional) == (2, True, False, True)
    rnn = namespace.RNN(3, 8, 2, "relu", False, True, 0.25, True)
    assert (rnn.nonlinearity, rnn.bias, rnn.batch_first, rnn.mode) == (
        "relu",
        False,
        True,
        "RNN_RELU",
    )
    assert namespace.RNNCell(3, 8, True, "relu").nonlinearity == "relu"
    assert namespace.LSTMCell(3, 8, False).bias is False


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attributes_are_torchs(case: Case) -> None:
    """Public attributes and their values, and the lists of weights that some tools read."""
    ours, theirs = case.module(fastrnn), case.module(nn)
    for name in vars(theirs):
        if not name.startswith("_"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert [[w.shape for w in group] for group in ours.all_weights] == [
        [w.shape for w in group] for group in theirs.all_weights
    ]
    ours.flatten_parameters()
    assert ours.extra_repr() == theirs.extra_repr()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_train_and_eval(case: Case) -> None:
    module = case.module(fastrnn)
    assert module.training
    assert not module.eval().training
    assert module.train() is module
    module.reset_parameters()
    module.zero_grad()
    assert module.requires_grad_(False) is module


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dtype_moves(case: Case) -> None:
    """float32 -> float64 -> float32 after use; the right kernels each time."""
    ours, theirs = twin(case)
    expected = run(ours, case)
    ours.double()
    theirs.double()
    for name, value in run(ours, case).items():
        torch.testing.assert_close(value, run(theirs, case)[name], msg=name)
    assert_bitwise(run(ours.to(torch.float32), case), expected)
    assert_bitwise(run(ours.to("cpu"), case), expected)


def test_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    module = fastrnn.GRU(3, 4)
    assert module(torch.zeros(2, 1, 3))[0].dtype == torch.float64


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hooks(case: Case) -> None:
    module = case.module(fastrnn)
    seen = []
    module.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    module.register_forward_hook(lambda m, args, output: seen.append("post"))
    module.weight_hh_l0.register_hook(lambda g: seen.append("grad"))
    module.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    tensors = case.inputs()
    tensors["x"].requires_grad_()
    call(module, case, tensors)["y"].sum().backward()
    assert seen[:2] == ["pre", "post"]
    assert set(seen) == {"pre", "post", "grad", "backward"}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrizations(case: Case, wrap: Any) -> None:
    """A parametrized weight is read through its parametrization, at each call."""
    ours, theirs = twin(case, torch.float64)
    for module in (ours, theirs):
        torch.manual_seed(0)
        wrap(module, "weight_hh_l0")
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        for name, value in run(ours, case).items():
            torch.testing.assert_close(value, run(theirs, case)[name], msg=name)
        with torch.no_grad():
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                b.copy_(a.mul_(1.1))


@pytest.mark.parametrize("cell", CELLS)
def test_subclass(cell: str) -> None:
    """A user's subclass works, and its name is its own."""
    case = Case(cell)

    class Mine(getattr(fastrnn, case.kind)):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            y, states = super().forward(*args)
            return y * 2, states

    plain = case.module(fastrnn)
    options = {"nonlinearity": cell} if case.kind == "RNN" else {}
    if cell == "proj":
        options["proj_size"] = case.output_size
    mine = Mine(case.I, case.H, **options)
    mine.load_state_dict(plain.state_dict())
    tensors = case.inputs()
    assert torch.equal(call(mine, case, tensors)["y"], 2 * call(plain, case, tensors)["y"])
    assert repr(mine).startswith("Mine(")


@pytest.mark.parametrize("kind", KINDS)
def test_inside_other_modules(kind: str) -> None:
    class Model(nn.Module):
        def __init__(self, namespace: Any) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.recurrent = getattr(namespace, kind)(4, 6, 2)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.recurrent(x)[0][-1])

    ours, theirs = Model(fastrnn), Model(nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)


def test_public_names() -> None:
    assert set(ALL) <= set(fastrnn.__all__)
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name) is not None
    assert isinstance(fastrnn.__version__, str)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
def test_torchscript_says_no() -> None:
    """TorchScript is not supported: an error, and not a module that computes something else."""
    with pytest.raises(Exception):  # noqa: B017, PT011 -- any error
        torch.jit.script(fastrnn.LSTM(3, 4))
