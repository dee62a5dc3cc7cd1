"""The stateless forms against the modules, which are tested against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from _support import CELLS, Case, Tensors, assert_bitwise, call, states_of, twin
from fastrnn import functional

CASES = [
    Case(cell, 6, 1 if layout == "unbatched" else 4, 5, 9, layers, two, bias, first, layout=layout)
    for cell in CELLS
    for layers, two, bias, first, layout in (
        (1, False, True, False, "dense"),
        (2, True, False, True, "dense"),
        (2, True, True, False, "unsorted"),
        (1, False, True, False, "unbatched"),
    )
]


def apply(case: Case, tensors: Tensors, weights: list[Tensor], **over: Any) -> Tensors:
    options: dict[str, Any] = {
        "num_layers": case.layers,
        "bidirectional": case.bidirectional,
        "batch_first": case.batch_first,
    }
    if case.kind == "RNN":
        options["nonlinearity"] = case.cell
    x = case.pack(tensors["x"]) if case.packed else tensors["x"]
    function = getattr(functional, case.kind.lower())
    y, states = function(x, states_of(case, tensors), weights, **options | over)
    names = ("h_n", "c_n") if case.is_lstm else ("h_n",)
    outputs = {"y": y.data if case.packed else y}
    return outputs | dict(zip(names, states if case.is_lstm else (states,), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_module(case: Case) -> None:
    module = twin(case)[0]
    tensors, weights = case.inputs(), list(module.parameters())
    found, expected = apply(case, tensors, weights), call(module, case, tensors)
    assert_bitwise(found, expected)
    gradients = [
        torch.autograd.grad(sum(t.square().sum() for t in outputs.values()), weights)
        for outputs in (found, expected)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_states_default_to_zero(case: Case) -> None:
    module, x = twin(case)[0], {"x": case.inputs()["x"]}
    assert_bitwise(apply(case, x, list(module.parameters())), call(module, case, x))


@pytest.mark.parametrize("cell", CELLS)
def test_dropout(cell: str) -> None:
    case = Case(cell, 6, 4, 5, 9, 3, dropout=0.4)
    module, tensors = twin(case)[0], case.inputs()
    weights = list(module.parameters())
    torch.manual_seed(3)
    expected = call(module, case, tensors)
    torch.manual_seed(3)
    assert_bitwise(apply(case, tensors, weights, dropout=0.4), expected)
    off = apply(case, tensors, weights, dropout=0.4, training=False)
    assert_bitwise(off, call(module.eval(), case, tensors))


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (5,)])
def test_cells_equal_the_modules(cell: str, bias: bool, shape: tuple[int, ...]) -> None:
    import fastrnn

    case = Case(cell)
    options = {"nonlinearity": cell} if case.kind == "RNN" else {}
    module = getattr(fastrnn, f"{case.kind}Cell")(5, 9, bias=bias, **options)
    function = getattr(functional, f"{case.kind.lower()}_cell")
    x = torch.randn(shape)
    state = torch.randn(*shape[:-1], 9)
    for hx in (None, (state, -state) if case.is_lstm else state):
        found, expected = function(x, hx, *module.parameters(), **options), module(x, hx)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


BAD: dict[str, Any] = {
    "no weights": lambda w: [],
    "one missing": lambda w: w[:-1],
    "one too many": lambda w: [*w, w[0]],
    "order": lambda w: [w[1], w[0], *w[2:]],
    "None": lambda w: [w[0], None, *w[2:]],
    "rank": lambda w: [w[0].flatten(), *w[1:]],
    "dtype": lambda w: [w[0], w[1].double(), *w[2:]],
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_wrong_weights(cell: str, change: Any) -> None:
    case = Case(cell, I=4, H=6)
    weights = change([p.detach() for p in twin(case)[0].parameters()])
    message = rf"^{case.kind}: .*\bgot\b"
    with pytest.raises((ValueError, RuntimeError, TypeError), match=message):
        apply(case, case.inputs(), weights)


@pytest.mark.parametrize("function", ["rnn", "rnn_cell"])
def test_unknown_nonlinearity(function: str) -> None:
    weights = [torch.zeros(6, 4), torch.zeros(6, 6)]
    arguments = (
        (torch.zeros(5, 3, 4), None, weights)
        if function == "rnn"
        else (torch.zeros(3, 4), None, *weights)
    )
    with pytest.raises(ValueError, match=r"nonlinearity must be .*got 'sine'"):
        getattr(functional, function)(*arguments, nonlinearity="sine")
