"""8-bit weights: what is rounded and to what, against plain torch; and what users do with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from _support import CELLS, Case, assert_bitwise, call, root_mean_square, states_of

KINDS = ("RNN", "LSTM", "GRU")

# Float32 maths, a few operations of numbers of size 1: some ten times eps.
CLOSE = 1e-5
# A number this close to halfway between two integers may be rounded either way: quotients below
# 128 are known to 1e-5, and what a projection reads to ten times that.
TIE = 1e-3


@contextlib.contextmanager
def isa(name: str) -> Iterator[None]:
    before = fastrnn.isa()
    fastrnn._ops.set_isa(name)
    try:
        yield
    finally:
        fastrnn._ops.set_isa(before)


def quantized(case: Case) -> Any:
    return fastrnn.quantize_dynamic(case.module(fastrnn))


def product(rows: Tensor, unsure: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply rows, rounded to 8 bits, with a quantized matrix.

    ``unsure`` is how far each of the numbers may be off. The second result is how far each of the
    first may be off: a flipped rounding changes it by the row's scale times the weight.
    """
    step = rows.abs().amax(-1, keepdim=True) / 127
    scaled = torch.where(step > 0, rows / step, 0)
    window = TIE + torch.where(step > 0, unsure / step, 0)
    near = ((scaled.frac().abs() - 0.5).abs() <= window).double()
    flips = near * window.clamp(min=1).ceil() * step
    exact = scaled.round() @ weight.double().T * step * scale
    return exact, flips @ (weight.double() * scale[:, None]).abs().T


def check_one_layer(module: Any, case: Case) -> int:
    """Hold every step of a layer to one from the h that it returned itself.

    Rounding what it returned leaves no room for a difference to grow. Returns how many numbers
    were held to nothing but the error of float32 maths.
    """
    tensors = case.inputs()
    found = call(module, case, tensors)
    width, strict = case.output_size, 0
    weights = dict(module.named_buffers())
    lengths = case.lengths().tolist() if case.packed else [case.T] * case.B
    sequences = tensors["x"], found["y"]
    if case.packed:
        packed = case.pack(tensors["x"])
        y = packed._replace(data=found["y"])
        sequences = tensors["x"], nn.utils.rnn.pad_packed_sequence(y)[0]
    for slot in range(case.directions):
        tail = "_l0_reverse" if slot else "_l0"
        w = {n[: -len(tail)]: t for n, t in weights.items() if n.endswith(tail)}
        w = {n: t for n, t in w.items() if not n.endswith("_l0")}
        zeros = torch.zeros(module.weight_ih_l0.shape[0], dtype=torch.float64)
        b_ih, b_hh = (w[n].double() if case.bias else zeros for n in ("bias_ih", "bias_hh"))
        for b, length in enumerate(lengths):
            h, c, c_off = tensors["h0"][slot, b].double(), torch.zeros(1), torch.zeros(1)
            if case.is_lstm:
                c = tensors["c0"][slot, b].double()
            for t in range(length - 1, -1, -1) if slot else range(length):
                x = sequences[0][t, b].double()
                wx, wx_off = product(x, x * 0, w["weight_ih"], w["scale_ih"])
                rh, rh_off = product(h, h * 0, w["weight_hh"], w["scale_hh"])
                wx, rh, off = wx + b_ih, rh + b_hh, wx_off + rh_off
                if case.is_lstm:
                    i, f, g, o = (wx + rh).chunk(4)
                    total = sum(off.chunk(4))
                    c_off = c_off + (2 + c.abs()) * total
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h_next, h_off = o.sigmoid() * c.tanh(), c_off + total
                elif case.kind == "GRU":
                    r, z = (wx + rh)[: 2 * case.H].sigmoid().chunk(2)
                    n = (wx[2 * case.H :] + r * rh[2 * case.H :]).tanh()
                    h_next, h_off = (1 - z) * n + z * h, 3 * sum(off.chunk(3))
                else:
                    h_next, h_off = wx + rh, off
                    h_next = h_next.tanh() if case.cell == "tanh" else h_next.relu()
                if case.cell == "proj":
                    w_hr, scale = w["weight_hr"], w["scale_hr"]
                    through = h_off @ (w_hr.double() * scale[:, None]).abs().T
                    h_next, h_off = product(h_next, h_off, w_hr, scale)
                    h_off = h_off + through
                h = sequences[1][t, b, slot * width : (slot + 1) * width].double()
                error = (h - h_next).abs()
                assert (error <= CLOSE * (1 + h.abs()) + h_off).all(), error.max()
                strict += int((h_off == 0).sum())
            assert torch.equal(found["h_n"][slot, b].double(), h)
            if case.is_lstm:
                error = (found["c_n"][slot, b].double() - c).abs()
                assert (error <= CLOSE * (1 + c.abs()) + c_off).all()
    return strict


