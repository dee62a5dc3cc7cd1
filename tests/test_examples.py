"""The examples run and reach what their documentation says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
import tolerances
from _support import ROOT

DIGITS = ROOT / "examples" / "digits_rows.py"


def run_digits(tmp_path: Path, *options: str) -> tuple[dict[str, float], float]:
    """Run the digit classifier; return the accuracies, and the loss curves' distance in float64."""
    for name in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"the example needs {name}")
    picture = tmp_path / "digits.png"
    result = subprocess.run(
        [sys.executable, str(DIGITS), *options, "--output", str(picture)],
        env=os.environ | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1])},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    accuracies = re.findall(r"^(\S+): validation accuracy ([\d.]+)", result.stdout, re.MULTILINE)
    [difference] = re.findall(r"loss curves, torch\.float64: (\S+)", result.stdout)
    assert {name for name, _ in accuracies} == {"fastrnn", "torch.nn"}
    return {name: float(value) for name, value in accuracies}, float(difference)


def test_digits_rows(tmp_path: Path) -> None:
    accuracies, difference = run_digits(tmp_path, "--quick")
    assert difference <= tolerances.LOSS_CURVE
    assert accuracies["fastrnn"] >= 0.4  # two epochs; ten classes
    assert abs(accuracies["fastrnn"] - accuracies["torch.nn"]) <= 0.05


def test_digits_rows_on_mnist(tmp_path: Path, mnist: Path) -> None:
    accuracies, difference = run_digits(tmp_path, "--quick", "--data", str(mnist))
    assert difference <= tolerances.LOSS_CURVE
    assert accuracies["fastrnn"] >= 0.25
    assert abs(accuracies["fastrnn"] - accuracies["torch.nn"]) <= 0.05


def test_fewer_bits(tmp_path: Path) -> None:
    for name in ("sklearn", "tqdm"):
        pytest.importorskip(name, reason=f"the example needs {name}")
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "fewer_bits.py"), "--quick"],
        env=os.environ | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1])},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[2:]}
    assert set(rows) == {"float32", "bfloat16", "float16", "int8"}
    exact = rows.pop("float32")
    assert float(exact[0]) >= 0.5  # two epochs; ten classes
    for accuracy, _changed, distance, _ms, size in rows.values():
        assert abs(float(accuracy) - float(exact[0])) <= 0.02
        assert 0 < float(distance) <= 0.1
        assert float(size) <= 0.51 * float(exact[4])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_are_short(path: Path) -> None:
    """One file an application, small enough to read in one go."""
    assert len(path.read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", ["esn_lorenz", "esn_mackey_glass"])
def test_echo_state_networks(tmp_path: Path, name: str) -> None:
    for needed in ("matplotlib", "tqdm"):
        pytest.importorskip(needed, reason=f"the example needs {needed}")
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--quick"]
    result = subprocess.run(
        [*command, "--output", str(picture)],
        env=os.environ | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1])},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    if name == "esn_lorenz":
        valid = re.findall(r"valid for ([\d.]+) Lyapunov", result.stdout + result.stderr)
        assert len(valid) == 3
        assert max(map(float, valid)) > 4
    else:
        [score] = re.findall(r"NRMSE_84 over 5 series: (\S+)", result.stdout)
        assert float(score) < 0.2


def test_gradient_penalty(tmp_path: Path) -> None:
    """With the penalty the critic's slope is near one, without it is steeper."""
    pytest.importorskip("tqdm", reason="the example needs tqdm")
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "gradient_penalty.py"), "--steps", "100"],
        env=os.environ | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1])},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = re.findall(r"difference (\S+), slope (\S+)", result.stdout)
    (_, free), (difference, held) = (tuple(map(float, line)) for line in lines)
    assert 0.7 < held < 1.3 < free
    assert difference > 0.5
