"""What only a GPU can show; all that does not need torch's CUDA runs on the emulated one too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import _cuda_emulated
import fastrnn
from fastrnn import _cuda_device, _cuda_ops

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS = ("RNN", "LSTM", "GRU")


@pytest.fixture(params=[pytest.param("cuda", marks=needs_gpu), "emulated"])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """Return where the CUDA engine's tensors are."""
    if request.param == "emulated":
        _cuda_emulated.install(monkeypatch)
    else:
        _cuda_emulated.set_tf32(monkeypatch, False)
    yield torch.device("cpu" if request.param == "emulated" else "cuda")
    _cuda_ops._plan.cache_clear()


def force(patch: pytest.MonkeyPatch, kernel: str) -> None:
    """Plan for this kernel, whatever the model says."""
    inner = _cuda_device.module()

    class Forced:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def plan(self, problem: Any, device: Any, backward: bool, tf32: bool) -> Any:
            return inner.plan(problem, device, backward, tf32, kernel)

    _cuda_ops._plan.cache_clear()
    patch.setattr(_cuda_device, "module", Forced)


def pass_through(module: Any, x: Tensor) -> list[Tensor]:
    """Return output, states, and the gradients of the input and the parameters."""
    x = x.detach().requires_grad_()
    y, states = module(x)
    states = states if isinstance(states, tuple) else (states,)
    torch.manual_seed(1)
    dy = torch.randn(y.shape).to(y)
    gradients = torch.autograd.grad(y, [x, *module.parameters()], dy)
    return [tensor.detach().cpu() for tensor in (y, *states, *gradients)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_kernels_agree(
    kind: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward the step and the persistent kernel give the same bits; each gives them every time."""
    module = getattr(fastrnn, kind)(12, 40).to(device, dtype)
    x = torch.randn(5, 19, 12).to(device, dtype)
    found = {}
    for kernel in ("step", "persistent"):
        with monkeypatch.context() as patch:
            force(patch, kernel)
            found[kernel], again = (pass_through(module, x) for _ in range(2))
            assert all(map(torch.equal, found[kernel], again))
    states = 3 if kind == "LSTM" else 2
    for step, persistent in zip(*(part[:states] for part in found.values()), strict=True):
        torch.testing.assert_close(persistent, step, rtol=0, atol=0)
    for step, persistent in zip(*(part[states:] for part in found.values()), strict=True):
        torch.testing.assert_close(persistent, step)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_largest_persistent(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that the plan says are resident together are so, at the largest size that it takes."""
    _cuda_emulated.set_tf32(monkeypatch, False)
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 needs compute capability 8.0")
    force(monkeypatch, "persistent")
    for hidden in range(4096, 0, -256):
        module = getattr(fastrnn, kind)(16, hidden).to("cuda", dtype)
        try:
            found = pass_through(module, torch.randn(4, 16, 16).to("cuda", dtype))
        except ValueError:
            continue  # the plan refuses
        assert all(torch.isfinite(tensor).all() for tensor in found)
        return
    raise AssertionError("no size is persistent")


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_graph(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured call, replayed on new input, gives what a plain one does."""
    module = getattr(fastrnn, kind)(12, 40).cuda().eval()
    x = torch.randn(5, 3, 12, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        module(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = module(x)[0]
    x.copy_(torch.randn(5, 3, 12))
    graph.replay()
    with torch.no_grad():
        assert torch.equal(y, module(x)[0])


@needs_gpu
def test_other_stream() -> None:
    """A call is of the caller's stream, behind what is there already."""
    module = fastrnn.LSTM(12, 40).cuda()
    x = torch.randn(5, 3, 12)
    expected = module(x.cuda())[0]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        y = module(x.pin_memory().to("cuda", non_blocking=True))[0]
    side.synchronize()
    assert torch.equal(y, expected)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_compile(kind: str) -> None:
    module, theirs = (getattr(space, kind)(12, 40).cuda() for space in (fastrnn, nn))
    x = torch.randn(5, 3, 12, device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        assert module(x)[0].dtype == theirs(x)[0].dtype
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], module(x)[0])
