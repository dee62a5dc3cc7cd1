"""Poisoned memory, fixed seeds, and the switches every test runs under."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Test processes side by side have more threads than there are processors: torch's must not spin
# while they wait. Read when torch is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))  # the helpers, under any import mode

import _cuda_emulated  # noqa: E402
from fastrnn import _memory  # noqa: E402

MNIST = TESTS.parents[1] / "shared" / "data" / "mnist-10k"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    # torch.nn, the other side of the comparison, says this of its own LSTM with proj_size.
    config.addinivalue_line("filterwarnings", "ignore:LSTM with projections is not supported")
    config.addinivalue_line("markers", "cpu_engine: a promise of the CPU engine alone")
    config.addinivalue_line("markers", "core: the subset that `make isa-test` runs on every ISA")
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"  # a skipped test is always named


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-emulated",
        action="store_true",
        help="run the CUDA engine, its kernels emulated, on CPU tensors",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.cuda_emulated and "FASTRNN_TEST_DEVICE" not in os.environ:
        return
    others = [item for item in items if item.get_closest_marker("cpu_engine")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _poisoned(allocate: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = allocate(*args, **kwargs)
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.fill_(float("nan"))
            # Bytes of all ones are a NaN to whoever reads them as float32 or float64.
            return tensor.fill_(255 if tensor.dtype == torch.uint8 else -1)

    return poisoned


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, so that whatever is read before it is written shows."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    # Memory kept from an earlier call is not fresh.
    monkeypatch.setattr(_memory, "KEPT_SCRATCH", 0)


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """Seed torch, and put back the global state a test may have changed."""
    threads = torch.get_num_threads()
    torch.manual_seed(20240229)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the engine that the tests are for."""
    if request.config.option.cuda_emulated:
        _cuda_emulated.install(monkeypatch)
    elif "FASTRNN_TEST_DEVICE" in os.environ:
        _cuda_emulated.set_tf32(monkeypatch, False)


@pytest.fixture
def mnist() -> Path:
    """Return the folder of real digits in MNIST's format, which not every machine has."""
    if not MNIST.is_dir():
        pytest.skip(f"no MNIST files at {MNIST}")
    return MNIST
