"""The GPU benchmark: cuDNN's algorithms by torch's rules, its report, and a run on the emulator."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import _cuda_emulated
from _support import ROOT, output_of, python

BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no benchmarks")
sys.path.insert(0, str(BENCHMARKS))

CUDNN = 91300
H100 = (9, 0, 132, CUDNN)
STANDARD, SMALL, PERSISTENT = "standard", "small-H", "persistent static"


def algorithm(gpu: tuple[int, ...], backward: bool = False, **call: Any) -> str:
    gpu_cudnn = pytest.importorskip("gpu_cudnn")
    usual = gpu_cudnn.Layer("lstm", "float16", T=50, B=32, I=256, H=256)
    return gpu_cudnn.algorithm(replace(usual, **call), gpu_cudnn.Gpu(*gpu), backward)


@pytest.mark.parametrize(
    ("call", "forward", "backward"),
    [
        ({}, PERSISTENT, PERSISTENT),
        ({"dtype": "float32"}, STANDARD, STANDARD),
        ({"dtype": "bfloat16"}, STANDARD, STANDARD),
        ({"H": 192}, SMALL, STANDARD),
        ({"H": 128}, SMALL, SMALL),
        ({"H": 128, "dtype": "float64"}, STANDARD, STANDARD),
        ({"H": 128, "packed": True}, STANDARD, STANDARD),
        ({"H": 128, "projected": True}, STANDARD, STANDARD),
        ({"cell": "elman", "H": 384}, SMALL, PERSISTENT),
        ({"cell": "elman", "H": 256, "dtype": "float32"}, SMALL, SMALL),
        ({"cell": "elman", "H": 896, "B": 96}, STANDARD, STANDARD),
        ({"cell": "elman", "H": 896, "B": 88}, PERSISTENT, PERSISTENT),
        ({"cell": "gru"}, STANDARD, STANDARD),
        ({"H": 1024, "B": 128}, PERSISTENT, PERSISTENT),
        ({"H": 1024, "B": 136}, STANDARD, STANDARD),
        ({"H": 1024, "B": 4}, STANDARD, STANDARD),
        ({"H": 1152}, STANDARD, STANDARD),
        ({"I": 100}, STANDARD, STANDARD),
        ({"layers": 2}, STANDARD, STANDARD),
        ({"directions": 2}, STANDARD, STANDARD),
    ],
    ids=str,
)
def test_algorithm_on_h100(call: dict[str, Any], forward: str, backward: str) -> None:
    assert algorithm(H100, **call) == forward
    assert algorithm(H100, backward=True, **call) == backward


def test_algorithm_on_other_gpus() -> None:
    assert algorithm((7, 5, 40, CUDNN)) == STANDARD
    assert algorithm((8, 6, 128, CUDNN)) == STANDARD
    assert algorithm((8, 9, 128, CUDNN)) == PERSISTENT
    assert algorithm((8, 0, 56, CUDNN)) == STANDARD  # fewer than 98 multiprocessors
    assert algorithm((7, 0, 80, CUDNN)) == PERSISTENT
    assert algorithm((7, 0, 80, CUDNN), B=80, T=60) == STANDARD
    assert algorithm((7, 0, 80, CUDNN), T=8) == STANDARD
    for gpu in ((9, 0, 132, 91002), (7, 5, 40, CUDNN)):
        assert algorithm(gpu, dtype="bfloat16").startswith("not cuDNN")


def test_cases_are_what_they_are_asked_to_be() -> None:
    registry = pytest.importorskip("registry")
    for ragged in (False, True):
        listed = registry.cases("all", ("lstm",), ("inference", "streaming"), "float32", ragged)
        assert {case.source for case in listed} == {"everyday", "deepbench"}
        assert not any(case.padded for case in listed)
        assert {case.ragged for case in listed if case.mode == "inference"} == {ragged}


def made_up(mode: str, dtype: str, times: dict[str, float]) -> dict[str, Any]:
    names = {"fastrnn": "persistent", "torch": STANDARD}
    sides = {
        name: {"median": seconds, "memory": 1_000_000, "algorithm": names.get(name, "")}
        for name, seconds in times.items()
    }
    case = {"cell": "lstm", "mode": mode, "T": 10, "B": 2, "I": 4, "H": 8, "dtype": dtype}
    return {"case": case, "sides": sides, "not_timed": {}}


def test_report_marks_losses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    import gpu_report

    won = made_up("inference", "float16", {"fastrnn": 1e-3, "torch": 2e-3, "input product": 4e-4})
    lost = made_up("training", "float32", {"fastrnn": 4e-3, "torch": 2e-3, "input product": 1e-3})
    assert "2.00 " in gpu_report.row(won, ["torch"])
    assert "0.50!" in gpu_report.row(lost, ["torch"])
    assert gpu_report.recurrence(won, "fastrnn") == pytest.approx(6e-4)
    text = "\n".join(gpu_report.summary([won, lost]))
    assert "Losses: 1" in text
    assert "lstm training 10,2,4,8 float32: 0.50 against torch standard" in text
    run = {"device": {"name": "made up", "torch": "2"}, "results": [won, lost]}
    gpu_report.plot(run, tmp_path / "made_up.png")
    assert (tmp_path / "made_up.png").read_bytes().startswith(b"\x89PNG")


def test_emulated_run(tmp_path: Path) -> None:
    """The script works from end to end, compares with torch, and gives no times."""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    pytest.importorskip("tqdm", reason="needs tqdm")
    if _cuda_emulated.module() is None:
        pytest.skip(_cuda_emulated.BUILD)
    file, picture = tmp_path / "gpu.json", tmp_path / "gpu.png"
    options = ["--device", "emulated", "--json", str(file), "--png", str(picture)]
    printed = output_of(python(BENCHMARKS / "gpu.py", *options))
    assert "nothing was timed" in printed
    results = json.loads(file.read_text())["results"]
    found = {(r["case"]["cell"], r["case"]["mode"], r["case"]["dtype"]) for r in results}
    assert len(found) == 3 * 2 * 4
    for result in results:
        for side in result["sides"].values():
            assert side["median"] is None
            assert side["samples"] == []
        assert result["sides"]["fastrnn"]["difference"] >= 0
    assert picture.read_bytes().startswith(b"\x89PNG")
