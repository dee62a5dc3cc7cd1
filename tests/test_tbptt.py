"""Truncated BPTT against loops written out, and modules that keep their state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import fastrnn

NAMES = ("RNN", "LSTM", "GRU")
KINDS = [f"{package.__name__}.{name}" for package in (fastrnn, nn) for name in NAMES]
T, B, I, H = 11, 4, 3, 5


def made(kind: str, **options: Any) -> Any:
    package, _, name = kind.rpartition(".")
    return getattr(fastrnn if package == "fastrnn" else nn, name)(I, H, **options).double()


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)


def detached(hx: Any) -> Any:
    return hx.detach() if isinstance(hx, Tensor) else tuple(h.detach() for h in hx)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 20])
@pytest.mark.parametrize("batch_first", [False, True])
def test_accumulated_gradient_is_that_of_the_mean_cut_at_the_borders(
    kind: str, size: int, batch_first: bool
) -> None:
    module, (x, y) = made(kind, num_layers=2, batch_first=batch_first), data()
    if batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    axis = 1 if batch_first else 0
    hx, outputs = None, []
    for part in x.split(size, axis):
        output, hx = module(part, hx)
        outputs.append(output)
        hx = detached(hx)
    loss = mse_loss(torch.cat(outputs, axis), y)  # one graph, in pieces
    loss.backward()
    expected = gradients(module)
    module.zero_grad()
    result = fastrnn.tbptt(module, x, y, mse_loss, chunk_size=size)
    assert_close(gradients(module), expected)
    assert_close(result.loss, loss.detach())
    assert_close(result.hx, hx)
    assert result.chunks == -(-T // size)
    assert not result.loss.requires_grad
    # Gradients are added to those that are there.
    fastrnn.tbptt(module, x, y, mse_loss, chunk_size=size)
    assert_close(gradients(module), [2 * g for g in expected])


def test_one_chunk_is_backpropagation_through_time() -> None:
    module, (x, y) = made("fastrnn.LSTM"), data()
    mse_loss(module(x)[0], y).backward()
    expected = gradients(module)
    module.zero_grad()
    fastrnn.tbptt(module, x, y, mse_loss, chunk_size=T)
    assert_close(gradients(module), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
def test_lengths(kind: str, given: bool) -> None:
    """As a loop over sequences, each with its own length; padding is NaN."""
    module, (x, y) = made(kind, num_layers=2), data()
    lengths, size = torch.tensor([7, 0, 11, 4]), 4
    lead = (2, B, H)
    states = tuple(torch.randn(2, *lead, dtype=torch.float64).unbind())
    hx = None if not given else states if kind.endswith("LSTM") else states[0]
    total, finals = 0.0, []
    for b, length in enumerate(lengths.tolist()):
        own = (
            hx if hx is None else hx[:, b] if isinstance(hx, Tensor) else tuple(h[:, b] for h in hx)
        )
        for t in range(0, length, size):
            output, own = module(x[t : min(t + size, length), b], own)
            total = total + (output - y[t : min(t + size, length), b]).square().mean(1).sum()
            own = detached(own)
        finals.append(own)
    loss = total / lengths.sum()
    loss.backward()
    expected = gradients(module)
    module.zero_grad()
    for b, length in enumerate(lengths.tolist()):
        x[length:, b] = float("nan")
        y[length:, b] = float("nan")
    result = fastrnn.tbptt(module, x, y, mse_loss, chunk_size=size, hx=hx, lengths=lengths)
    assert_close(gradients(module), expected)
    assert_close(result.loss, loss.detach())
    for k, state in enumerate(flat(result.hx)):
        for b, final in enumerate(finals):
            own = torch.zeros(2, H).double() if final is None else flat(final)[k]
            assert_close(state[:, b], own)


def flat(hx: Any) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


@pytest.mark.parametrize("batch_first", [False, True])
def test_classes_a_head_and_lengths(batch_first: bool) -> None:
    """Integer targets of rank 2, and a model that is more than a layer."""
    module, (x, _) = made("fastrnn.GRU", batch_first=batch_first), data()
    head = nn.Linear(H, 6).double()
    y = torch.randint(6, (T, B))
    lengths = torch.tensor([11, 3, 8, 8])
    alive = torch.arange(T)[:, None] < lengths
    output = module(x.transpose(0, 1) if batch_first else x)[0]
    rows = output.transpose(0, 1) if batch_first else output
    cross_entropy(head(rows)[alive], y[alive]).backward()
    expected = gradients(module) + gradients(head)
    module.zero_grad()
    head.zero_grad()
    if batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    fastrnn.tbptt(module, x, y, cross_entropy, chunk_size=T, head=head, lengths=lengths)
    assert_close(gradients(module) + gradients(head), expected)


def test_step_after_each_chunk() -> None:
    module, (x, y) = made("fastrnn.LSTM"), data()
    twin = copy.deepcopy(module)
    size, clip = 4, 0.01
    by_hand = torch.optim.Adam(twin.parameters(), lr=0.1)
    hx = None
    for t in range(0, T, size):
        output, hx = twin(x[t : t + size], hx)
        by_hand.zero_grad()
        mse_loss(output, y[t : t + size]).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), clip)
        by_hand.step()
        hx = detached(hx)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    result = fastrnn.tbptt(
        module,
        x,
        y,
        mse_loss,
        chunk_size=size,
        optimizer=optimizer,
        before_step=lambda: nn.utils.clip_grad_norm_(module.parameters(), clip),
    )
    assert_close(list(module.parameters()), list(twin.parameters()))
    assert_close(result.hx, hx)


def test_one_step_after_the_sequence() -> None:
    module, (x, y) = made("fastrnn.GRU"), data()
    twin = copy.deepcopy(module)
    fastrnn.tbptt(twin, x, y, mse_loss, chunk_size=4)
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    mse_loss(module(x)[0], y).backward()  # old gradients are not added
    fastrnn.tbptt(module, x, y, mse_loss, chunk_size=4, optimizer=optimizer, step="sequence")
    assert_close(list(module.parameters()), list(twin.parameters()))


def test_sum_and_scaler() -> None:
    """A loss that adds rows up is not weighted; a wrapper of backward sees each loss."""
    module, (x, y) = made("fastrnn.RNN"), data()
    fastrnn.tbptt(module, x, y, mse_loss, chunk_size=4)
    expected = [g * T * B * H for g in gradients(module)]
    module.zero_grad()

    def summed(output: Tensor, target: Tensor) -> Tensor:
        return mse_loss(output, target, reduction="sum")

    fastrnn.tbptt(
        module,
        x,
        y,
        summed,
        chunk_size=4,
        reduction="sum",
        backward=lambda loss: (8 * loss).backward(),
    )
    assert_close(gradients(module), [8 * g for g in expected])


def test_initial_state_input_and_no_batch() -> None:
    module, (x, y) = made("fastrnn.LSTM", batch_first=True), data()
    x, y = x[:, 0].clone().requires_grad_(), y[:, 0]
    hx = tuple(torch.randn(1, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    result = fastrnn.tbptt(module, x, y, mse_loss, chunk_size=4, hx=hx)
    found = [x.grad, *(h.grad for h in hx)]
    first, state = module(x[:4], hx)
    second, state = module(x[4:8], detached(state))
    third, state = module(x[8:], detached(state))
    loss = mse_loss(torch.cat([first, second, third]), y)
    assert_close(found, list(torch.autograd.grad(loss, [x, *hx])))
    assert_close(result.hx, detached(state))


def test_tbptt_mistakes() -> None:
    module, (x, y) = made("fastrnn.GRU"), data()

    def call(x: Tensor = x, y: Tensor = y, **options: Any) -> None:
        fastrnn.tbptt(module, x, y, mse_loss, **{"chunk_size": 4, **options})

    for options, message in (
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"step": "epoch"}, "step must be 'chunk' or 'sequence', got 'epoch'"),
        ({"y": y[:5]}, "target begin as it does"),
        ({"x": x[:0], "y": y[:0]}, "not empty"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths must have shape \(B,\) = \(4,\)"),
        ({"lengths": torch.tensor([1, 2, 3, 12])}, "lengths must be from 0 to T = 11"),
        ({"lengths": torch.zeros(4, dtype=torch.int64)}, "not all 0"),
        ({"x": x[:, 0], "y": y[:, 0], "lengths": torch.tensor([4])}, "lengths .* of a batch"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**options)
    embedded = x * torch.ones(1, requires_grad=True, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="input must not be the result of a recorded"):
        call(x=embedded)


@pytest.mark.parametrize("kind", KINDS)
def test_stateful_calls_are_one_sequence(kind: str) -> None:
    module, (x, _) = made(kind, num_layers=2), data()
    stateful = fastrnn.Stateful(module)
    pieces = [stateful(part)[0] for part in x.split([3, 1, 7])]
    whole, hx = module(x)
    assert_close(torch.cat(pieces), whole)
    assert_close(stateful.state, detached(hx))
    assert all(not h.requires_grad for h in flat(stateful.state))
    stateful.reset()
    assert stateful.state is None
    assert_close(stateful(x[:3])[0], whole[:3])


def test_stateful_gradients_end_between_calls() -> None:
    stateful, (x, y) = fastrnn.Stateful(made("fastrnn.LSTM")), data()
    for part, target in zip(x.split(4), y.split(4), strict=True):
        (mse_loss(stateful(part)[0], target) * len(part) / T).backward()
    found = gradients(stateful)
    stateful.zero_grad()
    fastrnn.tbptt(stateful.module, x, y, mse_loss, chunk_size=4)
    assert_close(found, gradients(stateful))


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_stateful_cells(kind: str) -> None:
    cell = getattr(fastrnn, kind)(I, H)
    stateful, x = fastrnn.Stateful(cell), torch.randn(3, B, I)
    first = stateful(x[0])
    assert_close(stateful(x[1]), cell(x[1], first))
    stateful.reset([1])
    for state, fresh in zip(flat(stateful(x[2])), flat(cell(x[2])), strict=True):
        assert_close(state[1], fresh[1])
        assert not torch.equal(state[0], fresh[0])


@pytest.mark.parametrize(
    "rows", [[0, 2], torch.tensor([2, 0]), [True, False, True, False], torch.tensor([-2, 0])]
)
def test_reset_of_chosen_rows(rows: Any) -> None:
    module, (x, _) = made("fastrnn.LSTM", num_layers=2, bidirectional=False), data()
    stateful = fastrnn.Stateful(module)
    stateful(x[:5])
    before = stateful.state
    stateful.reset(rows)
    for old, new in zip(before, stateful.state, strict=True):
        assert not new[:, [0, 2]].any()
        assert torch.equal(new[:, [1, 3]], old[:, [1, 3]])
    fresh = module(x[5:, [0, 2]])[0]
    assert_close(stateful(x[5:])[0][:, [0, 2]], fresh)


def test_stateful_state_in_and_out() -> None:
    module, (x, _) = made("fastrnn.LSTM"), data()
    plain, kept = fastrnn.Stateful(module), fastrnn.Stateful(module, persistent=True)
    for stateful in (plain, kept):
        stateful(x)
    names = set(nn.Module.state_dict(module))
    assert set(plain.state_dict()) == {f"module.{name}" for name in names}
    assert set(kept.state_dict()) - set(plain.state_dict()) == {"state.0", "state.1"}
    other = nn.Sequential(fastrnn.Stateful(made("fastrnn.LSTM"), persistent=True))
    other.load_state_dict({f"0.{name}": value for name, value in kept.state_dict().items()})
    assert_close(other[0].state, kept.state)
    other[0].load_state_dict(plain.state_dict())
    assert other[0].state is None
    single = fastrnn.Stateful(made("fastrnn.GRU"), persistent=True)
    single(x)
    twin = fastrnn.Stateful(made("fastrnn.GRU"), persistent=True)
    twin.load_state_dict(single.state_dict())
    assert_close(twin.state, single.state)
    plain.state = module(x[:3])[1]
    assert all(not h.requires_grad for h in plain.state)
    assert_close(plain(x[3:])[0], module(x)[0][3:])
    assert_close(copy.deepcopy(plain).state, plain.state)
    assert all(h.dtype is torch.float32 for h in plain.float().state)


def test_stateful_after_inference_mode() -> None:
    module, (x, _) = made("fastrnn.LSTM"), data()
    stateful = fastrnn.Stateful(module)
    with torch.inference_mode():
        stateful(x)
    stateful(x)[0].sum().backward()
    assert len(gradients(module)) == 4


def test_stateful_takes_packed_input() -> None:
    module, (x, _) = made("fastrnn.GRU"), data()
    lengths = torch.tensor([2, 5, 1, 3])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    stateful = fastrnn.Stateful(module)
    stateful(packed)
    y, _ = stateful(x)
    for b, length in enumerate(lengths.tolist()):
        assert_close(y[:, b], module(torch.cat([x[:length, b], x[:, b]]))[0][length:])


def test_stateful_mistakes() -> None:
    module, (x, _) = made("fastrnn.GRU"), data()
    stateful = fastrnn.Stateful(module)
    stateful.reset([0])  # nothing to reset yet
    stateful(x)
    with pytest.raises(RuntimeError, match="must have a batch of 4, as the state has, got 3; call"):
        stateful(x[:, :3])
    with pytest.raises(IndexError):
        stateful.reset([4])
    with pytest.raises(IndexError, match="rows must have shape"):
        stateful.reset([True])
    stateful.reset()
    stateful(x[:, 0])
    with pytest.raises(RuntimeError, match="state has no batch"):
        stateful.reset([0])