REFERENCE_CASES = [
    Case(cell, T, B, I, H, bidirectional=two, bias=bias, layout=layout, seed=I)
    for cell in CELLS
    for T, B, I, H, two, bias, layout in (
        (5, 3, 4, 6, False, True, "dense"),
        (4, 5, 17, 33, True, False, "dense"),
        (6, 4, 7, 18, True, True, "unsorted"),
        (3, 1, 70, 67, False, True, "packed"),
        (1, 9, 1, 2, True, True, "dense"),
        # In AMX's tiles two tiles of rows at a time; of 271 rows the last one is left empty.
        (1, 40, 70, 20, False, True, "dense"),
        (1, 271, 34, 33, True, True, "dense"),
    )
]


@pytest.mark.core
@pytest.mark.parametrize("case", REFERENCE_CASES, ids=str)
def test_against_plain_torch(case: Case) -> None:
    module = quantized(case)
    strict = check_one_layer(module, case)
    assert strict > 0.6 * call(module, case, case.inputs())["y"].numel()


@pytest.mark.parametrize("name", fastrnn.available_isas())
@pytest.mark.parametrize("cell", CELLS)
def test_every_isa(cell: str, name: str) -> None:
    """Each holds the reference, and one step of equal operands differs by rounding alone."""
    case = Case(cell, 1, 13, 37, 35, bidirectional=True)
    long = Case(cell, 5, 3, 37, 35, bidirectional=True)
    module = quantized(case)
    expected = call(module, case, case.inputs())
    with isa(name):
        assert fastrnn.isa() == name
        check_one_layer(module, long)
        if cell != "proj":  # whose second product may round what the first made
            found = call(module, case, case.inputs())
            for key, value in found.items():
                torch.testing.assert_close(value, expected[key], rtol=CLOSE, atol=CLOSE)
    assert_bitwise(call(module, case, case.inputs()), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_rounded_by_row(cell: str) -> None:
    case = Case(cell, I=9, H=14, layers=2, bidirectional=True)
    source = case.module(fastrnn)
    module = fastrnn.quantize_dynamic(source)
    for name, weight in source.named_parameters():
        if "bias" in name:
            assert torch.equal(getattr(module, name), weight)
            continue
        numbers, scale = getattr(module, name), getattr(module, f"scale_{name[7:]}")
        assert (numbers.dtype, scale.dtype) == (torch.int8, torch.float32)
        assert torch.equal(scale, weight.abs().amax(1) / 127)
        assert numbers.abs().amax(1).eq(127).all()
        error = (weight.double() - numbers.double() * scale.double()[:, None]).abs()
        assert (error <= 0.50001 * scale[:, None]).all()


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [32, 129])
def test_accuracy(cell: str, hidden: int) -> None:
    case = Case(cell, 20, 8, 40, hidden, 2, True)
    module = case.module(fastrnn)
    found = call(fastrnn.quantize_dynamic(module), case, case.inputs())
    with torch.no_grad():
        expected = call(module, case, case.inputs())
    for name, value in expected.items():
        error = root_mean_square(found[name] - value) / root_mean_square(value)
        assert 0 < error < 0.02, f"{name}: {error:.4f}"


ALL = {"layers": 3, "bidirectional": True, "batch_first": True, "bias": False}


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "packed", "unsorted", "unbatched"])
@pytest.mark.parametrize("states", [True, False], ids=["states", "nostates"])
def test_layers_one_on_the_other(cell: str, layout: str, states: bool) -> None:
    """A stack is bitwise its layers called one by one, whatever the kind of input."""
    batch = 1 if layout == "unbatched" else 4
    case = Case(cell, 6, batch, 5, 18, **ALL, layout=layout, states=states)
    module, tensors = quantized(case), case.inputs()
    found = call(module, case, tensors)
    plain = replace(case, layers=1, batch_first=False, states=True, layout="dense")
    if case.packed:
        plain = replace(plain, layout=layout)
        x: Any = case.pack(tensors["x"])
    elif layout == "unbatched":
        x = tensors["x"][:, None]
    else:
        x = tensors["x"].transpose(0, 1)
    for index in range(3):
        single = quantized(replace(plain, I=case.I if index == 0 else 2 * case.output_size))
        own = {n.replace(f"_l{index}", "_l0"): t for n, t in module.state_dict().items()}
        single.load_state_dict({n: own[n] for n in single.state_dict()})
        parts = {
            n: t.reshape(6, batch, -1)[2 * index : 2 * index + 2]
            for n, t in tensors.items()
            if n != "x"
        }
        x, final = single(x, states_of(plain, {"x": tensors["x"], **parts}))
        finals = final if case.is_lstm else (final,)
        for name, part in zip(("h_n", "c_n"), finals, strict=False):
            whole = found[name].reshape(6, batch, -1)[2 * index : 2 * index + 2]
            assert torch.equal(whole, part)
    if case.packed:
        assert torch.equal(found["y"], x.data)
    else:
        y = found["y"][:, None] if layout == "unbatched" else found["y"].transpose(0, 1)
        assert torch.equal(y, x)


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
@pytest.mark.parametrize("shape", [(9, 40, 7, 20), (6, 2, 30, 151), (20, 1, 9, 300)], ids=str)
def test_thread_count(cell: str, layout: str, shape: tuple[int, ...]) -> None:
    case = Case(cell, *shape, bidirectional=True, layout=layout)
    module, tensors = quantized(case), case.inputs()
    torch.set_num_threads(1)
    expected = call(module, case, tensors)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        assert_bitwise(call(module, case, tensors), expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(2, 9, 37), (33, 9, 37), (300, 9, 37), (33, 530, 525)], ids=str)
