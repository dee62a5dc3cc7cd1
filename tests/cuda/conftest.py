"""All tests here run the CUDA engine, its kernels emulated, unless they are about plans alone."""

from __future__ import annotations

import pytest

import _cuda_emulated


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Send tensors on the CPU to the emulated kernels; return what undoes it."""
    _cuda_emulated.install(monkeypatch)
    return monkeypatch


@pytest.fixture(params=["step", "persistent"])
def kernel(request: pytest.FixtureRequest, emulated: pytest.MonkeyPatch) -> str:
    """Run one kind of kernel, whatever the model says is faster."""
    _cuda_emulated.use_kernel(emulated, request.param)
    return request.param  # type: ignore[no-any-return]
