"""Training calls that the compiled module does by itself: same bits as through the checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import _ops

T, B, I, H = 5, 3, 4, 6

pytestmark = pytest.mark.skipif(
    not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no table for DLPack"
)

CASES: dict[str, Callable[[], tuple[Any, tuple[int, ...]]]] = {
    "RNN": lambda: (fastrnn.RNN(I, H), (T, B, I)),
    "relu": lambda: (fastrnn.RNN(I, H, nonlinearity="relu", bias=False), (T, B, I)),
    "GRU": lambda: (fastrnn.GRU(I, H, bidirectional=True), (T, B, I)),
    "LSTM": lambda: (fastrnn.LSTM(I, H), (T, B, I)),
    "one unit": lambda: (fastrnn.LSTM(I, 1), (T, B, I)),
    "projected": lambda: (fastrnn.LSTM(I, H, proj_size=2, bidirectional=True), (T, B, I)),
    "batch_first": lambda: (fastrnn.LSTM(I, H, batch_first=True, bidirectional=True), (B, T, I)),
    "layers": lambda: (fastrnn.GRU(I, H, num_layers=2, batch_first=True), (B, T, I)),
    "checkpoints": lambda: (fastrnn.LSTM(I, H, checkpoint_every=2), (T, B, I)),
    "unbatched": lambda: (fastrnn.LSTM(I, H), (T, I)),
    "float64": lambda: (fastrnn.LSTM(I, H, dtype=torch.float64), (T, B, I)),
    "bfloat16": lambda: (fastrnn.GRU(I, H, dtype=torch.bfloat16), (T, B, I)),
    "LSTMCell": lambda: (fastrnn.LSTMCell(I, H), (B, I)),
    "GRUCell": lambda: (fastrnn.GRUCell(I, H), (B, I)),
}


def watch(name: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    done: list[bool] = []
    original = getattr(_ops, name)

    def watched(*args: Any) -> Any:
        results = original(*args)
        done.append(results is not None)
        return results

    monkeypatch.setattr(_ops, name, watched)
    return done


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each backward pass: whether the compiled module did it by itself."""
    return watch("_ordinary_backward", monkeypatch)


