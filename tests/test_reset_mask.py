"""Resets within sequences, held against a Python loop over segments and over steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastrnn
from _segments import as_list, gradients, loop, padded_call
from _support import CELLS, Case, assert_bitwise, threads, twin

LENGTHS = [3, 0, 9, 1, 5, 9, 0, 2]


def random_mask(T: int, B: int, share: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(T, B, generator=generator) < share


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [9] * 8])
def test_equals_a_loop(
    cell: str, layers: int, batch_first: bool, states: bool, lengths: list[int]
) -> None:
    """Outputs and the gradient of every input in float64; padding is NaN."""
    case = Case(cell, 9, 8, 5, 7, layers, True, batch_first=batch_first, states=states)
    ours, reference = twin(case, torch.float64)
    tensors, mask = case.inputs(torch.float64), random_mask(9, 8)
    assert mask[0, 0] != mask[0, 2]
    assert mask[:, 2].sum() > 1
    got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, lengths, mask))
    expected = gradients(reference, case, tensors, lambda m, t: loop(m, case, t, lengths, mask))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_a_loop_over_steps(kind: str, reverse: bool) -> None:
    """The definition: the state is set to zero where a direction passes a reset."""
    torch.manual_seed(1)
    T, B, H = 12, 5, 6
    module = getattr(fastrnn, kind[:-4])(3, H, bidirectional=True).double()
    cell = getattr(torch.nn, kind)(3, H).double()
    tail = "_l0_reverse" if reverse else "_l0"
    cell.load_state_dict({n: getattr(module, n + tail) for n, _ in cell.named_parameters()})
    x, mask = torch.randn(T, B, 3).double(), random_mask(T, B)
    states = [torch.randn(2, B, H).double() for _ in range(2 if kind == "LSTMCell" else 1)]
    y, final = module(x, tuple(states) if len(states) == 2 else states[0], reset_mask=mask)
    now = [s[int(reverse)] for s in states]
    for t in reversed(range(T)) if reverse else range(T):
        if not reverse:
            now = [s.masked_fill(mask[t].unsqueeze(1), 0) for s in now]
        elif t + 1 < T:
            now = [s.masked_fill(mask[t + 1].unsqueeze(1), 0) for s in now]
        now = as_list(cell(x[t], tuple(now) if len(now) == 2 else now[0]))
        own = slice(H, None) if reverse else slice(0, H)
        torch.testing.assert_close(y[t, :, own], now[0], rtol=1e-10, atol=1e-12)
    for end, state in zip(as_list(final), now, strict=True):
        torch.testing.assert_close(end[int(reverse)], state, rtol=1e-10, atol=1e-12)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("isa", fastrnn.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("every", [None, 2])
def test_same_bits_as_segments_alone(
    cell: str, isa: str, dtype: torch.dtype, every: int | None
) -> None:
    from fastrnn import _ops

    before = fastrnn.isa()
    _ops.set_isa(isa)
    try:
        case = Case(cell, 9, 8, 5, 7, 1, True)
        ours = twin(case, dtype)[0]
        ours.checkpoint_every = every
        tensors, mask = case.inputs(dtype), random_mask(9, 8)
        expected = gradients(ours, case, tensors, lambda m, t: loop(m, case, t, LENGTHS, mask))
        for count in (1, 4):
            with threads(count):
                got = gradients(
                    ours, case, tensors, lambda m, t: padded_call(m, case, t, LENGTHS, mask)
                )
            names = [n for n in expected if "weight" not in n and "bias" not in n]
            assert_bitwise(got, expected, names)
    finally:
        _ops.set_isa(before)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@pytest.mark.parametrize("cell", CELLS)
def test_no_resets_are_the_dense_call(cell: str) -> None:
    case = Case(cell, 9, 8, 5, 7, 2, True)
    ours = twin(case)[0]
    tensors = case.inputs()
    nowhere = torch.zeros(9, 8, dtype=torch.bool)
    got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, [9] * 8, nowhere))

    def dense(module: Any, t: dict[str, Tensor]) -> list[Tensor]:
        y, final = module(t["x"], (t["h0"], t["c0"]) if case.is_lstm else t["h0"])
        return [y, *as_list(final)]

    assert_bitwise(got, gradients(ours, case, tensors, dense))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradcheck(kind: str) -> None:
    torch.manual_seed(0)
    hx = [torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = list(getattr(fastrnn, kind)(2, 3, bidirectional=True).double().parameters())
    call = getattr(fastrnn.functional, kind.lower())
    mask = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)

    def function(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> list[Tensor]:
        states = (h, c) if kind == "LSTM" else h
        y, final = call(x, states, weights, bidirectional=True, lengths=[4, 2, 3], reset_mask=mask)
        return [y, *as_list(final)] + ([] if kind == "LSTM" else [c])

    assert torch.autograd.gradcheck(function, (x, *hx, *weights), check_batched_grad=False)


def test_poison_stays_in_its_segment() -> None:
    """A state or an input that is NaN is not seen beyond a reset, nor is its gradient."""
    module = fastrnn.LSTM(3, 4)
    x = torch.randn(6, 2, 3)
    x[1, 0] = float("nan")
    hx = (torch.full((1, 2, 4), float("nan")), torch.full((1, 2, 4), float("nan")))
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[3, 0] = mask[0, 1] = True
    x.requires_grad_()
    y, (h_n, c_n) = module(x, hx, reset_mask=mask)
    assert not y[3:, 0].isnan().any()
    assert not y[:, 1].isnan().any()
    assert not h_n.isnan().any()
    assert not c_n.isnan().any()
    y[3:, 0].sum().backward()
    assert x.grad is not None
    assert not x.grad[3:, 0].isnan().any()
    assert not x.grad[:, 1].any()


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
def test_unbatched() -> None:
    gru, x = fastrnn.GRU(3, 4, batch_first=True, bidirectional=True), torch.randn(6, 3)
    mask = torch.tensor([False, False, True, False, True, False])
    y, h_n = gru(x, reset_mask=mask)
    batched, ends = gru(x.unsqueeze(0), reset_mask=mask.unsqueeze(0))
    assert torch.equal(y, batched[0])
    assert torch.equal(h_n, ends[:, 0])
    assert torch.equal(y[2:4], gru(x[2:4])[0])


@pytest.mark.cpu_engine  # quantized modules
def test_quantized() -> None:
    module = fastrnn.Quantized(fastrnn.GRU(5, 7, bidirectional=True))
    x, mask = torch.randn(6, 2, 5), random_mask(6, 2, 0.0)
    mask[4, 1] = True
    y, h_n = module(x, reset_mask=mask)
    assert torch.equal(y[4:, 1:], module(x[4:, 1:])[0])
    assert torch.equal(h_n[:1, 1:], module(x[4:, 1:])[1][:1])
    assert torch.equal(h_n[1:, 1:], module(x[:4, 1:])[1][1:])


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mask(data: st.DataObject) -> None:
    T, B = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 6))
    lengths = data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    flags = data.draw(st.lists(st.booleans(), min_size=T * B, max_size=T * B))
    mask = torch.tensor(flags).view(T, B)
    cell, first = data.draw(st.sampled_from(CELLS)), data.draw(st.booleans())
    case = Case(cell, T, B, 3, data.draw(st.integers(2, 19)), 1, True, batch_first=first)
    ours = twin(case)[0]
    tensors = case.inputs()
    got = gradients(ours, case, tensors, lambda m, t: padded_call(m, case, t, lengths, mask))
    expected = gradients(ours, case, tensors, lambda m, t: loop(m, case, t, lengths, mask))
    assert_bitwise(got, expected, [n for n in expected if "weight" not in n and "bias" not in n])


def freed(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(2, 5, dtype=torch.bool), ValueError, r"reset_mask must have shape \(T, B\)"),
        (torch.zeros(5, 2), TypeError, "GRU: reset_mask must be a torch.bool tensor on the CPU"),
        ([[True, False]], TypeError, "got list"),
        (torch.zeros(5, 2, dtype=torch.bool, device="meta"), TypeError, "got torch.bool on meta"),
        (torch.ones(5, 2, dtype=torch.bool).to_sparse(), TypeError, "GRU: reset_mask.*sparse_coo"),
        (freed(torch.ones(5, 2, dtype=torch.bool)), TypeError, "reset_mask.*without its values"),
    ],
)
def test_wrong_mask(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastrnn.GRU(3, 4)(torch.randn(5, 2, 3), reset_mask=mask)
    if isinstance(mask, Tensor) and mask.shape == (2, 5) and mask.is_cpu:
        with pytest.raises(ValueError, match=r"\(B, T\) = \(5, 2\), got \(2, 5\)"):
            fastrnn.GRU(3, 4, batch_first=True)(torch.randn(5, 2, 3), reset_mask=mask)
