"""bfloat16 and float16: close to torch.nn, and as exact in what they promise as float32 is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
import tolerances
from _support import (
    CELLS,
    NORMS,
    Case,
    Tensors,
    assert_bitwise,
    call,
    run,
    threads,
    twin,
)

REDUCED = (torch.bfloat16, torch.float16)
STEPS = ("RNNCell", "LSTMCell", "GRUCell")


def both(test: object) -> object:
    return pytest.mark.parametrize("dtype", REDUCED, ids=("bfloat16", "float16"))(test)


def differentiate(
    module: Any, case: Case, tensors: Mapping[str, Tensor], upstream: Mapping[str, Tensor]
) -> Tensors:
    """Return outputs and every gradient, from given gradients of the outputs."""
    parameters = dict(module.named_parameters())
    dtype = next(iter(parameters.values())).dtype
    leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items()}
    outputs = call(module, case, leaves)
    sources = leaves | parameters
    gradients = torch.autograd.grad(
        list(outputs.values()),
        list(sources.values()),
        [upstream[n].to(dtype) for n in outputs],
    )
    found = {n: t.detach() for n, t in outputs.items()}
    return found | {f"d.{n}": g for n, g in zip(sources, gradients, strict=True)}


def draw_upstream(module: Any, case: Case, tensors: Mapping[str, Tensor]) -> Tensors:
    with torch.no_grad():
        outputs = call(module, case, tensors)
    torch.manual_seed(case.seed + 2)
    return {n: torch.randn(t.shape).to(t.dtype) for n, t in outputs.items()}


def assert_close(actual: Tensors, theirs: Tensors | None, exact: Tensors, moved: Tensors) -> None:
    """Hold results to the contract; where torch cannot do a case only the floor is left."""
    assert actual.keys() == exact.keys()
    for name, true in exact.items():
        dtype = actual[name].dtype
        assert dtype in REDUCED, name
        assert actual[name].shape == true.shape, name
        for kind, norm in NORMS.items():
            yardstick = norm(theirs[name].double() - true) if theirs else 0.0
            scale = max(norm(true), norm(moved[name] - true) * 2 / tolerances.eps(dtype))
            allowed = tolerances.bound(kind, dtype, yardstick, scale, true.numel())
            found = norm(actual[name].double() - true)
            assert found <= allowed, (
                f"{name}: {kind} error {found:.3g}, allowed {allowed:.3g}, torch's {yardstick:.3g}"
            )


def nudge(numbers: Any, dtype: torch.dtype) -> None:
    """Move numbers by half an eps, up or down."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in numbers:
            signs = torch.randint(0, 2, tensor.shape, generator=generator).mul(2).sub(1)
            tensor *= 1 + tolerances.eps(dtype) / 2 * signs


def assert_matches_torch(case: Case, dtype: torch.dtype) -> None:
    ours, theirs = twin(case, dtype)
    tensors = case.inputs(dtype)
    upstream = draw_upstream(ours, case, tensors)
    with threads(1):
        try:
            reference = differentiate(theirs, case, tensors, upstream)
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented" not in str(error):
                raise
            reference = None
        wide = case.module(nn, dtype).double()
        tensors = {n: t.double() for n, t in tensors.items()}
        exact = differentiate(wide, case, tensors, upstream)
        nudge([*tensors.values(), *wide.parameters()], dtype)
        moved = differentiate(wide, case, tensors, upstream)
    found = differentiate(ours, case, case.inputs(dtype), upstream)
    assert_close(found, reference, exact, moved)


