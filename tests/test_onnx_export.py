"""torch.onnx.export gives ONNX's own operators, and ONNX Runtime gets the module's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnxscript import optimizer
from torch import Tensor
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from _onnx import attributes, exported, flat, nodes, run

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:copyreg"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript"),
    pytest.mark.filterwarnings("ignore:# The axis name"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript"),
    pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode"),
]
KINDS = ["RNN-tanh", "RNN-relu", "LSTM", "GRU"]
I, H = 3, 5


def made(kind: str, **options: Any) -> Any:
    name, _, nonlinearity = kind.partition("-")
    extra = {"nonlinearity": nonlinearity} if nonlinearity else {}
    return getattr(fastrnn, name)(I, H, **extra, **options).eval()


def states(kind: str, *shape: int) -> Any:
    return tuple(torch.randn(2, *shape).unbind()) if kind.startswith("LSTM") else torch.randn(shape)


def assert_same(model: onnx.ModelProto, module: torch.nn.Module, *inputs: Any) -> None:
    expected = flat(module(*inputs))
    for got, true in zip(run(model, inputs), expected, strict=True):
        assert got.shape == true.shape
        np.testing.assert_allclose(got, true.detach().numpy(), rtol=1e-5, atol=1e-6)


def assert_node(kind: str, node: onnx.NodeProto, direction: str) -> None:
    name, _, nonlinearity = kind.partition("-")
    found = attributes(node)
    assert node.op_type == name
    assert node.domain == ""
    assert found["hidden_size"] == H
    assert found["direction"] == direction.encode()
    assert found.get("linear_before_reset") == (1 if name == "GRU" else None)
    D = 2 if direction == "bidirectional" else 1
    own = [nonlinearity.title().encode()] * D if nonlinearity else None
    assert found.get("activations") == own


@pytest.mark.parametrize("kind", KINDS)
def test_all_options_at_once(kind: str) -> None:
    """Layers, directions, batch_first, dropout of eval mode, states, free T and B."""
    module = made(kind, num_layers=3, bidirectional=True, batch_first=True, dropout=0.5)
    T, B = Dim("T"), Dim("B")
    hx = states(kind, 6, 2, H)
    dynamic = ({0: B, 1: T}, {1: B} if isinstance(hx, Tensor) else ({1: B}, {1: B}))
    model = exported(module, (torch.randn(2, 4, I), hx), dynamic)
    assert len(nodes(model)) == 3
    for node in nodes(model):
        assert_node(kind, node, "bidirectional")
    for t, b in ((4, 2), (7, 3), (1, 5)):
        assert_same(model, module, torch.randn(b, t, I), states(kind, 6, b, H))


@pytest.mark.parametrize("kind", KINDS)
def test_no_bias_and_no_states(kind: str) -> None:
    module = made(kind, bias=False)
    model = exported(module, (torch.randn(4, 2, I),), ({0: Dim("T"), 1: Dim("B")},))
    (node,) = nodes(model)
    assert_node(kind, node, "forward")
    assert all(not name for name in node.input[3:])  # neither B nor states
    assert_same(model, module, torch.randn(6, 1, I))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_batch(kind: str) -> None:
    module = made(kind, num_layers=2, batch_first=True)
    hx = states(kind, 2, H)
    free = {} if isinstance(hx, Tensor) else ({}, {})
    model = exported(module, (torch.randn(4, I), hx), ({0: Dim("T")}, free))
    assert_same(model, module, torch.randn(9, I), states(kind, 2, H))


@pytest.mark.parametrize("kind", ["RNN-relu", "LSTM", "GRU"])
@pytest.mark.parametrize("lead", [(2,), ()])
def test_cells(kind: str, lead: tuple[int, ...]) -> None:
    name, _, nonlinearity = kind.partition("-")
    extra = {"nonlinearity": nonlinearity} if nonlinearity else {}
    cell = getattr(fastrnn, f"{name}Cell")(I, H, bias=bool(lead), **extra)
    inputs = (torch.randn(*lead, I), states(kind, *lead, H))
    model = exported(cell, inputs)
    assert_node(kind, nodes(model)[0], "forward")
    assert_same(model, cell, *inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
def test_lengths_are_sequence_lens(kind: str, given: bool) -> None:
    """Padding gives zeros, and a sequence of length 0 keeps its state."""
    module = made(kind, num_layers=2, bidirectional=True, batch_first=True)

    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = module

        def forward(self, x: Tensor, lengths: Tensor, hx: Any = None) -> Any:
            return self.rnn(x, hx, lengths=lengths)

    model, B = Padded().eval(), Dim("B")
    hx = (states(kind, 4, 2, H),) if given else ()
    free = [{1: B} if isinstance(h, Tensor) else ({1: B}, {1: B}) for h in hx]
    inputs = (torch.randn(2, 4, I), torch.tensor([4, 2]), *hx)
    recorded = exported(model, inputs, ({0: B, 1: Dim("T")}, {0: B}, *free))
    hx = (states(kind, 4, 4, H),) if given else ()
    assert_same(recorded, model, torch.randn(4, 7, I), torch.tensor([7, 0, 3, 1]), *hx)


def test_inside_a_model() -> None:
    """The layer is one of several, and its weights are shared with another call of it."""

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, I)
            self.rnn = made("GRU", bidirectional=True, batch_first=True)
            self.out = torch.nn.Linear(2 * H, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            y, h_n = self.rnn(self.embed(tokens))
            return self.out(self.rnn(self.embed(tokens.flip(1)), h_n)[0] + y)

    model = Tagger().eval()
    tokens = torch.randint(11, (2, 6))
    onnx_model = exported(model, (tokens,), ({0: Dim("B"), 1: Dim("T")},))
    assert [n.op_type for n in nodes(onnx_model)] == ["GRU", "GRU"]
    assert_same(onnx_model, model, torch.randint(11, (3, 4)))


def test_small_weights_become_initializers_and_large_ones_can() -> None:
    """Weights are constants in ONNX's layout, so that a runtime may take them apart."""
    model = exported(made("LSTM", bidirectional=True), (torch.randn(4, 2, I),))
    constants = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert [constants[n] for n in nodes(model)[0].input[1:4]] == [
        (2, 4 * H, I),
        (2, 4 * H, H),
        (2, 8 * H),
    ]
    large = fastrnn.LSTM(64, 128).eval()
    x = torch.randn(4, 2, 64)
    model = exported(large, (x,))
    assert len(nodes(model)) == 1
    limit = 2**31
    folded = optimizer.optimize(model, input_size_limit=limit, output_size_limit=limit)
    names = {t.name for t in folded.graph.initializer}
    assert set(nodes(folded)[0].input[1:4]) <= names
    assert_same(folded, large, x)