def test_batch_companions(cell: str, sizes: tuple[int, int, int]) -> None:
    """Each sequence has scales of its own, so its neighbours do not matter."""
    batch, inputs, hidden = sizes
    case = Case(cell, 7, batch, inputs, hidden, 2, True)
    module, tensors = quantized(case), case.inputs()
    tensors["x"][:, 0] *= 100
    whole = call(module, case, tensors)
    for first, count in ((0, 1), (batch - 1, 1), (1, batch - 1)):
        rows = slice(first, first + count)
        part = call(module, case, {n: t[:, rows] for n, t in tensors.items()})
        assert_bitwise(part, {n: t[:, rows] for n, t in whole.items()})


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 5), (2, 1, 7, 33), (3, 5, 16, 64)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_stream(cell: str, sizes: tuple[int, ...], bias: bool) -> None:
    layers, batch, inputs, hidden = sizes
    case = Case(cell, 9, batch, inputs, hidden, layers, bias=bias, states=False)
    module, x = quantized(case), case.inputs()["x"]
    expected = call(module, case, {"x": x})
    stream, second = module.stream(batch), module.stream(batch)
    steps = [stream.step(row) for row in x[:4]]
    second.state = stream.state
    steps += [second.step(row) for row in x[4:]]
    assert torch.equal(torch.stack(steps), expected["y"])
    final = second.state if case.is_lstm else (second.state,)
    for name, state in zip(("h_n", "c_n"), final, strict=False):
        assert state.dtype == torch.float32
        assert torch.equal(state, expected[name])
    stream.reset()
    module.refresh(replace(case, seed=3).module(fastrnn))
    assert torch.equal(stream.step(x[0]), expected["y"][0])
    stream.refresh()
    stream.reset()
    assert torch.equal(stream.step(x[0]), module(x)[0][0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tiny", [0.0, 1e-42, 1e-37])
def test_rows_of_zeros(cell: str, tiny: float) -> None:
    """Rows without a largest number, of weights and of operands, add nothing."""
    case = Case(cell, 5, 3, 7, 18)
    source = case.module(fastrnn)
    with torch.no_grad():
        source.weight_ih_l0[3] = tiny
        source.weight_hh_l0[5] = tiny
        source.weight_hh_l0[6, 1:] = 0
    module = fastrnn.quantize_dynamic(source)
    check_one_layer(module, case)
    tensors = case.inputs()
    tensors["x"][2] = tiny
    tensors["x"][:, 1] = 0
    zeros = {n: t if n == "x" else torch.zeros_like(t) for n, t in tensors.items()}
    for given in (tensors, zeros):
        found = call(module, case, given)
        with torch.no_grad():
            expected = call(source, case, given)
        torch.testing.assert_close(found["y"], expected["y"], rtol=0, atol=0.05)
    if case.kind == "RNN":
        plain = quantized(replace(case, bias=False))
        nothing = {n: torch.zeros_like(t) for n, t in tensors.items()}
        assert not call(plain, replace(case, bias=False), nothing)["y"].any()


@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 6, 16, 20])
@pytest.mark.parametrize("batch", [5, 40])
def test_bad_numbers_stay_in_their_sequence(cell: str, bad: float, place: int, batch: int) -> None:
    """A row with one has no scale: it is NaN from there on, its neighbours are as they were."""
    case = Case(cell, 6, batch, 21, 19)
    module, tensors = quantized(case), case.inputs()
    expected = call(module, case, tensors)["y"]
    tensors["x"][2, 3, place] = bad
    found = call(module, case, tensors)["y"]
    others = [b for b in range(batch) if b != 3]
    assert torch.equal(found[:, others], expected[:, others])
    assert torch.equal(found[:2], expected[:2])
    assert found[2:, 3].isnan().all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_and_states_show(cell: str, bad: float) -> None:
    case = Case(cell, 4, 3, 5, 9)
    source = case.module(fastrnn)
    with torch.no_grad():
        source.weight_ih_l0[2, 1] = bad
    assert call(fastrnn.quantize_dynamic(source), case, case.inputs())["y"].isnan().any()
    tensors = case.inputs()
    tensors["h0"][0, 1, 2] = bad
    found = call(quantized(case), case, tensors)["y"]
    assert found[:, 1].isnan().all()
    assert not found[:, [0, 2]].isnan().any()


def test_rows_apart() -> None:
    module = fastrnn.quantize_dynamic(fastrnn.LSTM(5, 9))
    x = torch.randn(6, 3, 5)
    wide = torch.full((6, 3, 11), float("nan"))
    wide[..., 3:8] = x
    flipped = x.transpose(0, 2).contiguous().transpose(0, 2)
    for same in (wide[..., 3:8], flipped):
        assert torch.equal(module(same)[0], module(x)[0])
