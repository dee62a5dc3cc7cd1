"""A module always uses the weights that it has now, however they came to change."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from _support import CELLS, Case, Tensors, call, output_of, python, twin

Change = Callable[[Any], None]


def fused_step(module: Any) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def numpy_write(module: Any) -> None:
    for parameter in module.parameters():
        parameter.detach().numpy()[...] *= -1


def data_add(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data.add_(0.5)


def one_number(module: Any) -> None:
    """Change a single weight by a single unit in the last place."""
    last = list(module.parameters())[-1].data.view(-1)
    last[-1:] = torch.nextafter(last[-1:], torch.tensor([9.0], dtype=last.dtype))


def load(module: Any) -> None:
    module.load_state_dict({n: -t.clone() for n, t in module.state_dict().items()})


def load_assign(module: Any) -> None:
    module.load_state_dict({n: -t.clone() for n, t in module.state_dict().items()}, assign=True)


def replace(module: Any) -> None:
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(parameter.detach() * 2))


def swap_data(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data * 2


def swap_rows(module: Any) -> None:
    """The same numbers in another order: a plain sum over them would not see it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.flip(0))


def zero(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data.zero_()


def training_step(module: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with torch.enable_grad():
        module(torch.ones(3, 2, module.input_size, dtype=module.weight_ih_l0.dtype))[
            0
        ].sum().backward()
    optimizer.step()


CHANGES: list[Change] = [
    fused_step,
    numpy_write,
    data_add,
    one_number,
    load,
    load_assign,
    replace,
    swap_data,
    swap_rows,
    zero,
    training_step,
]


def infer(module: Any, case: Case) -> Tensors:
    with torch.no_grad():
        return call(module, case, case.inputs(next(module.parameters()).dtype))


def assert_fresh(module: Any, case: Case) -> None:
    """Compare with a module that has never been called with other weights."""
    fresh = case.module(sys.modules["fastrnn"], next(module.parameters()).dtype)
    fresh.load_state_dict(module.state_dict())
    expected = infer(fresh, case)
    for name, tensor in infer(module, case).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_change_is_seen(cell: str, change: Change, dtype: torch.dtype) -> None:
    case = Case(cell, 3, 4, 5, 9, 2, True)
    module = twin(case, dtype)[0].eval()
    for _ in range(3):  # a cache that needs a second call to fill is filled
        before = infer(module, case)
    change(module)
    assert_fresh(module, case)
    if change is not one_number:  # which need not reach the output
        assert not torch.equal(infer(module, case)["y"], before["y"])


@pytest.mark.parametrize("cell", CELLS)
def test_every_weight_is_watched(cell: str) -> None:
    """A change of any one number of any one parameter is seen."""
    case = Case(cell, 2, 3, 5, 9, bidirectional=True)
    module = twin(case)[0].eval()
    infer(module, case)
    for _, parameter in module.named_parameters():
        flat = parameter.data.view(-1)
        for index in {0, 1, flat.numel() // 2, flat.numel() - 2, flat.numel() - 1}:
            flat[index] += 1
            assert_fresh(module, case)


def test_back_and_forth() -> None:
    """Two sets of weights that take turns in the same memory."""
    case = Case("lstm", 3, 4, 5, 9)
    module = twin(case)[0].eval()
    kept = [p.detach().clone() for p in module.parameters()]
    first = infer(module, case)["y"]
    for _ in range(3):
        for parameter in module.parameters():
            parameter.data.neg_()
        assert not torch.equal(infer(module, case)["y"], first)
        for parameter, value in zip(module.parameters(), kept, strict=True):
            parameter.data.copy_(value)
        assert torch.equal(infer(module, case)["y"], first)


@pytest.mark.parametrize("cell", CELLS)
def test_functional_call_and_parametrization(cell: str) -> None:
    case = Case(cell, 3, 4, 5, 9)
    module = twin(case)[0].eval()
    before = infer(module, case)["y"]
    doubled = {n: p.detach() * 2 for n, p in module.named_parameters()}
    hx = {n: t for n, t in case.inputs().items() if n != "x"}
    states = (tuple(hx.values()) if case.is_lstm else hx["h0"],)
    with torch.no_grad():
        y = torch.func.functional_call(module, doubled, (case.inputs()["x"], *states))[0]
    other = twin(case)[0]
    other.load_state_dict(doubled)
    assert torch.equal(y, infer(other, case)["y"])
    assert torch.equal(infer(module, case)["y"], before)


@pytest.mark.skipif(sys.platform == "win32", reason="shared files differ on Windows")
def test_another_process_writes_shared_memory(tmp_path: Path) -> None:
    case = Case("gru", 3, 4, 5, 9)
    module = twin(case)[0].eval()
    files = []
    for name, parameter in module.named_parameters():
        path = tmp_path / name
        parameter.detach().numpy().tofile(path)
        shared = torch.from_file(str(path), shared=True, size=parameter.numel())
        parameter.data = shared.view(parameter.shape)
        files.append(str(path))
    before = infer(module, case)["y"]
    assert torch.equal(infer(module, case)["y"], before)
    write = (
        "import sys, numpy\n"
        "for path in sys.argv[1:]:\n"
        "    weights = numpy.memmap(path, numpy.float32, 'r+')\n"
        "    weights *= -1\n"
        "    weights.flush()\n"
    )
    result = subprocess.run([sys.executable, "-c", write, *files], timeout=60, check=False)
    assert result.returncode == 0
    assert not torch.equal(infer(module, case)["y"], before)
    assert_fresh(module, case)


SHARED = """
import torch, torch.multiprocessing as mp, fastrnn

def write(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.neg_()

if __name__ == "__main__":
    torch.manual_seed(0)
    module = fastrnn.LSTM(5, 9).share_memory().eval()
    x = torch.randn(3, 4, 5)
    with torch.no_grad():
        before = module(x)[0].clone()
    child = mp.get_context("spawn").Process(target=write, args=(module,))
    child.start()
    child.join(60)
    assert child.exitcode == 0, child.exitcode
    fresh = fastrnn.LSTM(5, 9)
    fresh.load_state_dict(module.state_dict())
    with torch.no_grad():
        after = module(x)[0]
        assert torch.equal(after, fresh(x)[0])
        assert not torch.equal(after, before)
    print("seen")
"""


def test_torch_multiprocessing(tmp_path: Path) -> None:
    """A module in shared memory, sent to another process that changes it there."""
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    runner = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    assert output_of(python(runner, str(script))).strip() == "seen"
