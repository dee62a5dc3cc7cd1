"""torch.autocast: the dtypes of torch.nn, values close to float32, gradients where they belong."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from _support import Case, call, twin
from fastrnn import _autocast

LOW = (torch.bfloat16, torch.float16)
NUMBERS = (torch.float32, torch.bfloat16, torch.float16)
CELLS = ("tanh", "lstm", "proj", "gru")
STEPS = ("RNNCell", "LSTMCell", "GRUCell")


def skip_where_torch_differs(lstm: bool) -> None:
    """What torch's LSTM answers depends on the processor; what fastrnn's does, does not."""
    if lstm and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 here, without which torch's LSTM has other rules")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """More make torch no faster at these sizes, and on a busy machine far slower."""
    torch.set_num_threads(1)


def name(value: Any) -> str:
    return str(value).removeprefix("torch.")


def dtypes(value: Any) -> Any:
    """Return the dtypes in a result."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return value.data.dtype
    return [dtypes(item) for item in value]


def attempt(function: Any, *args: Any) -> Any:
    """Return the dtypes of a result, ``None`` if this is an error."""
    try:
        return dtypes(function(*args))
    except RuntimeError:
        return None


@pytest.mark.parametrize("low", LOW, ids=name)
@pytest.mark.parametrize("weights", NUMBERS, ids=name)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_dtypes_are_torchs(cell: str, layers: int, weights: torch.dtype, low: torch.dtype) -> None:
    """For every dtype of input and states, padded and packed, wherever torch has an answer."""
    case = Case(cell, layers=layers, bidirectional=layers > 1)
    ours, theirs = twin(case, weights)
    tensors = case.inputs()
    compared = 0
    same_rules = cell != "lstm" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for x, states, packed in itertools.product(NUMBERS, (None, *NUMBERS), (False, True)):
        input = tensors["x"].to(x)
        hx: Any = None
        if states is not None:
            hx = tensors["h0"].to(states)
            hx = (hx, tensors["c0"].to(states)) if case.is_lstm else hx
        data = nn.utils.rnn.pack_padded_sequence(input, [5, 4, 2]) if packed else input
        with torch.autocast("cpu", dtype=low):
            expected = attempt(theirs, data, hx)
            actual = attempt(ours, data, hx)
            with fastrnn.accelerate():
                assert attempt(theirs, data, hx) == actual
        assert actual is not None
        if expected is not None and same_rules:
            assert actual == expected, (x, states, packed)
            compared += 1
    skip_where_torch_differs(cell == "lstm")
    assert compared >= 4


@pytest.mark.parametrize("low", LOW, ids=name)
@pytest.mark.parametrize("weights", NUMBERS, ids=name)
@pytest.mark.parametrize("kind", STEPS)
def test_dtypes_of_a_step_are_torchs(kind: str, weights: torch.dtype, low: torch.dtype) -> None:
    theirs = getattr(nn, kind)(4, 6, dtype=weights)
    ours = getattr(fastrnn, kind)(4, 6, dtype=weights)
    for x, states in itertools.product(NUMBERS, (None, *NUMBERS)):
        input = torch.zeros(3, 4, dtype=x)
        h = None if states is None else torch.zeros(3, 6, dtype=states)
        hx = (h, h) if kind == "LSTMCell" and h is not None else h
        with torch.autocast("cpu", dtype=low):
            expected = dtypes(theirs(input, hx))
            actual = ours(input, hx)
            with fastrnn.accelerate(strict=True):
                assert dtypes(theirs(input, hx)) == dtypes(actual)
        assert dtypes(actual if isinstance(expected, torch.dtype) else list(actual)) == expected


