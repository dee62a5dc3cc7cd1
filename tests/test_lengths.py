"""Padded input with lengths, held against a Python loop over single sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from _segments import as_list, gradients, loop, padded_call
from _support import CELLS, Case, assert_bitwise, threads, twin

LENGTHS = [3, 0, 9, 1, 5, 9, 0, 2]


def case_of(cell: str, layers: int = 1, bidirectional: bool = True, first: bool = False) -> Case:
    return Case(cell, 9, 8, 5, 7, layers, bidirectional, batch_first=first)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_equals_a_loop(cell: str, layers: int, batch_first: bool, states: bool) -> None:
    """Outputs and the gradient of every input in float64; padding is NaN."""
    case = Case(cell, 9, 8, 5, 7, layers, True, batch_first=batch_first, states=states)
    ours, reference = twin(case, torch.float64)
    tensors = case.inputs(torch.float64)
    got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, LENGTHS))
    expected = gradients(reference, case, tensors, lambda m, t: loop(m, case, t, LENGTHS))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("isa", fastrnn.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("every", [None, 3])
def test_same_bits_as_alone(cell: str, isa: str, dtype: torch.dtype, every: int | None) -> None:
    """y, h_n and the gradients of x and the states are those of each sequence by itself."""
    from fastrnn import _ops

    before = fastrnn.isa()
    _ops.set_isa(isa)
    try:
        case = case_of(cell)
        ours = twin(case, dtype)[0]
        ours.checkpoint_every = every
        tensors = case.inputs(dtype)
        expected = gradients(ours, case, tensors, lambda m, t: loop(m, case, t, LENGTHS))
        for count in (1, 4):
            with threads(count):
                got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, LENGTHS))
            assert_bitwise(
                got, expected, [n for n in expected if "weight" not in n and "bias" not in n]
            )
    finally:
        _ops.set_isa(before)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
def test_same_bits_on_many_threads() -> None:
    """A problem that is large enough to be shared."""
    case = Case("gru", 40, 12, 24, 72, 1, True)
    lengths = [40, 3, 17, 0, 40, 22, 9, 31, 1, 40, 12, 28]
    ours = twin(case)[0]
    tensors = case.inputs()
    results = []
    for count in (1, 2, 3, 4):
        with threads(count):
            results.append(
                gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, lengths))
            )
    for other in results[1:]:
        assert_bitwise(other, results[0])


@pytest.mark.parametrize("cell", CELLS)
def test_equals_packed(cell: str) -> None:
    """The bits of a PackedSequence of the same sequences, gradients of weights included."""
    case = case_of(cell, 2)
    lengths = [3, 4, 9, 1, 5, 9, 2, 2]
    ours = twin(case)[0]
    tensors = case.inputs()

    def packed(module: Any, t: dict[str, Tensor]) -> list[Tensor]:
        hx = (t["h0"], t["c0"]) if case.is_lstm else t["h0"]
        x = pack_padded_sequence(t["x"], torch.tensor(lengths), enforce_sorted=False)
        y, final = module(x, hx)
        return [pad_packed_sequence(y)[0], *as_list(final)]

    got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, lengths))
    assert_bitwise(got, gradients(ours, case, tensors, packed))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradcheck(kind: str) -> None:
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(2, 3, bidirectional=True).double()
    hx = [torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = list(module.parameters())
    call = getattr(fastrnn.functional, kind.lower())

    def function(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> list[Tensor]:
        states = (h, c) if kind == "LSTM" else h
        y, final = call(x, states, weights, bidirectional=True, lengths=[2, 0, 4])
        return [y, *as_list(final)] + ([] if kind == "LSTM" else [c])

    assert torch.autograd.gradcheck(function, (x, *hx, *weights), check_batched_grad=False)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@pytest.mark.parametrize(
    "lengths", [[2, 4], (2, 4), torch.tensor([2, 4]), torch.tensor([2, 4], dtype=torch.int32)]
)
def test_kinds_of_lengths(lengths: Any) -> None:
    gru, x = fastrnn.GRU(3, 4), torch.randn(4, 2, 3)
    y, h_n = gru(x, lengths=lengths)
    assert torch.equal(y[:2, :1], gru(x[:2, :1])[0])
    assert torch.equal(h_n[:, 1:], gru(x[:, 1:])[1])
    assert not y[2:, 0].any()


@pytest.mark.parametrize("length", [0, 3, 5])
def test_unbatched(length: int) -> None:
    lstm, x = fastrnn.LSTM(3, 4, batch_first=True, bidirectional=True), torch.randn(5, 3)
    hx = (torch.randn(2, 4), torch.randn(2, 4))
    y, (h_n, c_n) = lstm(x, hx, lengths=length)
    if length:
        alone, states = lstm(x[:length], hx)
        assert torch.equal(y[:length], alone)
    else:
        states = hx
    assert torch.equal(h_n, states[0])
    assert torch.equal(c_n, states[1])
    assert not y[length:].any()
    assert y.shape == (5, 8)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("B", [0, 3])
@pytest.mark.parametrize("states", [False, True])
def test_no_steps_at_all(layers: int, B: int, states: bool) -> None:
    """Every length is zero: zero outputs, states as they were, gradients of zero."""
    module = fastrnn.LSTM(3, 4, layers, bidirectional=True)
    x = torch.full((5, B, 3), float("nan"), requires_grad=True)
    hx = [torch.randn(2 * layers, B, 4, requires_grad=True) for _ in range(2)]
    y, final = module(x, tuple(hx) if states else None, lengths=[0] * B)
    assert y.shape == (5, B, 8)
    assert not y.any()
    for end, start in zip(final, hx, strict=True):
        assert torch.equal(end, start if states else torch.zeros_like(start))
    (y.sum() + final[0].sum() * states).backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    if states:
        assert hx[0].grad is not None
        assert bool((hx[0].grad == 1).all())


def test_dropout_between_layers_draws_torchs_numbers() -> None:
    """As padded torch input of full length."""
    reference = nn.GRU(3, 4, 2, dropout=0.5, batch_first=True)
    ours = fastrnn.GRU(3, 4, 2, dropout=0.5, batch_first=True)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(6, 5, 3)
    torch.manual_seed(3)
    expected = reference(x)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(ours(x, lengths=[5] * 6)[0], expected)


@pytest.mark.cpu_engine  # quantized modules
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_quantized(kind: str) -> None:
    module = fastrnn.Quantized(getattr(fastrnn, kind)(5, 7, 2, bidirectional=True))
    x = torch.randn(6, 3, 5)
    x[4:, 1] = float("nan")
    y, final = module(x, lengths=[6, 4, 2])
    for b, length in enumerate([6, 4, 2]):
        alone, last = module(x[:length, b : b + 1])
        assert torch.equal(y[:length, b : b + 1], alone)
        assert not y[length:, b].any()
        for end, one in zip(as_list(final), as_list(last), strict=True):
            assert torch.equal(end[:, b : b + 1], one)


def test_strided_input_and_expanded_gradient() -> None:
    gru = fastrnn.GRU(3, 4, batch_first=True).double()
    wide = torch.randn(5, 6, 7, dtype=torch.float64)
    x = wide.transpose(0, 1)[..., 2:5]
    lengths = [2, 5, 0, 3, 1, 4]
    leaves = [x.detach().requires_grad_(), x.contiguous().requires_grad_()]
    for leaf in leaves:
        gru(leaf, lengths=lengths)[0].sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_lengths(data: st.DataObject) -> None:
    T, B = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    lengths = data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    cell, first = data.draw(st.sampled_from(CELLS)), data.draw(st.booleans())
    case = Case(cell, T, B, 3, data.draw(st.integers(2, 19)), 1, True, batch_first=first)
    ours = twin(case)[0]
    tensors = case.inputs()
    got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, lengths))
    expected = gradients(ours, case, tensors, lambda m, t: loop(m, case, t, lengths))
    assert_bitwise(got, expected, [n for n in expected if "weight" not in n and "bias" not in n])


def freed(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([2, 6], ValueError, r"GRU: lengths must be in \[0, T\] = \[0, 5\], got \[2, 6\]"),
        ([2, -1], ValueError, r"must be in \[0, T\]"),
        ([2], ValueError, r"GRU: lengths must have shape \(B,\) = \(2,\), got \(1,\)"),
        (3, ValueError, r"must have shape \(B,\) = \(2,\), got \(\)"),
        ([2.0, 3.0], TypeError, "GRU: lengths must be ints"),
        (torch.tensor([2.0, 3.0]), TypeError, "must be ints.*got torch.float32 on cpu"),
        (torch.tensor([True, False]), TypeError, "must be ints"),
        (torch.tensor([2, 3], device="meta"), TypeError, "on the CPU, got torch.int64 on meta"),
        ([[2], [3, 4]], TypeError, r"GRU: lengths must be ints.*got \[\[2\], \[3, 4\]\]"),
        (torch.tensor([2, 3]).to_sparse(), TypeError, "GRU: lengths.*torch.sparse_coo"),
        (FakeTensorMode().from_tensor(torch.tensor([2, 3])), TypeError, "lengths.*FakeTensor"),
        (freed(torch.tensor([2, 3])), TypeError, "GRU: lengths.*without its values in memory"),
    ],
)
def test_wrong_lengths(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastrnn.GRU(3, 4)(torch.randn(5, 2, 3), lengths=lengths)


def test_packed_with_lengths() -> None:
    x = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="lengths must be None with a PackedSequence"):
        fastrnn.GRU(3, 4)(x, lengths=[5, 2])
    with pytest.raises(ValueError, match="reset_mask must be None with a PackedSequence"):
        fastrnn.GRU(3, 4)(x, reset_mask=torch.zeros(5, 2, dtype=torch.bool))


@pytest.mark.parametrize("name", ["input", "h0", "c0"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("form", ["lengths", "unbatched", "packed", "dense"])
def test_freed_memory(name: str, layers: int, form: str) -> None:
    """What torch's own operators would read before the engine's gate ends the process."""
    batch = [] if form == "unbatched" else [2]
    x = torch.randn(5, *batch, 3)
    given = {"input": x, "h0": torch.randn(layers, *batch, 4), "c0": torch.randn(layers, *batch, 4)}
    if form == "packed":
        packed = pack_padded_sequence(x, torch.tensor([2, 5]), enforce_sorted=False)
        given["input"] = packed.data
    freed(given[name])
    states, lengths = (given["h0"], given["c0"]), [2, 5] if form == "lengths" else None
    entered = packed._replace(data=given["input"]) if form == "packed" else given["input"]
    for module in (fastrnn.LSTM(3, 4, layers), fastrnn.Quantized(fastrnn.LSTM(3, 4, layers))):
        with pytest.raises(RuntimeError, match=f"LSTM: {name} must have memory"):
            module(entered, states, lengths=lengths)


@pytest.mark.parametrize("form", ["lengths", "unbatched", "dense"])
def test_states_of_other_kinds(form: str) -> None:
    """Sparse and fake states are refused by name, also where torch's operators come first."""
    batch, lengths = [] if form == "unbatched" else [2], [2, 5] if form == "lengths" else None
    x, h0 = torch.randn(5, *batch, 3), torch.randn(2, *batch, 4)
    for module in (fastrnn.GRU(3, 4, 2), fastrnn.Quantized(fastrnn.GRU(3, 4, 2))):
        with pytest.raises(RuntimeError, match="GRU: h0 must be dense"):
            module(x, h0.to_sparse(), lengths=lengths)
        with pytest.raises(TypeError, match="GRU: h0 and input must both be real"):
            module(x, FakeTensorMode().from_tensor(h0), lengths=lengths)
        with pytest.raises((TypeError, AssertionError), match=r"GRU: .* must both be real"):
            module(FakeTensorMode().from_tensor(x), lengths=lengths)


def test_packed_data_that_are_no_tensor() -> None:
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 2]))
    with pytest.raises(TypeError, match=r"GRU: input must be a .*got list"):
        fastrnn.GRU(3, 4)(packed._replace(data=[1.0]))


def test_wrong_state_and_no_steps() -> None:
    with pytest.raises(RuntimeError, match=r"GRU: h0 must have shape \(L\*D, B, H\) = \(1, 2, 4\)"):
        fastrnn.GRU(3, 4)(torch.randn(5, 2, 3), torch.randn(1, 1, 4), lengths=[5, 0])
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        fastrnn.GRU(3, 4)(torch.randn(0, 2, 3), lengths=[0, 0])