@pytest.fixture
def forward_answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The same of each forward pass that is recorded."""
    return watch("_ordinary_forward", monkeypatch)


def outputs_of(module: Any, x: Tensor, hx: Any) -> list[Tensor]:
    outputs = module(x) if hx is None else module(x, hx)
    first, rest = (outputs, ()) if isinstance(outputs, Tensor) else outputs
    return [first, *(rest if isinstance(rest, tuple) else (rest,))]


def states_of(module: Any, x: Tensor) -> Any:
    """Return initial states that ask for gradients, in the form that the module takes."""
    with torch.no_grad():
        shapes = outputs_of(module, x, None)
    if not isinstance(module, torch.nn.RNNCellBase):
        shapes = shapes[1:]
    made = tuple(torch.randn(s.shape).to(x.dtype).requires_grad_() for s in shapes)
    return made if len(made) > 1 else made[0]


def gradients(outputs: list[Tensor], given: list[Tensor | None], wanted: list[Tensor]) -> Any:
    pairs = [(y, dy) for y, dy in zip(outputs, given, strict=True) if dy is not None]
    ys, dys = zip(*pairs, strict=True)
    return torch.autograd.grad(ys, wanted, dys, retain_graph=True, allow_unused=True)


def assert_same(got: Any, wanted: Any) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b)
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str, answers: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    module, sizes = CASES[case]()
    parameters = list(module.parameters())
    x = torch.randn(sizes).to(parameters[0].dtype).requires_grad_()
    hx = states_of(module, x)
    inputs = [x, *(hx if isinstance(hx, tuple) else (hx,)), *parameters]
    outputs = outputs_of(module, x, hx)
    whole: list[Tensor | None] = [torch.randn_like(y) for y in outputs]
    layers = getattr(module, "num_layers", 1)
    for missing in range(len(outputs) + 1):
        given = [None if i == missing else dy for i, dy in enumerate(whole)]
        if not any(dy is not None for dy in given):
            continue
        for wanted in (inputs, inputs[:1], inputs[1:], parameters[:1], parameters[-1:]):
            answers.clear()
            with monkeypatch.context() as patch:
                patch.setattr(_ops, "_ordinary_backward", lambda *_: None)
                expected = gradients(outputs, given, wanted)
            got = gradients(outputs, given, wanted)
            assert_same(got, expected)
            assert answers, "it has not been asked"
            assert all(answers)
            assert len(answers) <= layers


@pytest.mark.parametrize("case", CASES)
def test_forward(case: str, forward_answers: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    module, sizes = CASES[case]()
    parameters = list(module.parameters())
    x = torch.randn(sizes).to(parameters[0].dtype).requires_grad_()
    for hx in (None, states_of(module, x)):
        with monkeypatch.context() as patch:
            patch.setattr(_ops, "_ordinary_forward", lambda *_: None)
            expected = outputs_of(module, x, hx)
        forward_answers.clear()
        got = outputs_of(module, x, hx)
        assert_same([y.detach() for y in got], [y.detach() for y in expected])
        assert forward_answers, "it has not been asked"
        assert all(forward_answers) == (x.dtype != torch.bfloat16)
        seeds: list[Tensor | None] = [torch.randn_like(y) for y in got]
        assert_same(gradients(got, seeds, parameters), gradients(expected, seeds, parameters))


def _negated(value: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(value), -value).conj().imag


SPECIAL: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "expanded": (lambda t: t.flatten()[:1].expand(t.shape), True),
    "scattered": (lambda t: t.repeat_interleave(2, dim=-1)[..., ::2], True),
    "negated": (_negated, True),
    "transposed": (lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), True),
    "a row for all": (lambda t: t[:1, :1].expand(t.shape), True),
    "of a tensor subclass": (lambda t: t.as_subclass(torch.nn.Buffer), False),
}


@pytest.mark.parametrize("special", SPECIAL)
def test_forward_of_an_input_that_lies_elsewhere(
    special: str, forward_answers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    lstm = fastrnn.LSTM(I, H)
    x = SPECIAL[special][0](torch.randn(T, B, I))
    got, _ = lstm(x)
    assert forward_answers, "it has not been asked"
    monkeypatch.setattr(_ops, "_ordinary_forward", lambda *_: None)
    expected, _ = lstm(x)
    assert_same([got.detach()], [expected.detach()])
    assert torch.equal(got, lstm(x.clone().contiguous())[0])


@pytest.mark.parametrize("rows", [3, 200_000])
def test_of_large_outputs_the_pages_are_large(rows: int, forward_answers: list[bool]) -> None:
    fastrnn.LSTM(1, 2)(torch.randn(1, rows, 1))
    assert forward_answers == [rows == 3]


@pytest.mark.parametrize("special", SPECIAL)
def test_gradients_that_lie_elsewhere(
    special: str, answers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, ordinary = SPECIAL[special]
    module, x = fastrnn.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    y = module(x)[0]
    dy = change(torch.randn(T, B, H))
    got = torch.autograd.grad(y, [x, *module.parameters()], dy, retain_graph=True)
    assert answers == [ordinary]
    monkeypatch.setattr(_ops, "_ordinary_backward", lambda *_: None)
    assert_same(got, torch.autograd.grad(y, [x, *module.parameters()], dy.clone()))


def test_of_a_state_too(answers: list[bool]) -> None:
    module, x = fastrnn.GRU(I, H), torch.randn(T, B, I)
    _, h_n = module(x)
    dh = torch.randn(1, B, H)
    scattered = dh.repeat_interleave(2, dim=-1)[..., ::2]
    turned = dh.transpose(1, 2).contiguous().transpose(1, 2)
    once = torch.autograd.grad(h_n, [*module.parameters()], dh, retain_graph=True)
    for other in (scattered, turned):
        same = torch.autograd.grad(h_n, [*module.parameters()], other, retain_graph=True)
        assert_same(once, same)
    assert answers == [True, True, True]


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_sums(cell: str, answers: list[bool]) -> None:
    module, x = getattr(fastrnn, cell)(I, H, num_layers=2), torch.randn(T, B, I)
    y, hx = module(x)
    outputs = [y, *(hx if isinstance(hx, tuple) else (hx,))]
    ones = [torch.ones_like(t) for t in outputs]
    got = torch.autograd.grad(
        sum(t.sum() for t in outputs), [*module.parameters()], retain_graph=True
    )
    assert answers == [True, True]
    assert_same(got, torch.autograd.grad(outputs, [*module.parameters()], ones))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": lambda t: t.double(),
    "fewer rows": lambda t: t[..., :-1, :],
    "more": lambda t: torch.cat([t, t]),
    "flat": lambda t: t.flatten(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("what", ["y", "reserve"])
def test_what_a_hook_hands_back_is_checked(what: str, change: str, answers: list[bool]) -> None:
    """Of another size or dtype it is refused, as it is without the compiled module's way."""
    module, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    sizes = {"y": (T, B, H), "reserve": (1, T * B, 5, H)}

    def unpack(t: Tensor) -> Tensor:
        return CHANGES[change](t) if t.shape == sizes[what] else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        y, _ = module(x)
    with pytest.raises((RuntimeError, ValueError), match="saved"):
        torch.autograd.grad(y, [*module.parameters()], torch.ones_like(y))
    assert answers == [False]


@pytest.mark.parametrize("name", ["dy", "dh_n", "dc_n"])
def test_negated_numbers(name: str, answers: list[bool]) -> None:
    """Of one number strides do not tell that it is part of a complex one."""
    module, x = fastrnn.LSTM(1, 1), torch.randn(1, 1, 1)
    y, (h_n, c_n) = module(x)
    output = {"dy": y, "dh_n": h_n, "dc_n": c_n}[name]
    d = torch.randn(1, 1, 1)
    wanted = torch.autograd.grad(output, [*module.parameters()], d, retain_graph=True)
    got = torch.autograd.grad(output, [*module.parameters()], _negated(d))
    assert_same(got, wanted)
    assert answers == [True, False]


def test_frozen_weights(answers: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = fastrnn.LSTM(I, H, bidirectional=True), torch.randn(T, B, I, requires_grad=True)
    for name in ("weight_hh_l0", "bias_ih_l0", "weight_ih_l0_reverse"):
        getattr(module, name).requires_grad_(False)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    y, _ = module(x)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, wanted, dy, retain_graph=True)
    assert answers == [True]
    monkeypatch.setattr(_ops, "_ordinary_backward", lambda *_: None)
    assert_same(got, torch.autograd.grad(y, wanted, dy))