def test_float64() -> None:
    """ONNX Runtime has no such kernels; ONNX's reference does."""
    module = made("GRU").double()
    x = torch.randn(4, 2, I, dtype=torch.float64)
    model = exported(module, (x,))
    outputs = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    for got, true in zip(outputs, flat(module(x)), strict=True):
        np.testing.assert_allclose(got, true.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_dropout_of_training_mode_is_recorded() -> None:
    module = made("RNN-tanh", num_layers=2, dropout=0.5).train()
    model = exported(module, (torch.randn(4, 2, I),))
    assert [n.op_type for n in model.graph.node].count("Dropout") == 1


def assert_refused(module: torch.nn.Module, inputs: Any, message: str) -> None:
    """Export and look for a message in the chain of errors."""
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        exported(module, inputs)
    chain: str = ""
    error: BaseException | None = caught.value
    while error is not None:
        chain, error = f"{chain}\n{error}", error.__cause__ or error.__context__
    assert message in chain


def test_refused() -> None:
    x = torch.randn(4, 2, I)
    assert_refused(
        made("LSTM", proj_size=2), (x,), "LSTM: proj_size must be 0 for ONNX export, got 2"
    )
    quantized = fastrnn.quantize_dynamic(made("GRU"))
    assert_refused(quantized, (x,), "ONNX has no operator with 8-bit weights")
    assert_refused(made("GRU"), (torch.randn(4, 2, I + 1),), "GRU: input must have 3 features")
    assert_refused(made("GRU"), (x, torch.randn(1, 3, H)), "GRU: h0 must have shape (L*D, B, H)")

    class Packs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = made("LSTM")

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(pack_padded_sequence(x, torch.tensor([4, 2])))[1][0]

    class Resets(torch.nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.rnn, self.options = made("LSTM"), options

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x, **self.options)[0]

    mask = torch.zeros(4, 2, dtype=torch.bool)
    assert_refused(Resets(reset_mask=mask), (x,), "reset_mask must be None for ONNX export")
    assert_refused(Resets(lengths=3), (x[:, 0],), "lengths must be None without a batch")
    assert_refused(Resets(lengths=[3]), (x,), "lengths must be int64 or int32 of shape (B,) = (2,)")
    assert_refused(Packs(), (x,), "input must be a padded tensor for ONNX export")


def test_torch_without_symbolic_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.onnx.ops, "symbolic_multi_out")
    assert_refused(made("LSTM"), (torch.randn(4, 2, I),), "ONNX export needs torch.onnx.ops")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_old_exporter_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace"):
        torch.onnx.export(made("LSTM"), (torch.randn(4, 2, I),), "unused.onnx", dynamo=False)
