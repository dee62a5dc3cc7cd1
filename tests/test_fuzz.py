"""A short run of the fuzzer of the gate; ``tests/fuzz/gate.py`` makes long ones."""

from __future__ import annotations

import pytest
import torch

from fuzz.gate import fuzz


@pytest.mark.parametrize("part", range(4))
def test_random_calls(part: int) -> None:
    """Each call is refused or answered rightly; a failure names the call."""
    torch.set_num_threads(1 + part % 2)
    outcomes = {fuzz(number) for number in range(300 * part, 300 * (part + 1))}
    assert {"refused", "answered"} <= outcomes