@pytest.mark.parametrize("cell", CELLS)
def test_float64_is_left_alone(cell: str) -> None:
    case = Case(cell, layers=2)
    module = twin(case, torch.float64)[0]
    tensors = case.inputs(torch.float64)
    expected = call(module, case, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for key, value in call(module, case, tensors).items():
            assert torch.equal(value, expected[key])
        with pytest.raises((RuntimeError, ValueError), match="dtype"):
            call(module, case, case.inputs(torch.float32))


@pytest.mark.parametrize("low", LOW, ids=name)
@pytest.mark.parametrize("layout", ["dense", "unbatched", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell: str, layout: str, low: torch.dtype) -> None:
    """What is computed is the module in the low dtype; gradients have the parameters' dtype."""
    case = Case(cell, layers=2, bidirectional=True, layout=layout)
    module = twin(case)[0]
    half = twin(case)[0].to(low)
    tensors = {k: v.requires_grad_() for k, v in case.inputs().items()}
    with torch.autocast("cpu", dtype=low):
        outputs = call(module, case, tensors)
        loss = sum(t.float().square().sum() for t in outputs.values())
    loss.backward()
    lows = {k: v.detach().to(low).requires_grad_() for k, v in tensors.items()}
    expected = call(half, case, lows)
    sum(t.float().square().sum() for t in expected.values()).backward()
    for key, value in outputs.items():
        assert torch.equal(value, expected[key].to(value.dtype)), key
    for ours, reference in zip(module.parameters(), half.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torch.float32
        assert torch.equal(ours.grad, reference.grad.float())
    for key, value in tensors.items():
        assert value.grad.dtype == torch.float32
        assert torch.equal(value.grad, lows[key].grad.float()), key


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_close_to_torchs_autocast(kind: str) -> None:
    """Not farther from float32 than torch under the same autocast, by more than a half."""
    skip_where_torch_differs(kind == "LSTM")
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(32, 48)
    ours = getattr(fastrnn, kind)(32, 48)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(20, 16, 32)
    exact = theirs(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [(module(x)[0] - exact).square().mean().sqrt() for module in (ours, theirs)]
    assert 0 < errors[0] <= 1.5 * errors[1]


def test_casts_do_not_leak() -> None:
    """Nothing cast is kept: not the tensors, and not their values when weights change."""
    module, x = fastrnn.LSTM(4, 6), torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            first = module(x)[0]
            module.weight_hh_l0.mul_(2)  # torch's own cache of casts would not see it
            second = module(x)[0]
        assert not torch.equal(first, second)
        module(x)[0].sum().backward()
        with torch.no_grad():
            assert torch.equal(module(x)[0], second)
    gc.collect()
    low = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.dtype is torch.bfloat16]
    assert {id(t) for t in low} <= {id(first), id(second)}
    assert module(x)[0].dtype == torch.float32
    for parameter in module.parameters():
        assert parameter.dtype == torch.float32


def test_nested_and_disabled() -> None:
    module, x = fastrnn.RNN(4, 6), torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x)[0].dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert module(x)[0].dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.float16):
            assert module(x)[0].dtype == torch.float16
        assert module(x)[0].dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_between_other_layers() -> None:
    """The output of a linear layer, in the low dtype, goes in; a linear layer takes what comes."""
    model = nn.Sequential(nn.Linear(4, 5), fastrnn.GRU(5, 6))
    head = nn.Linear(6, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = head(model(torch.randn(7, 3, 4))[0])
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.cpu_engine  # quantized modules
def test_functional_and_quantized() -> None:
    module, x = nn.LSTM(4, 6), torch.randn(5, 3, 4)
    weights = [p.detach() for p in module.parameters()]
    small = fastrnn.quantize_dynamic(module)
    expected = small(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastrnn.functional.lstm(x, None, weights)[0].dtype == torch.bfloat16
        assert torch.equal(small(x)[0], expected)
        assert small(x.bfloat16())[0].dtype == torch.float32


def test_wrong_arguments_are_errors_as_ever() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(TypeError, match="hx"):
            fastrnn.GRU(4, 6)(torch.zeros(5, 3, 4), "state")
        with pytest.raises(TypeError, match="input"):
            fastrnn.GRU(4, 6)("input")
        with pytest.raises(RuntimeError, match="pair"):
            fastrnn.LSTM(4, 6)(torch.zeros(5, 3, 4), torch.zeros(1, 3, 6))


class OnCuda(torch.Tensor):
    """Says that it is on CUDA, for the rule that needs no more than that."""

    is_cpu = False
    is_cuda = True


def test_rule_for_cuda() -> None:
    """There torch casts all recurrent functions, so results have autocast's dtype."""
    x = torch.zeros(5, 3, 4).as_subclass(OnCuda)
    assert not _autocast.applies(x)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        assert _autocast.applies(x)
        assert not _autocast.applies(torch.zeros(1))
    finally:
        torch.set_autocast_enabled("cuda", before)
    for module in (fastrnn.LSTM(4, 6, proj_size=2), fastrnn.GRU(4, 6), fastrnn.RNN(4, 6)):
        layer = module._stack().time_major[0]
        for packed in (False, True):
            results = _autocast.result_dtypes(layer, x, None, torch.float16, packed)
            assert results == (torch.float16,) * 3


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_grad_scaler(kind: str) -> None:
    """A step that overflows is left out and the scale falls; the others train."""
    torch.manual_seed(0)
    model = getattr(fastrnn, kind)(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    x, losses, skipped = torch.randn(5, 3, 4), [], 0
    for _ in range(30):
        before = model.weight_hh_l0.detach().clone()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = (model(x)[0].float() - 0.5).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        finite = all(p.grad.isfinite().all() for p in model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        skipped += torch.equal(model.weight_hh_l0, before)
        assert finite is not torch.equal(model.weight_hh_l0, before)
        losses.append(loss.item())
    assert 0 < skipped < 25
    assert scaler.get_scale() < 2.0**30
    assert losses[-1] < losses[0]
