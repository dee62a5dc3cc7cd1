"""Each instruction set of the machine, alone."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

import fastrnn
from _support import (
    CELLS,
    Case,
    Truth,
    assert_accurate,
    output_of,
    python,
    root_mean_square,
    truth,
)

core = pytest.importorskip("fastrnn._core")

AVAILABLE = core.available_isas()
KNOWN = ("baseline", "avx2", "avx512", "avx512_bf16", "amx", "neon")
PRINT = "import fastrnn._core as c; print(c.isa())"
CASES = [
    Case(cell, 9, 7, 11, 21, 2, True, layout=layout)
    for cell in CELLS
    for layout in ("dense", "unsorted")
]
RESULTS = """
import sys, torch
from test_isa import CASES
from _support import run
import fastrnn

dtypes = (torch.float32, torch.float64)
torch.save([run(c.module(fastrnn, d), c) for c in CASES for d in dtypes], sys.argv[1])
"""


def each_isa(test: object) -> object:
    return pytest.mark.parametrize("isa", KNOWN)(test)


def need(isa: str) -> None:
    if isa not in AVAILABLE:
        pytest.skip(f"{isa} is not available on this {platform.machine()} machine")


def test_what_is_available() -> None:
    machine = platform.machine()
    assert set(AVAILABLE) <= set(KNOWN)
    assert len(set(AVAILABLE)) == len(AVAILABLE)
    assert core.isa() in AVAILABLE
    if machine in ("x86_64", "AMD64"):
        assert "baseline" in AVAILABLE
    if machine in ("aarch64", "arm64"):
        assert AVAILABLE == ["neon"]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and machine == "x86_64":
        flags = cpuinfo.read_text().split()
        assert ("avx2" in AVAILABLE) == ("avx2" in flags and "fma" in flags)
        assert ("avx512" in AVAILABLE) == all(
            f"avx512{part}" in flags for part in "f bw dq vl".split()
        )
        assert ("avx512_bf16" in AVAILABLE) == all(
            f"avx512{part}" in flags for part in "f bw dq vl _vnni _bf16".split()
        )
        tiles = {"amx_tile", "amx_bf16", "amx_int8"} <= set(flags)
        assert "amx" not in AVAILABLE or tiles  # a system may have them and refuse them


@each_isa
def test_environment_forces_one(isa: str) -> None:
    need(isa)
    assert output_of(python(PRINT, FASTRNN_ISA=isa)).strip() == isa


def test_default_is_the_best() -> None:
    """Without the variable, the widest of those available."""
    found = output_of(python(PRINT, FASTRNN_ISA=None)).strip()
    assert found == max(AVAILABLE, key=KNOWN.index)


@pytest.mark.parametrize("name", ["avx3", "AVX2 ", "none", *sorted(set(KNOWN) - set(AVAILABLE))])
def test_unsupported_value_is_an_error(name: str) -> None:
    """At import, with a message that names the value and what there is."""
    result = python("import fastrnn", FASTRNN_ISA=name)
    assert result.returncode == 1, result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert name.strip() in last
    assert all(isa in result.stderr for isa in AVAILABLE)


def test_set_isa() -> None:
    """The switch for tests: each one in turn, and an error for others."""
    used = core.isa()
    module = fastrnn.LSTM(5, 19).eval()
    x = torch.randn(4, 3, 5)
    results = []
    try:
        with torch.inference_mode():
            for isa in [*AVAILABLE, *reversed(AVAILABLE)]:
                core.set_isa(isa)
                assert core.isa() == isa
                # Weights packed for one instruction set are no use to another.
                results.append(module(x)[0].clone())
        with pytest.raises(ValueError, match="avx3"):
            core.set_isa("avx3")
    finally:
        core.set_isa(used)
    for isa, first, again in zip(AVAILABLE, results, reversed(results), strict=False):
        assert torch.equal(first, again), isa
    for result in results:
        torch.testing.assert_close(result, results[0])


def test_results_agree(tmp_path: Path) -> None:
    """All instruction sets give the same results to within rounding."""
    results = {}
    for isa in AVAILABLE:
        path = tmp_path / f"{isa}.pt"
        output_of(python(RESULTS, str(path), FASTRNN_ISA=isa))
        results[isa] = iter(torch.load(path))
    for case in CASES:
        known = truth(case)
        for dtype in (torch.float32, torch.float64):
            found = {isa: next(result) for isa, result in results.items()}
            first = {n: t.double() for n, t in found[AVAILABLE[0]].items()}
            # The yardstick stays torch's error; the first ISA stands for the truth.
            offset = {n: first[n] - known.exact[n] for n in first}
            theirs = {n: known.theirs[n].double() + offset[n] for n in first}
            for isa in AVAILABLE:
                assert_accurate(found[isa], dtype, known)
                assert_accurate(found[isa], dtype, Truth(theirs, first), {"isa": root_mean_square})
