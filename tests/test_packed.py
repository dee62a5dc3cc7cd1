"""Packed sequences beyond what the parity tests cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)

import fastrnn
from _support import CELLS, Case, assert_bitwise, call, run, states_of, twin


def outcome(module: Any, *arguments: Any) -> tuple[PackedSequence, Any]:
    with torch.no_grad():
        return module(*arguments)


@pytest.mark.cpu_engine  # on a GPU, torch's products over whole sequences depend on their size
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["packed", "unsorted"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_each_sequence_alone(cell: str, layout: str, bidirectional: bool) -> None:
    """Bit for bit: neither companions nor padding are seen by a sequence."""
    case = Case(cell, 9, 6, 4, 7, 2, bidirectional, layout=layout)
    ours = twin(case)[0]
    tensors = case.inputs()
    states = states_of(case, tensors)
    y, final = outcome(ours, case.pack(tensors["x"]), states)
    for b, (length, sequence) in enumerate(zip(case.lengths(), unpack_sequence(y), strict=True)):
        own = slice(b, b + 1)
        hx = tuple(s[:, own] for s in states) if case.is_lstm else states[:, own]
        alone, last = outcome(ours, tensors["x"][:length, own], hx)
        assert torch.equal(sequence, alone[:, 0])
        for ends, end in zip(as_list(final), as_list(last), strict=True):
            assert torch.equal(ends[:, own], end)


def as_list(states: Any) -> list[torch.Tensor]:
    return list(states) if isinstance(states, tuple) else [states]


@pytest.mark.parametrize("cell", CELLS)
def test_equal_lengths_equal_dense(cell: str) -> None:
    """Lengths that are all T make the dense problem: the same bits, gradients included."""
    case = Case(cell, 6, 5, 4, 7, 2, True)
    ours = twin(case)[0]
    tensors = case.inputs()
    x = tensors["x"]
    dense, states = outcome(ours, x, states_of(case, tensors))
    packed, packed_states = outcome(
        ours, pack_padded_sequence(x, torch.full((5,), 6)), states_of(case, tensors)
    )
    assert torch.equal(packed.data.view(dense.shape), dense)
    torch.testing.assert_close(packed_states, states, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_structure_of_the_output(kind: str) -> None:
    """The PackedSequence that comes back has the indices of the one that went in."""
    lengths = [2, 5, 3]
    x = pack_sequence([torch.randn(n, 4) for n in lengths], enforce_sorted=False)
    results = []
    for namespace in (fastrnn, nn):
        torch.manual_seed(1)
        results.append(outcome(getattr(namespace, kind)(4, 6, bidirectional=True), x)[0])
    ours, theirs = results
    assert isinstance(ours, PackedSequence)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field))
    assert pad_packed_sequence(ours)[1].tolist() == lengths


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("batch_sizes", [[3, 2], [3, 3, 0], [4, 1, 0, 0]])
def test_hand_made_batch_sizes(kind: str, batch_sizes: list[int]) -> None:
    """Fewer rows than data, or a trailing empty step: torch's result, or a refusal."""
    x = PackedSequence(torch.randn(6, 4), torch.tensor(batch_sizes))
    torch.manual_seed(1)
    theirs = outcome(getattr(nn, kind)(4, 6), x)[0]
    torch.manual_seed(1)
    module = getattr(fastrnn, kind)(4, 6)
    try:
        ours = outcome(module, x)[0]
    except (RuntimeError, ValueError) as refusal:
        assert str(refusal).startswith(f"{kind}: ")  # noqa: PT017
    else:
        torch.testing.assert_close(ours.data, theirs.data)


@pytest.mark.parametrize("cell", CELLS)
def test_unused_tail_has_no_gradient(cell: str) -> None:
    case = Case(cell, 8, 4, 3, 5, layout="unsorted")
    gradient = run(twin(case)[0], case)["d.x"]
    for b, length in enumerate(case.lengths()):
        assert torch.equal(gradient[length:, b], torch.zeros(8 - length, 3))


@pytest.mark.parametrize("cell", CELLS)
def test_many_lengths_of_one(cell: str) -> None:
    """The batch shrinks from 300 rows to 1 at once."""
    case = Case(cell, 40, 300, 4, 9, bidirectional=True)
    lengths = torch.ones(300, dtype=torch.int64)
    lengths[0] = 40
    results = []
    for module in twin(case, torch.float64):
        x = case.inputs(torch.float64)["x"].requires_grad_()
        y, _ = module(pack_padded_sequence(x, lengths))
        y.data.square().sum().backward()
        results.append([y.data.detach(), x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(results[0], results[1])


def test_data_may_be_strided() -> None:
    case = Case("lstm", 6, 4, 5, 7, layout="packed")
    ours = twin(case)[0]
    tensors = case.inputs()
    plain = call(ours, case, tensors)
    packed = case.pack(tensors["x"])
    wide = packed.data.repeat_interleave(2, 1)[:, ::2]
    y, _ = ours(PackedSequence(wide, packed.batch_sizes), states_of(case, tensors))
    assert_bitwise({"y": y.data.detach()}, {"y": plain["y"].detach()})
