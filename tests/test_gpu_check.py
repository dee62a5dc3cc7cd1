"""`make gpu-check` without a GPU: it says so, and its steps and report work on stand-ins."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import _cuda_emulated
from _support import ROOT

SCRIPT = ROOT / "tests" / "gpu_check.py"
gpu_check_module = functools.partial(importlib.import_module, "gpu_check")
pytestmark = pytest.mark.skipif(not (ROOT / "cmake").is_dir(), reason="no sources")


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def gpu_check(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it where the only programs besides the system's are those in the folder."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env=os.environ | {"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("options", [[], ["--architecture"]], ids=["check", "architecture"])
def test_without_a_gpu(tmp_path: Path, options: list[str]) -> None:
    program(tmp_path, "nvidia-smi", "echo 'no devices were found'; exit 6")
    done = gpu_check(tmp_path, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU: nvidia-smi names none")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("capability", "compiled"),
    [("7.5", 75), ("8.0", 80), ("8.7", 86), ("9.0", 90), ("10.3", 100), ("12.1", 120)],
)
def test_architecture(tmp_path: Path, capability: str, compiled: int) -> None:
    program(tmp_path, "nvidia-smi", f"echo {capability}")
    assert gpu_check(tmp_path, "--architecture").stdout.strip() == str(compiled)


def test_too_old_a_gpu(tmp_path: Path) -> None:
    program(tmp_path, "nvidia-smi", "echo 7.0")
    done = gpu_check(tmp_path, "--architecture")
    assert done.returncode != 0
    assert "the GPU's compute capability is 7.0, the least is 7.5" in done.stderr


# Passes on what it is asked to run as compute-sanitizer does, and finds a race.
SANITIZER = """
tool=$2; shift 6
echo "========= COMPUTE-SANITIZER $tool: $*"
if [ "$tool" = racecheck ]; then echo "========= Error: a race"; exit 9; fi
"""


def test_report(tmp_path: Path) -> None:
    """Every step's end is in the report, and one failure is the whole run's."""
    if _cuda_emulated.module() is None:
        pytest.skip(_cuda_emulated.BUILD)
    tests = tmp_path / "test_nothing.py"
    tests.write_text("def test(request): assert request.config.option.cuda_emulated\n")
    option = "parser.addoption('--cuda-emulated', action='store_true')"
    (tmp_path / "conftest.py").write_text(f"def pytest_addoption(parser): {option}\n")
    report = tmp_path / "report.md"
    sanitizer = program(tmp_path, "compute-sanitizer", SANITIZER)
    options = ["--device", "emulated", "--tests", str(tests), "--report", str(report)]
    done = gpu_check(tmp_path, *options, "--sanitizer", str(sanitizer))
    assert done.returncode == 1, done.stderr
    text = report.read_text()
    ends = {
        line.split(": ")[0].removeprefix("- "): line.split(": ")[1].split(",")[0]
        for line in text.splitlines()
        if line.startswith("- ")
    }
    assert ends == {
        "small cases": "passed",
        "tests on the device": "passed",
        "small cases under memcheck": "passed",
        "small cases under racecheck": "FAILED",
        "small cases under synccheck": "passed",
    }
    assert "========= Error: a race" in text
    assert "gpu_small.py --device emulated" in text


def test_steps_that_cannot_end_well(tmp_path: Path) -> None:
    missing = gpu_check_module().Step("missing", [str(tmp_path / "missing")], 5)
    assert not missing.run()
    assert missing.status == f"FAILED, no program {tmp_path / 'missing'}"
    endless = gpu_check_module().Step("endless", ["/bin/sh", "-c", "echo begun; sleep 30"], 0.5)
    assert not endless.run()
    assert endless.status == "FAILED, still running after 0.5 s"
    assert endless.output == "begun\n"
