"""A build says what to do when it cannot build the CUDA kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from _support import ROOT

CMAKE = shutil.which("cmake")
pytestmark = [
    pytest.mark.skipif(CMAKE is None, reason="needs cmake"),
    pytest.mark.skipif(not (ROOT / "cmake").is_dir(), reason="no sources"),
]


def configure(nvcc: Path, **options: str) -> tuple[int, str]:
    """Run what decides about the CUDA kernels; return its exit status and words, on one line."""
    command = [str(CMAKE), *(f"-D{name}={value}" for name, value in options.items())]
    done = subprocess.run(
        [*command, "-P", str(ROOT / "cmake" / "cuda_toolkit.cmake")],
        env=os.environ | {"CUDACXX": str(nvcc)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def fake_nvcc(folder: Path, script: str) -> Path:
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    return nvcc


def release(number: str) -> str:
    return f"echo 'Cuda compilation tools, release {number}, V{number}.1'"


def test_without_nvcc_the_cpu_only_build_goes_on(tmp_path: Path) -> None:
    status, text = configure(tmp_path / "nvcc", FASTRNN_CUDA="AUTO")
    assert status == 0
    assert "nvcc not found" in text
    assert "building the CPU-only package" in text
    assert "install the CUDA toolkit, 12.8 or later, or set CUDACXX" in text


def test_without_nvcc_a_cuda_build_fails(tmp_path: Path) -> None:
    status, text = configure(tmp_path / "nvcc", FASTRNN_CUDA="ON")
    assert status != 0
    assert f"CUDACXX is {tmp_path / 'nvcc'}, which is no program" in text
    assert "for a CPU-only package, set FASTRNN_CUDA=OFF" in text


@pytest.mark.parametrize("wanted", ["AUTO", "ON"])
def test_old_nvcc(tmp_path: Path, wanted: str) -> None:
    status, text = configure(fake_nvcc(tmp_path, release("12.4")), FASTRNN_CUDA=wanted)
    assert status != 0
    assert "is of CUDA 12.4, the CUDA kernels need 12.8 or later" in text
    assert "set CUDACXX to its nvcc" in text


def test_broken_nvcc(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, "echo 'no such toolkit' >&2; exit 3")
    status, text = configure(nvcc, FASTRNN_CUDA="ON")
    assert status != 0
    assert "--version does not work (3): no such toolkit" in text


@pytest.mark.parametrize("number", ["12.8", "13.0", "14.2"])
def test_recent_nvcc(tmp_path: Path, number: str) -> None:
    status, text = configure(fake_nvcc(tmp_path, release(number)), FASTRNN_CUDA="AUTO")
    assert status == 0
    assert f"CUDA kernels: nvcc {number}" in text


def test_unsupported_architecture(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, release("13.0"))
    status, text = configure(nvcc, FASTRNN_CUDA="ON", FASTRNN_CUDA_ARCHITECTURES="80;70")
    assert status != 0
    assert "FASTRNN_CUDA_ARCHITECTURES has 70" in text
    assert "Supported: 75;80;86;89;90;100;120." in text
    status, text = configure(nvcc, FASTRNN_CUDA="ON", FASTRNN_CUDA_ARCHITECTURES="80;90")
    assert status == 0
    status, text = configure(nvcc, FASTRNN_CUDA="ON", FASTRNN_CUDA_ARCHITECTURES="")
    assert status != 0


def test_option_off_and_wrong(tmp_path: Path) -> None:
    assert configure(tmp_path / "nvcc", FASTRNN_CUDA="OFF") == (0, "")
    status, text = configure(tmp_path / "nvcc", FASTRNN_CUDA="MAYBE")
    assert status != 0
    assert "FASTRNN_CUDA must be AUTO, ON or OFF, got MAYBE" in text


def test_pip_builds_it_only_when_asked() -> None:
    """Compiling the kernels takes minutes, which a machine that merely has nvcc must not pay."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'cmake.define.FASTRNN_CUDA = "OFF"' in text
