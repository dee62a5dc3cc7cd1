"""Plans need no GPU and no kernels; what they say is what the kernels will do."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import _cuda_emulated
import fastrnn
from fastrnn import _cuda_device
from fastrnn.cells import CELLS

DEVICES = ["T4", "A100", "RTX3090", "L4", "RTX4090", "H100", "H200", "B200", "RTX5090"]
NO_KERNELS: dict[str, Any] = {"has_kernels": False, "Problem": lambda **_: None}
plan = fastrnn.cuda.plan


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_device_runs_every_cell(cell: str, device: str) -> None:
    for H in (1, 100, 1024, 5000):
        found = plan(cell, 32, H, device=device)
        for one in (found.forward, found.backward):
            assert one.kernel in ("step", "persistent")
            assert 0 < one.occupancy <= 1
            assert one.shared_bytes > one.weight_bytes >= 0
            assert one.blocks > 0
            assert one.step_us == pytest.approx(one.product_us + one.broadcast_us + one.wait_us)
            if one.kernel == "persistent":
                assert one.weight_bytes + one.register_bytes > 0
    assert plan(cell, 32, 5000, device=device).forward.kernel == "step"


def test_small_layers_stay_on_the_chip_of_an_h100() -> None:
    found = plan("lstm", B=16, H=512, dtype=torch.bfloat16)
    assert found.forward.kernel == found.backward.kernel == "persistent"
    assert found.forward.units * found.forward.blocks >= 512


def test_what_a_device_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or later, got 7\.5"):
        plan("lstm", 16, 64, torch.bfloat16, "T4")
    with pytest.raises(ValueError, match=r"device must be one of T4, A100, .* got Voodoo2"):
        plan("lstm", 16, 64, device="Voodoo2")


def test_a_gpu_of_this_machine(emulated: pytest.MonkeyPatch) -> None:
    """Its properties are the driver's: the emulated one is an H100 at 1 GHz."""
    found = plan("gru", 16, 256, torch.bfloat16, "cuda").forward
    assert found.kernel == plan("gru", 16, 256, torch.bfloat16, "H100").forward.kernel
    emulated.setattr(_cuda_device, "module", lambda: SimpleNamespace(**NO_KERNELS))
    _cuda_device.properties.cache_clear()
    with pytest.raises(RuntimeError, match="this installation has no CUDA kernels"):
        plan("gru", 16, 256, device="cuda:1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "transformer"}, "cell must be"),
        ({"B": 0}, "B must be at least 1, got 0"),
        ({"H": 0}, "H must be at least 1"),
        ({"dtype": torch.int8}, r"dtype must be one of torch.float32, .* got torch.int8"),
        ({"cell": "gru", "proj_size": 3}, "P must be 0"),
        ({"dtype": torch.float64, "tf32": True}, "tf32 is for float32"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"cell": "lstm", "B": 16, "H": 64, **options})  # type: ignore[arg-type]


def test_report() -> None:
    text = str(plan("gru", B=64, H=256, dtype=torch.bfloat16, bidirectional=True))
    assert text.startswith("gru, B=64, H=256, two directions, bfloat16 on H100\n")
    assert len(re.findall(r"^  (forward|backward): ", text, re.MULTILINE)) == 2
    assert text.count("model, not measured: ") == 2
    assert "occupancy" in text
    assert "KiB" in text


def test_more_weights_take_more_memory_and_time() -> None:
    small, large = (plan("lstm", 32, H, torch.float16).forward for H in (128, 4096))
    assert large.step_us > small.step_us
    assert large.broadcast_bytes > small.broadcast_bytes


@pytest.mark.parametrize("cell", CELLS)
def test_builds_without_kernels_plan_alike(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [
        str(plan(cell, B, H, dtype, device))
        for B, H, dtype, device in (
            (1, 64, torch.float32, "T4"),
            (48, 700, torch.bfloat16, "A100"),
            (128, 1024, torch.float16, "B200"),
            (7, 33, torch.float64, "L4"),
        )
    ]
    _cuda_emulated.install(monkeypatch)
    emulated = [
        str(plan(cell, B, H, dtype, device))
        for B, H, dtype, device in (
            (1, 64, torch.float32, "T4"),
            (48, 700, torch.bfloat16, "A100"),
            (128, 1024, torch.float16, "B200"),
            (7, 33, torch.float64, "L4"),
        )
    ]
    assert here == emulated
