"""The one table of tolerances: how far a result may lie from the truth, and why.

A tensor's error may be ``max(ratio * yardstick, floor * eps * scale) * (1 + 2 / sqrt(n))``.

``yardstick`` is the error of torch.nn on the same input. ``scale`` is the size of the true tensor,
or of the numbers that cancelled in it: what half an eps more or less in each input and weight moves
it by, divided by half an eps. Errors and sizes are measured alike, by the root of the mean square
or by the largest magnitude. The contract is held to the first, for the largest of many rounding
errors is a matter of luck (torch's own differs by a factor of 3 from seed to seed); the second
bounds how far a single number may stray. n is how many numbers the tensor has: a root mean square
of n errors, ours or torch's, has a relative standard deviation of 1 / sqrt(2 n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """One row of the table."""

    ratio: float
    floor: float
    reason: str


TOLERANCES = {
    (torch.float32, "accuracy"): Tolerance(
        2,
        4,
        "The contract, for the root mean square. The truth is torch.nn in float64 on the same "
        "values.",
    ),
    (torch.float32, "outlier"): Tolerance(
        4,
        16,
        "For the largest error. Of a thousand normal errors one is 3.3 times their root mean "
        "square, which may itself be twice torch's. A wrong term is far larger.",
    ),
    (torch.float64, "outlier"): Tolerance(6, 24, "As for float32, by the ratio of the two dtypes."),
    (torch.float64, "accuracy"): Tolerance(
        3,
        6,
        "The contract again, but the truth is torch.nn in the same precision. Its error is "
        "unknown, so the error of its float32 run in units of eps stands in; the truth may be "
        "off by that much itself, which adds 1 to the ratio and, where the floor holds and that "
        "error is thus at most half of it, 2 to the floor.",
    ),
    (torch.bfloat16, "accuracy"): Tolerance(
        2,
        4,
        "As for float32. The truth takes the weights and inputs as they are rounded to bfloat16, "
        "the yardstick is torch.nn in bfloat16.",
    ),
    (torch.bfloat16, "outlier"): Tolerance(4, 16, "As for float32."),
    (torch.float16, "accuracy"): Tolerance(2, 4, "As for bfloat16."),
    (torch.float16, "outlier"): Tolerance(4, 16, "As for float32."),
    (torch.float32, "transcendental"): Tolerance(
        0,
        4,
        "The floor of the contract, number by number: tanh and sigmoid seen through a cell whose "
        "weights are 0 and 1, so no other rounding is involved.",
    ),
    (torch.float64, "transcendental"): Tolerance(
        0,
        5,
        "As for float32, and 1 for the libm of the truth, which is float64 as well.",
    ),
    (torch.float32, "isa"): Tolerance(
        4,
        8,
        "Two ISAs sum in another order, and each may be off by the contract's bound.",
    ),
    (torch.float64, "isa"): Tolerance(4, 12, "As for float32, with the floors of float64."),
}

# A loss curve of a training run: each optimiser step feeds rounding back through Adam, whose first
# steps divide by gradients as small as the rounding. Design value for the digit classifier.
LOSS_CURVE = 1e-3


def eps(dtype: torch.dtype) -> float:
    """Return the spacing of ``dtype`` at 1."""
    return torch.finfo(dtype).eps


def bound(
    kind: str, dtype: torch.dtype, yardstick: float, scale: float, count: float = math.inf
) -> float:
    """Return the largest error allowed, of ``count`` numbers; the rest as in the text above."""
    row = TOLERANCES[dtype, kind]
    few = 1 + 2 / math.sqrt(max(count, 1))
    return max(row.ratio * yardstick, row.floor * eps(dtype) * scale) * few