# T, B, I, H: around the widths of vectors and of pairs of 16-bit numbers, one of each alone, more
# rows than one partial sum of the weight gradient (256), an empty batch.
SHAPES = (
    (1, 1, 1, 1),
    (3, 1, 2, 2),
    (5, 2, 3, 3),
    (7, 5, 5, 5),
    (5, 4, 8, 8),
    (4, 7, 17, 15),
    (5, 33, 16, 16),
    (3, 5, 15, 17),
    (11, 6, 31, 31),
    (2, 13, 33, 32),
    (2, 3, 70, 67),
    (1, 300, 3, 5),
    (43, 7, 5, 12),
    (100, 1, 3, 6),
    (5, 0, 4, 6),
    (1, 0, 1, 1),
)
SHAPE_CASES = [
    Case(cell, *shape, bidirectional=two, seed=sum(shape))
    for cell, (shape, two) in itertools.product(
        CELLS, zip(SHAPES, itertools.cycle((False, True)), strict=False)
    )
    if not (cell == "proj" and shape[3] == 1)
]
OPTION_CASES = [
    Case(cell, 6, 1 if layout == "unbatched" else 5, 5, 7, layers, two, bias, first, layout=layout)
    for cell, layout, (layers, two, bias, first) in itertools.product(
        CELLS,
        ("dense", "unbatched", "packed", "unsorted"),
        ((1, True, False, True), (2, False, True, True), (3, True, True, False)),
    )
]


@both
@pytest.mark.core
@pytest.mark.parametrize("case", SHAPE_CASES, ids=str)
def test_shapes(case: Case, dtype: torch.dtype) -> None:
    assert_matches_torch(case, dtype)


@both
@pytest.mark.parametrize("case", OPTION_CASES, ids=str)
def test_options(case: Case, dtype: torch.dtype) -> None:
    assert_matches_torch(case, dtype)


@both
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
def test_states_default_to_zero(cell: str, layout: str, dtype: torch.dtype) -> None:
    assert_matches_torch(Case(cell, 7, 5, 4, 9, 2, True, states=False, layout=layout), dtype)


