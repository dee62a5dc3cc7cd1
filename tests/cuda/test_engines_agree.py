"""The same call on both engines, in float64: every kind of input, all results and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import _cuda_emulated
import fastrnn
from _support import CELLS, Case, states_of, twin

LENGTHS = [3, 0, 6, 1]
RESETS = torch.tensor([[0, 0, 1, 0, 1, 0], [0] * 6, [1, 1, 0, 0, 0, 0], [0] * 6]).T.bool()
INPUTS: dict[str, Callable[[Tensor], tuple[Any, dict[str, Any]]]] = {
    "dense": lambda x: (x, {}),
    "strided": lambda x: (x.repeat_interleave(2, 2)[..., ::2], {}),
    "lengths": lambda x: (x, {"lengths": LENGTHS}),
    "resets": lambda x: (x, {"reset_mask": RESETS}),
    "both": lambda x: (x, {"lengths": LENGTHS, "reset_mask": RESETS}),
    "empty": lambda x: (x, {"lengths": [0, 0, 0, 0]}),
    "packed": lambda x: (pack_padded_sequence(x, [3, 2, 6, 1], enforce_sorted=False), {}),
}


def results(case: Case, kind: str, wants: str | None) -> list[Tensor]:
    module = twin(case, torch.float64)[0]
    tensors = case.inputs(torch.float64)
    for name, tensor in tensors.items():
        tensor.requires_grad_(wants in (None, name))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(wants is None or name.startswith(wants))
    x = tensors["x"]
    x, options = INPUTS[kind](x.transpose(0, 1) if case.batch_first else x)
    if case.batch_first:
        x = x.transpose(0, 1)
        options = {k: v.T if isinstance(v, Tensor) else v for k, v in options.items()}
    y, states = module(x, states_of(case, tensors), **options)
    y = y.data if kind == "packed" else y
    outputs = [y, *(states if case.is_lstm else (states,))]
    loss = sum((o * torch.cos(torch.arange(o.numel()).view(o.shape))).sum() for o in outputs)
    leaves = [t for t in (*tensors.values(), *module.parameters()) if t.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, leaves, allow_unused=True)]  # type: ignore[arg-type]


def assert_engines_agree(case: Case, kind: str, kernel: str, wants: str | None = None) -> None:
    expected = results(case, kind, wants)
    with pytest.MonkeyPatch.context() as patch:
        _cuda_emulated.install(patch)
        _cuda_emulated.use_kernel(patch, kernel)
        found = results(case, kind, wants)
    assert len(found) == len(expected) > 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kernel", ["step", "persistent"])
@pytest.mark.parametrize(
    ("kind", "batch_first"),
    [(k, b) for k in INPUTS for b in (False, True) if not (b and k == "packed")],
)
@pytest.mark.parametrize("cell", CELLS)
def test_every_kind_of_input(cell: str, kind: str, batch_first: bool, kernel: str) -> None:
    case = Case(cell, 6, 4, 3, 5, layers=2, bidirectional=True, batch_first=batch_first)
    assert_engines_agree(case, kind, kernel)


@pytest.mark.parametrize("wants", ["x", "h0", "weight_ih", "weight_hh", "bias"])
@pytest.mark.parametrize("kind", ["dense", "resets"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_one_at_a_time(cell: str, kind: str, wants: str) -> None:
    case = Case(cell, 6, 4, 3, 5, bidirectional=True)
    assert_engines_agree(case, kind, "persistent", wants=wants)


@pytest.mark.parametrize("cell", CELLS)
def test_without_biases_and_states(cell: str) -> None:
    assert_engines_agree(Case(cell, 6, 4, 3, 5, bias=False, states=False), "dense", "step")


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_single_steps(name: str, emulated: pytest.MonkeyPatch) -> None:
    ours, theirs = getattr(fastrnn, name)(3, 5), getattr(torch.nn, name)(3, 5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3)
    found = []
    for module in (ours, theirs):
        states = module(x)
        outputs = states if isinstance(states, tuple) else (states,)
        again = module(x, states)
        total = (again[1] if isinstance(again, tuple) else again).square().sum()
        found.append([*outputs, *torch.autograd.grad(total, list(module.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
