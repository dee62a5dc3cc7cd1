"""``python -m fastrnn`` prints what a bug report needs."""

from __future__ import annotations

import runpy

import pytest
import torch

import fastrnn
from _support import output_of, python

core = pytest.importorskip("fastrnn._core")


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    runpy.run_module("fastrnn", run_name="__main__")
    report = capsys.readouterr().out
    lines = report.strip().splitlines()
    assert fastrnn.__version__ in report
    assert torch.__version__ in report
    for isa in core.available_isas():
        assert isa in report

    def line_about(word: str) -> str:
        found = [line for line in lines if word in line.lower()]
        assert found, f"nothing about {word} in:\n{report}"
        return " ".join(found)

    assert core.isa() in line_about("isa")
    assert "2" in line_about("thread")
    assert line_about("cuda")
    assert line_about("torch")
    assert line_about("python")


def test_forced_isa_is_shown() -> None:
    code = "import runpy; runpy.run_module('fastrnn', run_name='__main__')"
    report = output_of(python(code, FASTRNN_ISA=core.available_isas()[0]))
    assert core.available_isas()[0] in report


def test_version_is_one() -> None:
    from importlib import metadata

    assert core.version() == fastrnn.__version__
    try:
        assert metadata.version("fastrnn") == fastrnn.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("fastrnn is imported from its source folder, not installed")
