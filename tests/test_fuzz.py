"""Short runs of the fuzzers; ``tests/fuzz`` says how to make long ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuzz import gate, modules, second, streams


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(
    ("fuzz", "calls"),
    [(gate.fuzz, 300), (modules.fuzz, 150), (streams.fuzz, 40), (second.fuzz, 200)],
    ids=["gate", "modules", "streams", "second"],
)
def test_random_calls(fuzz: Callable[[int], str], calls: int, part: int) -> None:
    """Each call is refused or answered rightly; a failure names the call."""
    torch.set_num_threads(1 + part % 2)
    outcomes = {fuzz(number) for number in range(calls * part, calls * (part + 1))}
    assert {"refused", "answered"} <= outcomes
