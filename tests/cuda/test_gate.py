"""What the gate to the CUDA engine hands over, refuses, and says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import _cuda_emulated
import fastrnn
from _support import Case, twin
from fastrnn import _cuda_device, _cuda_ops


class Spy:
    """The emulated module, with the arguments of each pass written down."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(_cuda_emulated.module(), name)
        if name not in ("forward", "backward"):
            return found

        def noted(*args: Any) -> None:
            self.calls.append((name, args))
            found(*args)

        return noted


@pytest.fixture
def spy(emulated: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    emulated.setattr(_cuda_device, "module", lambda: spy)
    return spy


def test_calls_go_to_the_current_stream_of_the_tensors_device(
    spy: Spy, emulated: pytest.MonkeyPatch
) -> None:
    devices = []

    @contextlib.contextmanager
    def current(device: torch.device) -> Iterator[int]:
        devices.append(device)
        yield 77

    emulated.setattr(_cuda_device, "current", current)
    fastrnn.GRU(3, 4)(torch.randn(5, 2, 3))[0].sum().backward()
    assert [name for name, _ in spy.calls] == ["forward", "backward"]
    assert all(args[-1] == 77 for _, args in spy.calls)
    assert set(devices) == {torch.device("cpu")}


def test_inference_keeps_nothing(spy: Spy) -> None:
    with torch.no_grad():
        fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
    ((_, args),) = spy.calls
    assert args[-3] == 0  # the reserve


def test_dense_input_is_not_copied(spy: Spy) -> None:
    """y is written where it stays, whatever its layout."""
    for batch_first in (False, True):
        module = fastrnn.GRU(3, 4, batch_first=batch_first)
        with torch.no_grad():
            y = module(torch.randn(5, 2, 3))[0]
        args = spy.calls[-1][1]
        assert args[11] == y.data_ptr()
        assert args[12:14] == ((4, 8) if batch_first else (8, 4))


def test_capture(emulated: pytest.MonkeyPatch) -> None:
    module, x = fastrnn.GRU(3, 4), torch.randn(5, 2, 3)
    emulated.setattr(_cuda_device, "capturing", lambda: True)
    module(x)[0].sum().backward()
    for call in (
        lambda: module(x, lengths=[5, 3]),
        lambda: module(x, reset_mask=torch.zeros(5, 2, dtype=torch.bool)),
        lambda: module(pack_sequence([x[:, 0], x[:3, 1]])),
    ):
        with pytest.raises(RuntimeError, match="GRU: packed input, lengths and reset_mask"):
            call()


def test_what_the_cpu_alone_does(emulated: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 2, 3)
    module = fastrnn.GRU(3, 4, checkpoint_every=2)
    with pytest.raises(NotImplementedError, match=r"GRU: checkpoint_every is for the CPU only"):
        module(x)
    with torch.no_grad():
        module(x)  # nothing is kept, so there is nothing to keep less of
    quantized = fastrnn.quantize_dynamic(fastrnn.GRU(3, 4))
    with pytest.raises(NotImplementedError, match="a quantized module is for the CPU only"):
        quantized(x)


def test_autocast_within_backward_changes_nothing(emulated: pytest.MonkeyPatch) -> None:
    case = Case("lstm")
    gradients = []
    for enabled in (False, True):
        module = twin(case)[0]
        y = module(case.inputs()["x"])[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y.sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    for plain, mixed in zip(*gradients, strict=True):
        assert torch.equal(plain, mixed)


def test_autocast_runs_in_its_dtype(spy: Spy) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
    assert y.dtype is torch.bfloat16
    assert len(spy.calls) == 1


def test_the_operators_pass_torchs_checks(emulated: pytest.MonkeyPatch) -> None:
    module = fastrnn.GRU(3, 4)
    layer = module._stack().time_major[0]
    weights = [*module._weights()[0], *(None,) * 5]
    arguments = (torch.randn(5, 2, 3), None, None, 0, 0, 0, layer.key, True, None, None, *weights)
    torch.library.opcheck(torch.ops.fastrnn.forward, arguments)


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru", "proj"])
def test_compiled(cell: str, emulated: pytest.MonkeyPatch) -> None:
    case = Case(cell, bidirectional=True)
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)):
        module = twin(case)[0]
        x = case.inputs()["x"].requires_grad_()
        y = wrap(module)(x)[0]
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=0, atol=0)


def message(versions: tuple[int, int]) -> str:
    with pytest.raises(RuntimeError) as caught:
        _cuda_device._check_driver(*versions)
    return str(caught.value)


def test_driver_too_old() -> None:
    assert message((12040, 13000)) == (
        "fastrnn: the NVIDIA driver must be for CUDA 13, release 580 or later, got one for CUDA "
        "12.4; update the driver, or use torch.nn on this GPU"
    )
    assert "got none" in message((0, 13000))
    _cuda_device._check_driver(13010, 13000)
    _cuda_device._check_driver(13000, 13020)  # of the same major version: it runs
    _cuda_device._check_driver(14000, 13000)


def test_gpu_too_old(spy: Spy) -> None:
    _cuda_device.properties.cache_clear()
    spy.device_properties = lambda: SimpleNamespace(major=7, minor=0)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"must have compute capability 7.5 or later, got 7.0"):
        fastrnn.GRU(3, 4)(torch.randn(5, 2, 3))
    _cuda_device.properties.cache_clear()


def test_build_without_kernels(emulated: pytest.MonkeyPatch) -> None:
    emulated.setattr(_cuda_device, "module", lambda: SimpleNamespace(has_kernels=False))
    with pytest.raises(RuntimeError, match=r"this installation has no CUDA kernels.*wheel-cuda"):
        fastrnn.GRU(3, 4)(torch.randn(5, 2, 3))


def test_planning_is_done_once(spy: Spy, emulated: pytest.MonkeyPatch) -> None:
    module = fastrnn.GRU(3, 4)
    with torch.no_grad():
        for T in (2, 3, 4):
            module(torch.randn(T, 2, 3))
    assert _cuda_ops._plan.cache_info().misses == 1