@both
@pytest.mark.core
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("sizes", [(3, 5, 7), (1, 1, 1), (4, 16, 32), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_steps_are_sequences_of_one(
    kind: str, sizes: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    batch, inputs, hidden = sizes
    cell = getattr(fastrnn, kind)(inputs, hidden, bias).to(dtype)
    layer = getattr(fastrnn, kind[:-4])(inputs, hidden, bias=bias).to(dtype)
    layer.load_state_dict({f"{n}_l0": t for n, t in cell.state_dict().items()})
    x = torch.randn(batch, inputs).to(dtype).requires_grad_()
    states = [torch.randn(batch, hidden).to(dtype) for _ in range(1 + (kind == "LSTMCell"))]
    mine = cell(x, tuple(states) if len(states) > 1 else states[0])
    theirs = layer(x[None], tuple(s[None] for s in states) if len(states) > 1 else states[0][None])
    mine = mine if isinstance(mine, tuple) else (mine,)
    final = theirs[1] if isinstance(theirs[1], tuple) else (theirs[1],)
    for a, b in zip(mine, final, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b[0])
    results = [
        torch.autograd.grad(sum(t.sum() for t in outputs), [x, *module.parameters()])
        for outputs, module in ((mine, cell), (final, layer))
    ]
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
    if batch:
        alone = cell(x[0], tuple(s[0] for s in states) if len(states) > 1 else states[0][0])
        assert torch.equal(alone[0] if isinstance(alone, tuple) else alone, mine[0][0])


def emulate(module: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return y and the last c of one layer in float64, with h rounded to ``dtype`` at each step."""
    w_ih, w_hh, b_ih, b_hh = (p.detach().double() for p in module.parameters())
    h = x.new_zeros(x.shape[1], w_hh.shape[1]).double()
    c = x.new_zeros(x.shape[1], module.hidden_size).double()
    outputs = []
    for row in x.double():
        wx, rh = row @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if module.mode == "LSTM":
            i, f, g, o = (wx + rh).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif module.mode == "GRU":
            (r, z), n = (wx + rh).chunk(3, -1)[:2], wx.chunk(3, -1)[2]
            z, n = z.sigmoid(), (n + r.sigmoid() * rh.chunk(3, -1)[2]).tanh()
            h = (1 - z) * n + z * h
        else:
            h = wx + rh
            h = h.tanh() if module.mode == "RNN_TANH" else h.relu()
        h = h.to(dtype).double()
        outputs.append(h)
    return torch.stack(outputs), c if module.mode == "LSTM" else None


@both
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "proj"])
def test_where_rounding_happens(cell: str, dtype: torch.dtype) -> None:
    """h is rounded once a step and nothing else is: most numbers are those of an emulation."""
    case = Case(cell, 6, 8, 9, 24, states=False)
    module = case.module(fastrnn, dtype)
    x = case.inputs(dtype)["x"]
    with torch.no_grad():
        y, final = module(x)
    expected, c = emulate(module, x, dtype)
    # Were gates or c rounded too, about half of the numbers would differ in the last place.
    assert (y == expected.to(dtype)).double().mean() > 0.97
    if c is not None:
        assert (final[1][0] == c.to(dtype)).double().mean() > 0.97


@both
def test_c_is_carried_in_float32(dtype: torch.dtype) -> None:
    """Steps of 2**-12 add up to 1/8 and do not vanish beside c = 1."""
    module = fastrnn.LSTM(1, 3).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        i, f, g, _ = module.bias_ih_l0.chunk(4)
        i.fill_(40), f.fill_(40), g.fill_(2**-12)
        states = torch.zeros(1, 2, 3).to(dtype), torch.ones(1, 2, 3).to(dtype)
        final = module(torch.zeros(512, 2, 1).to(dtype), states)[1][1]
        stream = module.stream(2)
        stream.state = states[0], states[1].float()
        for _ in range(512):
            stream.step(torch.zeros(2, 1).to(dtype))
    assert torch.equal(final, torch.full_like(final, 1.125))
    torch.testing.assert_close(stream.state[1], torch.full((1, 2, 3), 1.125))


@both
@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
@pytest.mark.parametrize("shape", [(9, 40, 7, 20), (6, 2, 30, 151), (30, 1, 9, 71)], ids=str)
def test_thread_count(cell: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    case = Case(cell, *shape, bidirectional=True, layout=layout)
    ours = case.module(fastrnn, dtype)
    torch.set_num_threads(1)
    expected = run(ours, case)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        assert_bitwise(run(ours, case), expected)
        assert_bitwise(run(ours, case, wants=()), expected, ["y"])


@both
@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
# In AMX's tiles, two by two: of 225 rows the last tile is left empty, of 271 one more is short.
# One row or two of H = 158 or 302 are multiplied with bfloat16 weights as they are, more are not.
@pytest.mark.parametrize(
    "sizes", [(3, 64, 158), (7, 9, 37), (65, 9, 37), (33, 311, 302), (225, 9, 37), (271, 34, 33)]
)
def test_batch_companions(cell: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """A sequence alone, among a few, and in the whole batch: the same numbers."""
    batch, inputs, hidden = sizes
    case = Case(cell, 7, batch, inputs, hidden, 2, True)
    ours = case.module(fastrnn, dtype)
    tensors = case.inputs(dtype)
    upstream = draw_upstream(ours, case, tensors)
    sums = [f"d.{n}" for n, _ in ours.named_parameters()]
    whole = differentiate(ours, case, tensors, upstream)
    for first, count in ((0, 1), (batch - 1, 1), (1, batch - 1)):
        rows = slice(first, first + count)
        own, gradients = ({n: t[:, rows] for n, t in of.items()} for of in (tensors, upstream))
        part = differentiate(ours, case, own, gradients)
        kept = {n: t[:, rows] for n, t in whole.items() if n not in sums}
        assert_bitwise(part, kept)


@pytest.mark.core
@pytest.mark.cpu_engine
@pytest.mark.parametrize("scale", [1e-10, 3e-19, 1e-20, 1e-38, 1e18])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_row_alone_has_the_bits_of_a_batch_of_any_size(kind: str, scale: float) -> None:
    """Products that are denormal, or too large, are what the same row's are in a tile."""
    torch.manual_seed(4)
    for inputs, hidden in ((5, 7), (33, 32), (64, 70), (100, 33)):
        module = getattr(fastrnn, kind)(inputs, hidden, bias=False).bfloat16()
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(scale)
        x, dy = (
            (torch.randn(1, 9, n) * scale).bfloat16().requires_grad_() for n in (inputs, hidden)
        )
        y = module(x)[0]
        [dx] = torch.autograd.grad(y, x, dy)
        for b in (0, 8):
            own = x[:, b : b + 1].detach().requires_grad_()
            y_own = module(own)[0]
            [dx_own] = torch.autograd.grad(y_own, own, dy[:, b : b + 1])
            assert_bitwise(
                {"y": y_own, "dx": dx_own}, {"y": y[:, b : b + 1], "dx": dx[:, b : b + 1]}
            )


@both
@pytest.mark.parametrize("cell", CELLS)
def test_layouts_are_one(cell: str, dtype: torch.dtype) -> None:
    """Batch-first, packed at full length, unbatched, without gradients: the same numbers."""
    case = Case(cell, 6, 4, 5, 19, 2, True)
    ours = case.module(fastrnn, dtype)
    tensors = case.inputs(dtype)
    expected = run(ours, case)
    first = replace(case, batch_first=True)
    found = run(first.module(fastrnn, dtype), first, wants=())
    assert_bitwise({"y": found["y"].transpose(0, 1)}, expected, ["y"])
    packed = nn.utils.rnn.pack_padded_sequence(tensors["x"], torch.full((4,), 6))
    states = (tensors["h0"], tensors["c0"]) if case.is_lstm else tensors["h0"]
    with torch.inference_mode():
        assert torch.equal(ours(packed, states)[0].data, expected["y"].flatten(0, 1))
        assert torch.equal(ours(tensors["x"], states)[0], expected["y"])
        alone = replace(case, layout="unbatched")
        row = call(ours, alone, {n: t[:, 0] for n, t in tensors.items()})
        assert torch.equal(row["y"], expected["y"][:, 0])


@both
@pytest.mark.parametrize("cell", ["tanh", "relu", "gru"])
@pytest.mark.parametrize("cut", [1, 4])
def test_cut_in_time(cell: str, cut: int, dtype: torch.dtype) -> None:
    """h_n is what the next step would have read: two calls are one."""
    case = Case(cell, 9, 3, 5, 19)
    ours = case.module(fastrnn, dtype)
    tensors = case.inputs(dtype)
    whole = call(ours, case, tensors)
    before = call(ours, case, tensors | {"x": tensors["x"][:cut]})
    after = call(ours, case, {"x": tensors["x"][cut:], "h0": before["h_n"]})
    assert torch.equal(torch.cat([before["y"], after["y"]]), whole["y"])
    assert torch.equal(after["h_n"], whole["h_n"])


@both
@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 5), (2, 1, 31, 158), (3, 5, 16, 64)], ids=str)
def test_stream(cell: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Steps are the sequence call, also when another stream carries on from a saved state."""
    layers, batch, inputs, hidden = sizes
    case = Case(cell, 9, batch, inputs, hidden, layers, states=False)
    module = case.module(fastrnn, dtype).eval()
    x = case.inputs(dtype)["x"]
    with torch.no_grad():
        expected = call(module, case, {"x": x})
    stream, second = module.stream(batch), module.stream(batch)
    assert stream.cell_dtype == torch.float32
    steps = [stream.step(row) for row in x[:4]]
    second.state = stream.state
    kept = stream.state
    found = torch.stack([*steps, *(second.step(row) for row in x[4:])])
    assert found.dtype == dtype
    assert torch.equal(found, expected["y"])
    h, c = second.state if case.is_lstm else (second.state, None)
    assert torch.equal(h, expected["h_n"])
    if c is not None:
        assert c.dtype == torch.float32
        assert torch.equal(c.to(dtype), expected["c_n"])
        with pytest.raises(RuntimeError, match="c0"):
            stream.state = kept[0], kept[1].to(dtype)
    assert torch.equal(torch.stack([stream.step(row) for row in x[4:]]), expected["y"][4:])


@both
@pytest.mark.parametrize("cell", CELLS)
def test_rows_apart(cell: str, dtype: torch.dtype) -> None:
    """Input whose rows are not adjacent, and weights that are views."""
    case = Case(cell, 6, 3, 5, 9)
    ours = case.module(fastrnn, dtype)
    tensors = case.inputs(dtype)
    expected = run(ours, case, tensors)
    wide = torch.full((6, 3, 11), float("nan"), dtype=dtype)
    wide[..., 3:8] = tensors["x"]
    assert_bitwise(run(ours, case, tensors | {"x": wide[..., 3:8]}), expected)
    flipped = tensors["x"].transpose(0, 2).contiguous().transpose(0, 2)
    assert_bitwise(run(ours, case, tensors | {"x": flipped}), expected)


@both
@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_in_their_sequence(cell: str, bad: float, dtype: torch.dtype) -> None:
    case = Case(cell, 6, 5, 7, 19)
    ours = case.module(fastrnn, dtype)
    tensors = case.inputs(dtype)
    expected = call(ours, case, tensors)
    tensors["x"] = tensors["x"].clone()
    tensors["x"][2, 3, 4] = bad
    found = call(ours, case, tensors)
    rows = [0, 1, 2, 4]
    assert torch.equal(found["y"][:, rows], expected["y"][:, rows])
    assert torch.equal(found["y"][:2], expected["y"][:2])
    if bad != bad:
        assert found["y"][2:, 3].isnan().all()
    elif cell != "relu":  # whose next sums are of infinities of both signs
        assert not found["y"].isnan().any()


def test_overflow_is_infinite() -> None:
    """Sums are float32, so of float16 only what is stored overflows, and then to infinity."""
    module = fastrnn.RNN(4, 1, nonlinearity="relu", bias=False).half()
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        module.weight_ih_l0.copy_(torch.tensor([[1.0, 1.0, 1.0, -1.0]]))
        x = 60000 * torch.tensor([[[1.0, 1.0, -1.0, 1.0]], [[1.0, 1.0, 0.0, 0.0]]])
        y = module(x.half())[0].flatten()
    assert y.tolist() == [0, float("inf")]


@both
@pytest.mark.parametrize("cell", CELLS)
def test_dtype_moves(cell: str, dtype: torch.dtype) -> None:
    """After use as float32, and back."""
    case = Case(cell, 6, 3, 5, 9, 2, True)
    module = case.module(fastrnn).eval()
    run(module, case, wants=())
    expected = run(case.module(fastrnn, dtype).eval(), case)
    assert_bitwise(run(module.to(dtype), case), expected)
    assert_bitwise(run(module, case, wants=()), expected, ["y"])
    back = case.module(fastrnn, dtype).float()
    assert_bitwise(run(module.float(), case), run(back, case))


@both
@pytest.mark.parametrize("cell", CELLS)
def test_new_weights_are_seen(cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, 4, 2, 5, 9)
    module = case.module(fastrnn, dtype).eval()
    before = run(module, case, wants=())["y"]
    module.weight_hh_l0.data.mul_(2)
    after = run(module, case, wants=())["y"]
    assert not torch.equal(before, after)
    assert torch.equal(after, run(module, case)["y"])


@both
def test_mixed_dtypes(dtype: torch.dtype) -> None:
    other = REDUCED[REDUCED.index(dtype) - 1]
    module = fastrnn.LSTM(3, 4).to(dtype)
    for wrong in (torch.float32, torch.float64, other):
        with pytest.raises(ValueError, match=r"input must have the dtype of weight_ih_l0"):
            module(torch.zeros(2, 1, 3, dtype=wrong))
        states = torch.zeros(1, 1, 4, dtype=dtype), torch.zeros(1, 1, 4, dtype=wrong)
        with pytest.raises(RuntimeError, match="c0"):
            module(torch.zeros(2, 1, 3, dtype=dtype), states)


@both
def test_training_goes_down(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    module, head = fastrnn.LSTM(3, 24).to(dtype), nn.Linear(24, 3)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 1e-2, eps=1e-4)
    losses = []
    for step in range(40):
        x = Case("lstm", 8, 16, 3, 24, seed=step % 4).inputs()["x"]
        loss = (head(module(x.to(dtype))[0].float()) - x.cumsum(0) / 4).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@both
@pytest.mark.core
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [2, 5, 17, 32])
def test_earlier_memory_does_not_show(cell: str, hidden: int, dtype: torch.dtype) -> None:
    """What is left in memory beside the last unit is read by no product."""
    case = Case(cell, 3, 2, 5, hidden, states=False)
    module = case.module(fastrnn, dtype).eval()
    assert not run(module, case, wants=())["y"].isnan().any()
