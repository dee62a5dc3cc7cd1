"""Bad and unusual input: torch's kind of exception with a message of ours, or torch's result."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
import tolerances
from _support import CELLS, Case, call, error, largest, run, twin

KINDS = ("RNN", "LSTM", "GRU")
Call = Callable[[Any], Any]


def build(namespace: Any, kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(namespace, kind)(4, 6, **options)


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


def hx(module: Any, h0: Tensor, c0: Any = ...) -> Any:
    """Return the initial states of an LSTM (c0 is h0 unless given) or of another module."""
    return (h0, h0 if c0 is ... else c0) if module.mode == "LSTM" else h0


def packed(data: Tensor, *batch_sizes: int) -> PackedSequence:
    return PackedSequence(data, torch.tensor(batch_sizes, dtype=torch.int64))


def with_weight(name: str, change: Callable[[Tensor], Tensor], dtype: Any = None) -> Call:
    """Return a call of the module with one parameter replaced."""

    def call(module: Any) -> Any:
        setattr(module, name, nn.Parameter(change(getattr(module, name).detach())))
        return module(zeros(5, 3, 4, dtype=dtype))

    return call


BAD: dict[str, Call] = {
    "rank 0": lambda m: m(zeros()),
    "rank 1": lambda m: m(zeros(4)),
    "rank 4": lambda m: m(zeros(2, 5, 3, 4)),
    "features": lambda m: m(zeros(5, 3, 3)),
    "features, unbatched": lambda m: m(zeros(5, 3)),
    "no features": lambda m: m(zeros(5, 3, 0)),
    "integer": lambda m: m(zeros(5, 3, 4, dtype=torch.int64)),
    "bool": lambda m: m(zeros(5, 3, 4, dtype=torch.bool)),
    "complex": lambda m: m(zeros(5, 3, 4, dtype=torch.complex64)),
    "double": lambda m: m(zeros(5, 3, 4, dtype=torch.float64)),
    "half": lambda m: m(zeros(5, 3, 4, dtype=torch.float16)),
    "sparse": lambda m: m(zeros(5, 3, 4).to_sparse()),
    "T = 0": lambda m: m(zeros(0, 3, 4)),
    "T = 0, unbatched": lambda m: m(zeros(0, 4)),
    "T = 0, B = 0": lambda m: m(zeros(0, 0, 4)),
    "x on meta": lambda m: m(zeros(5, 3, 4, device="meta")),
    "hx on meta": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 3, 6, device="meta"))),
    "hx batch": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 2, 6))),
    "hx broadcastable": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 1, 6))),
    "hx layers": lambda m: m(zeros(5, 3, 4), hx(m, zeros(2, 3, 6))),
    "hx features": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 3, 5))),
    "hx rank": lambda m: m(zeros(5, 3, 4), hx(m, zeros(3, 6))),
    "hx rank, unbatched": lambda m: m(zeros(5, 4), hx(m, zeros(1, 1, 6))),
    "hx double": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 3, 6, dtype=torch.float64))),
    "hx integer": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 3, 6, dtype=torch.int64))),
    "hx of the other kind": lambda m: m(
        zeros(5, 3, 4), zeros(1, 3, 6) if m.mode == "LSTM" else (zeros(1, 3, 6),) * 2
    ),
    "hx of one": lambda m: m(zeros(5, 3, 4), (zeros(1, 3, 6),)),
    "hx of three": lambda m: m(zeros(5, 3, 4), (zeros(1, 3, 6),) * 3),
    "x is a list": lambda m: m([[1.0, 2.0, 3.0, 4.0]]),
    "x is None": lambda m: m(None),
    "x is numpy": lambda m: m(zeros(5, 3, 4).numpy()),
    "weight_hh double": with_weight("weight_hh_l0", Tensor.double),
    "weight_ih double": with_weight("weight_ih_l0", Tensor.double),
    "weight_ih and x double": with_weight("weight_ih_l0", Tensor.double, torch.float64),
    "bias shape": with_weight("bias_ih_l0", lambda b: b[:3]),
    "packed, too long": lambda m: m(packed(zeros(6, 4), 3, 2, 2)),
    "packed, increasing": lambda m: m(packed(zeros(6, 4), 2, 4)),
    "packed, late increase": lambda m: m(packed(zeros(8, 4), 3, 2, 3)),
    "packed, negative": lambda m: m(packed(zeros(6, 4), 3, -1, 4)),
    "packed, empty step": lambda m: m(packed(zeros(6, 4), 3, 0, 3)),
    "packed, no steps": lambda m: m(packed(zeros(6, 4))),
    "packed, int32 lengths": lambda m: m(
        PackedSequence(zeros(6, 4), torch.tensor([3, 2, 1], dtype=torch.int32))
    ),
    "packed, float lengths": lambda m: m(PackedSequence(zeros(6, 4), torch.tensor([3.0, 2, 1]))),
    "packed, hx batch": lambda m: m(packed(zeros(6, 4), 3, 2, 1), hx(m, zeros(1, 2, 6))),
    "packed, hx rank": lambda m: m(packed(zeros(6, 4), 3, 2, 1), hx(m, zeros(3, 6))),
    "packed, features": lambda m: m(packed(zeros(6, 3), 3, 2, 1)),
    "packed, rank": lambda m: m(packed(zeros(6, 1, 4), 3, 2, 1)),
    "packed, double": lambda m: m(packed(zeros(6, 4, dtype=torch.float64), 3, 2, 1)),
}
BAD_LSTM: dict[str, Call] = {
    "c0 missing": lambda m: m(zeros(5, 3, 4), zeros(1, 3, 6)),
    "c0 None": lambda m: m(zeros(5, 3, 4), (zeros(1, 3, 6), None)),
    "c0 batch": lambda m: m(zeros(5, 3, 4), (zeros(1, 3, 6), zeros(1, 2, 6))),
    "c0 rank": lambda m: m(zeros(5, 3, 4), (zeros(1, 3, 6), zeros(3, 6))),
    "c0 double": lambda m: m(zeros(5, 3, 4), hx(m, zeros(1, 3, 6), zeros(1, 3, 6).double())),
}
# torch fails here while it handles what it did not expect; a plain argument error says more.
ACCIDENTS = (AttributeError, IndexError, NotImplementedError)
ARGUMENT_ERRORS = (TypeError, ValueError, RuntimeError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_fails_as_in_torch(kind: str, bad: Call) -> None:
    assert_same_failure(kind, bad)


@pytest.mark.parametrize("bad", BAD_LSTM.values(), ids=BAD_LSTM)
def test_lstm_fails_as_in_torch(bad: Call) -> None:
    assert_same_failure("LSTM", bad)


def assert_same_failure(kind: str, bad: Call) -> None:
    ours, theirs = build(fastrnn, kind), build(nn, kind)
    for training in (True, False):  # with and without autograd
        with torch.set_grad_enabled(training):
            with pytest.raises(Exception) as reference:  # noqa: PT011 -- its kind is what counts
                bad(theirs)
            expected = reference.type
            if issubclass(expected, ACCIDENTS):
                expected = (expected, *ARGUMENT_ERRORS)
            with pytest.raises(expected, match=rf"^{kind}: .*\bgot\b"):
                bad(ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("dim", [0, 1])
def test_weight_of_another_shape(kind: str, name: str, dim: int) -> None:
    """torch's LSTM reads past such a weight; ours refuses it, as torch's RNN and GRU do."""
    bad = with_weight(name, lambda w: w.narrow(dim, 0, w.shape[dim] - 1).clone())
    with pytest.raises(RuntimeError, match=rf"^{kind}: {name} .*\bgot\b"):
        bad(build(fastrnn, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_unsupported_dtype_is_refused(kind: str, dtype: torch.dtype) -> None:
    """Nothing falls back silently."""
    module = build(fastrnn, kind, dtype=dtype)
    with pytest.raises(ARGUMENT_ERRORS, match=rf"^{kind}: .*{re.escape(str(dtype))}"):
        module(zeros(5, 3, 4, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_message_names_argument_expectation_and_remedy(kind: str) -> None:
    module = build(fastrnn, kind, num_layers=2, bidirectional=True)
    with pytest.raises(RuntimeError) as caught:
        module(zeros(5, 8, 4), hx(module, zeros(1, 8, 6)))
    message = str(caught.value)
    assert message.startswith(f"{kind}: h0 must have shape (L*D, B, H) = (4, 8, 6)"), message
    assert message.endswith("got (1, 8, 6)"), message


CONSTRUCTORS: dict[str, Call] = {
    "hidden_size 0": lambda c: c(4, 0),
    "input_size 0": lambda c: c(0, 4),
    "input_size float": lambda c: c(4.0, 6),
    "hidden_size str": lambda c: c(4, "6"),
    "num_layers 0": lambda c: c(4, 6, num_layers=0),
    "dropout 1.5": lambda c: c(4, 6, 2, dropout=1.5),
    "dropout bool": lambda c: c(4, 6, 2, dropout=True),
    "dropout, one layer": lambda c: c(4, 6, dropout=0.5),
    "bias int": lambda c: c(4, 6, bias=1),
    "batch_first int": lambda c: c(4, 6, batch_first=1),
    "proj_size": lambda c: c(4, 6, proj_size=6 if c.__name__ == "LSTM" else 2),
    "proj_size negative": lambda c: c(4, 6, proj_size=-1),
    "unknown": lambda c: c(4, 6, nonlinear="tanh"),
    "nothing": lambda c: c(),
    "nonlinearity": lambda c: c(4, 6, nonlinearity="sine"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("construct", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_constructor_fails_as_in_torch(kind: str, construct: Call) -> None:
    with pytest.raises(Exception) as reference:  # noqa: PT011 -- its kind is what counts
        construct(getattr(nn, kind))
    with pytest.raises(reference.type):
        construct(getattr(fastrnn, kind))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("where", ["x", "h0", "weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_propagate(cell: str, where: str, value: float) -> None:
    """The same numbers are NaN, and the same are infinite, as in torch."""
    case = Case(cell, 6, 3, 5, 9)
    results = []
    for module in twin(case, torch.float64):
        tensors = case.inputs(torch.float64)
        with torch.no_grad():
            target = tensors[where] if where in tensors else getattr(module, where)
            target.view(-1)[target.numel() // 2] = value
        results.append(run(module, case, tensors))
    for name, reference in results[1].items():
        torch.testing.assert_close(
            results[0][name], reference, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [1e4, 1e30, 1e-30, 1e-42])
def test_extreme_magnitudes(cell: str, value: float) -> None:
    """Saturated gates stay finite; small numbers keep their relative accuracy."""
    case = Case(cell, 4, 3, 5, 9, bias=False)
    tensors = {n: t * value for n, t in case.inputs().items()}
    with torch.no_grad():
        ours, theirs = (call(m, case, tensors) for m in twin(case))
        exact = call(
            twin(case, torch.float64)[1], case, {n: t.double() for n, t in tensors.items()}
        )
    for name, reference in exact.items():
        size = max(largest(reference), torch.finfo(torch.float32).tiny)
        yardstick = error(theirs[name], reference)
        allowed = tolerances.bound("accuracy", torch.float32, yardstick, size)
        assert error(ours[name], reference) <= allowed, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 0, 4), (1, 0, 4)])
def test_empty_batch(kind: str, shape: tuple[int, ...]) -> None:
    """Shapes as in torch, and parameter gradients of zeros."""
    for module in (build(fastrnn, kind, bidirectional=True), build(nn, kind, bidirectional=True)):
        y, states = module(zeros(*shape).requires_grad_())
        assert y.shape == (shape[0], 0, 12)
        assert all(s.shape == (2, 0, 6) for s in (states if kind == "LSTM" else [states]))
        y.sum().backward()
        for parameter in module.parameters():
            assert torch.equal(parameter.grad, torch.zeros_like(parameter))


UNUSUAL: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "expanded features": lambda t: t[..., :1].expand(t.shape),
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "every second": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every second feature": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "slice": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "flipped": lambda t: t.flip(0),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("batch_first", [False, True])
def test_unusual_strides(cell: str, change: Call, batch_first: bool) -> None:
    """A strided input gives what its contiguous copy gives, bit for bit, gradients too."""
    case = Case(cell, 5, 4, 6, 8, batch_first=batch_first)
    module = twin(case)[0]
    strided = {n: change(t) for n, t in case.inputs().items()}
    plain = run(module, case, {n: t.contiguous() for n, t in strided.items()})
    for name, value in run(module, case, strided).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("cell", CELLS)
def test_unusual_weights(cell: str) -> None:
    """Weights may be views with any strides, and may be shared between layers."""
    case = Case(cell, 5, 4, 8, 8, layers=2)
    ours, theirs = twin(case)
    for module in (ours, theirs):
        for name, parameter in list(module.named_parameters()):
            if name.startswith("weight"):
                wide = parameter.detach().t().contiguous()
                setattr(module, name, nn.Parameter(wide.t()))
        module.weight_hh_l1 = module.weight_hh_l0
        module.bias_hh_l1 = module.bias_ih_l1
    for name, value in (mine := run(ours, case)).items():
        torch.testing.assert_close(value, run(theirs, case)[name], msg=name)
    assert "d.weight_hh_l1" not in mine


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode(kind: str) -> None:
    module, x = build(fastrnn, kind), torch.randn(5, 3, 4, requires_grad=True)
    with torch.inference_mode():
        y = module(x)[0]
        made_there = torch.randn(5, 3, 4)
    assert y.is_inference()
    assert not y.requires_grad
    with torch.no_grad():
        assert torch.equal(module(x)[0], y)
        module(made_there)
    for each in (module, build(nn, kind)):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            each(made_there)[0].sum().backward()
