"""Kernels against the cells' reference step in plain torch, and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import fastrnn
from _support import CELLS, Case, Tensors, assert_accurate, run, states_of, truth, twin
from fastrnn import cells


class Reference(torch.nn.Module):
    """A stack of layers that takes the reference step of a cell, one sequence at a time.

    It shares nothing with the kernels, nor with torch.nn but the names of the parameters.
    """

    def __init__(self, case: Case, module: Any) -> None:
        super().__init__()
        self.case = case
        self.spec = cells.CELLS[{"RNN": "elman"}.get(case.kind, case.kind.lower())]
        for name, parameter in module.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(parameter.detach().double()))

    def forward(self, x: Tensor | PackedSequence, hx: Any) -> tuple[Any, Any]:
        case = self.case
        packed = isinstance(x, PackedSequence)
        padded, lengths = pad_packed_sequence(x) if packed else (x, None)
        if lengths is None:
            lengths = torch.full((padded.shape[1],), padded.shape[0])
        slots = case.layers * case.directions
        if hx is None:
            widths = [case.output_size, case.H][: self.spec.states]
            hx = [padded.new_zeros(slots, padded.shape[1], width) for width in widths]
        states = list(hx) if isinstance(hx, tuple | list) else [hx]
        rows, finals = [], []
        for b, length in enumerate(lengths.tolist()):
            y, final = self.sequence(padded[:length, b : b + 1], [s[:, b : b + 1] for s in states])
            missing = padded.shape[0] - length
            rows.append(torch.cat([y, y.new_zeros(missing, *y.shape[1:])]))
            finals.append(final)
        y = torch.cat(rows, 1)
        final = tuple(torch.cat(parts, 1) for parts in zip(*finals, strict=True))
        if packed:
            y = self.case.pack(y)
        return y, final if len(final) > 1 else final[0]

    def sequence(self, y: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        finals = []
        for layer in range(self.case.layers):
            outputs = []
            for direction, suffix in enumerate(("", "_reverse")[: self.case.directions]):
                slot = layer * self.case.directions + direction
                steps = y.flip(0) if direction else y
                carried = tuple(s[slot] for s in states)
                produced = []
                for step in steps:
                    carried = self.spec.step(
                        step, carried, self.weights(layer, suffix), self.activation
                    )
                    produced.append(carried[0])
                outputs.append(
                    torch.stack(produced).flip(0) if direction else torch.stack(produced)
                )
                finals.append(carried)
            y = torch.cat(outputs, -1)
        return y, [torch.stack(parts) for parts in zip(*finals, strict=True)]

    @property
    def activation(self) -> str:
        return self.case.cell if self.case.kind == "RNN" else "tanh"

    def weights(self, layer: int, suffix: str) -> list[Tensor | None]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return [getattr(self, f"{name}_l{layer}{suffix}", None) for name in names]


CASES = [
    Case(cell, 7, 5, 6, 11, layers, two, bias, layout=layout)
    for cell in CELLS
    for layers, two, bias, layout in (
        (1, False, True, "dense"),
        (2, True, True, "dense"),
        (1, True, False, "packed"),
        (2, True, True, "unsorted"),
    )
] + [Case(cell, 40, 9, 6, 21) for cell in CELLS]


def reference(case: Case) -> Tensors:
    return run(Reference(case, case.module(fastrnn, torch.float64)), case)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_against_reference_step(case: Case, dtype: torch.dtype) -> None:
    """Outputs, states, every gradient."""
    known = truth(case)._replace(exact=reference(case))
    assert_accurate(run(twin(case, dtype)[0], case), dtype, known)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_step_is_torchs(case: Case) -> None:
    """The reference itself is right."""
    for name, value in reference(case).items():
        torch.testing.assert_close(
            value, truth(case).exact[name], msg=lambda m, n=name: f"{n}: {m}"
        )


def test_registry() -> None:
    core = pytest.importorskip("fastrnn._core")
    assert set(cells.CELLS) == {"elman", "lstm", "gru"}
    for name, spec in cells.CELLS.items():
        info = core.cell_info(name)
        assert spec.name == name
        assert (spec.gates, spec.states) == (info["gates"], info["states"])


GRADCHECK = [
    replace(case, T=3, B=batch, I=3, H=4, seed=9) for case in CASES[:-5] for batch in (1, 3)
]


@pytest.mark.parametrize("case", GRADCHECK, ids=str)
def test_gradcheck(case: Case) -> None:
    """Finite differences of every output in every input and weight."""
    module = case.module(fastrnn, torch.float64)
    names = [n for n, _ in module.named_parameters()]
    tensors = {n: t.requires_grad_() for n, t in case.inputs(torch.float64).items()}

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(tensors, values, strict=False))
        weights = dict(zip(names, values[len(tensors) :], strict=True))
        x = case.pack(given["x"]) if case.packed else given["x"]
        y, states = torch.func.functional_call(module, weights, (x, states_of(case, given)))
        return (y.data if case.packed else y, *(states if case.is_lstm else (states,)))

    values = (*tensors.values(), *module.parameters())
    assert torch.autograd.gradcheck(function, values, atol=1e-7, rtol=1e-6)
