"""What benchmarks/report.py makes of a run: the bound of a case, and means over cases."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from _support import ROOT

BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no benchmarks")
sys.path.insert(0, str(BENCHMARKS))


def result(mode: str, B: int, **sides: float) -> dict[str, Any]:
    """An LSTM of I = 128, H = 384 over 10 steps; 100 GFLOP/s and 10 GB/s a thread."""
    T, I, H = 10, 128, 384
    passes, streaming = 2 if mode == "training" else 1, mode == "streaming"
    reread = 4 * H * (H + streaming * I) * 4
    return {
        "case": {"cell": "lstm", "mode": mode, "T": T, "B": B, "I": I, "H": H},
        "flops": 2 * T * B * 4 * H * (I + H) * (3 if mode == "training" else 1),
        "bytes": passes * (T * reread + (not streaming) * 4 * H * I * 4),
        "reread_bytes": reread,
        "fma_peak": 100.0,
        "read_bandwidth": 10.0,
        "sides": {name: {"median": seconds} for name, seconds in sides.items()},
    }


INPUTS, RECURRENT = 2 * 4 * 384 * 128 / 100e9, 2 * 4 * 384 * 384 / 100e9  # of a row, at the peak
W_IH, W_HH = 4 * 4 * 384 * 128 / 10e9, 4 * 4 * 384 * 384 / 10e9  # to be read


@pytest.mark.parametrize(
    ("mode", "B", "expected"),
    [
        ("inference", 1, 10 * (INPUTS + W_HH)),
        ("inference", 64, 10 * 64 * (INPUTS + RECURRENT)),
        # Forwards, backwards, and the gradients of both weights.
        ("training", 1, 10 * (INPUTS + W_HH + INPUTS + W_HH + INPUTS + RECURRENT)),
        ("training", 64, 3 * 10 * 64 * (INPUTS + RECURRENT)),
        ("streaming", 1, 10 * (W_IH + W_HH)),
    ],
)
def test_bound_by_hand(mode: str, B: int, expected: float) -> None:
    report = pytest.importorskip("report", reason="matplotlib is not installed")
    assert report.bound(result(mode, B)) == pytest.approx(expected, rel=1e-12)


def test_means_over_the_bound() -> None:
    report = pytest.importorskip("report", reason="matplotlib is not installed")
    least = report.bound(result("inference", 1))
    results = [
        result("inference", 1, fastrnn=least, torch=2 * least, jax=8 * least),
        result("inference", 1, fastrnn=4 * least, torch=8 * least, jax=2 * least),
    ]
    lines = report.bounds({"threads": 1, "results": results})
    assert lines[-1].split() == (
        "inference lstm fastrnn 2.00, torch 4.00, jax 4.00, fastest peer 2.00".split()
    )
    assert report.bounds({"threads": 2, "results": results}) == []
    results[0]["read_bandwidth"] = None
    assert "fastrnn 4.00, torch 8.00" in report.bounds({"threads": 1, "results": results})[-1]
    results[1]["fma_peak"] = None
    assert report.bounds({"threads": 1, "results": results}) == []
