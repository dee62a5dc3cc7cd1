"""The whole way of a tensor to each kind of kernel and back, beside torch.nn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import _cuda_emulated
import fastrnn
from _support import CELLS, DTYPES, Case, assert_matches_torch, error, run, truth, twin
from fastrnn import _cuda_device, _plans

CASES = [
    Case(cell, T=4, B=17, I=5, H=19, bidirectional=True, batch_first=cell in ("gru", "proj"))
    for cell in CELLS
] + [
    Case(cell, T=5, B=4, I=3, H=35, layout="unsorted", layers=2, bidirectional=True)
    for cell in CELLS
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case, dtype: torch.dtype, kernel: str) -> None:
    assert_matches_torch(case, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_reduced(case: Case, dtype: torch.dtype, kernel: str) -> None:
    """Every result is within a few roundings of float64's, and torch's own are no better by far."""
    results = run(twin(case, dtype)[0], case)
    for name, exact in truth(case).exact.items():
        scale = exact.abs().max().item()
        assert results[name].dtype == dtype
        assert error(results[name], exact) <= 16 * torch.finfo(dtype).eps * max(scale, 1), name


@pytest.mark.parametrize("cell", CELLS)
def test_both_kernels_give_the_same_bits(cell: str, emulated: pytest.MonkeyPatch) -> None:
    case = Case(cell, T=6, B=18, I=4, H=20, bidirectional=True)
    found = []
    for kernel in ("step", "persistent"):
        _cuda_emulated.install(emulated)
        _cuda_emulated.use_kernel(emulated, kernel)
        found.append(run(twin(case)[0], case, wants=()))
    assert torch.equal(found[0]["y"], found[1]["y"])


@pytest.mark.parametrize("cell", CELLS)
def test_tf32_is_that_of_the_rnn_switch(cell: str, emulated: pytest.MonkeyPatch) -> None:
    case = Case(cell, T=4, B=3, I=4, H=40)
    exact = truth(case).exact
    errors = {}
    for tf32 in (False, True):
        _cuda_emulated.install(emulated, tf32=tf32)
        results = run(twin(case)[0], case)
        errors[tf32] = max(error(results[n], exact[n]) for n in exact)
    assert errors[False] < 1e-4 < errors[True] < 0.1


def test_products_follow_the_rnn_switch(emulated: pytest.MonkeyPatch) -> None:
    """The process's own switch is what it was afterwards, whatever happens meanwhile."""
    matmul = torch.backends.cuda.matmul
    new = hasattr(torch.backends, "fp32_precision")
    name = "fp32_precision" if new else "allow_tf32"
    before = getattr(matmul, name)
    with _cuda_device.products(torch.float32, True):
        assert getattr(matmul, name) in ("tf32", True)

    def fail() -> None:
        with _cuda_device.products(torch.float32, False):
            assert getattr(matmul, name) in ("ieee", False)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with _cuda_device.products(torch.bfloat16, False):
        assert getattr(matmul, name) == before
    assert getattr(matmul, name) == before


@pytest.mark.parametrize("cell", CELLS)
def test_reserve_is_laid_out_as_the_other_engine_has_it(
    cell: str, emulated: pytest.MonkeyPatch
) -> None:
    """So what differentiates the backward pass serves both."""
    name = Case(cell).module(fastrnn)._spec.name
    ours, theirs = _cuda_device.module().layout(name), _plans.cell_info(name)
    assert ours["gradients"] == theirs["gradients"]
    assert ours["saved"] == theirs["saved"]
    assert ours["input"] == theirs["of_input"]
    assert ours["recurrent"] == theirs["of_recurrent"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["dense", "unsorted"])
def test_double_backward(cell: str, layout: str, kernel: str) -> None:
    case = Case(cell, T=3, B=2, I=2, H=3, layout=layout)
    module, reference = twin(case, torch.float64)
    found = []
    for m in (module, reference):
        x = case.inputs(torch.float64)["x"].requires_grad_()
        y = m(case.pack(x) if case.packed else x)[0]
        total = (y.data if case.packed else y).square().sum()
        own = list(m.parameters())
        first = torch.autograd.grad(total, [x, *own], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(penalty, [x, *own], allow_unused=True))  # type: ignore[arg-type]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_step_by_step_lowers_the_loss(kernel: str) -> None:
    torch.manual_seed(0)
    module, head = fastrnn.LSTM(3, 12, batch_first=True), nn.Linear(12, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.02)
    x = torch.randn(8, 6, 3)
    losses = []
    for _ in range(12):
        loss = (head(module(x)[0][:, -1])[:, 0] - x.sum((1, 2)) / 8).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
