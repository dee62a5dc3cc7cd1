"""Training on two processes equals training on one, and goes on after a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrnn
from _support import ROOT

EXAMPLE = ROOT / "examples" / "distributed.py"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
STEPS = 14

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not EXAMPLE.is_file(),
    reason="needs torch.distributed and the examples",
)


def run(folder: Path, *options: str, processes: int = 1) -> list[tuple[int, float]]:
    """Run the example; return the steps and losses it printed, in this order."""
    launcher = (*TORCHRUN, "--max-restarts", "1") if processes > 1 else ()
    sizes = ("--steps", str(STEPS), "--batch", "8", "--length", "7", "--hidden", "9")
    result = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLE), *sizes, "--checkpoint-every", "5", *options],
        env=os.environ
        | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = re.findall(r"^step (\d+) loss (\S+)$", result.stdout, re.MULTILINE)
    return [(int(step), float(loss)) for step, loss in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    """Return the losses of one process, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("alone")
    steps, losses = zip(*run(folder), strict=True)
    assert steps == tuple(range(STEPS))
    assert len(set(losses)) == STEPS
    return list(losses), folder


def test_goes_on_from_a_checkpoint(alone: tuple[list[float], Path]) -> None:
    """A second start does the steps since the checkpoint again, with the same losses, bitwise."""
    losses, folder = alone
    assert run(folder) == list(enumerate(losses))[10:]


@pytest.mark.parametrize("parallel", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_processes_with_a_failure(
    alone: tuple[list[float], Path], parallel: tuple[str, ...], tmp_path: Path
) -> None:
    """One of two processes fails; torchrun starts both again; the losses are those of one."""
    lines = run(tmp_path, *parallel, "--fail-at", "8", processes=2)
    first, second = lines[:8], lines[8:]
    assert [step for step, _ in first] == list(range(8))
    assert [step for step, _ in second] == list(range(5, STEPS))
    assert second[:3] == first[5:]  # bitwise: the same number of processes
    assert [loss for _, loss in first[:5] + second] == pytest.approx(alone[0], rel=1e-5)
    # What two processes saved, sharded or not, a single one goes on from.
    steps, losses = zip(*run(tmp_path), strict=True)
    assert steps == tuple(range(10, STEPS))
    assert list(losses) == pytest.approx(alone[0][10:], rel=1e-5)
