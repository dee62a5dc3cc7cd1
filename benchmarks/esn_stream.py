"""Fit series of 10^5 to 10^7 steps that never exist as a whole: python benchmarks/esn_stream.py.

The series comes in pieces of 10,000 steps, N = 500, float32 states. Printed are the time and the
growth of the process's memory during each fit: the latter does not depend on T.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastrnn.reservoir import ESN, Ridge

PIECE = 10_000


def resident() -> float:
    """Return the process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Waves:
    """Pairs (x, the next x), piece after piece, made when they are asked for."""

    def __init__(self, steps: int) -> None:
        self.steps, self.peak = steps, 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        speeds = torch.tensor([0.1, math.sqrt(2) / 10, math.pi / 50], dtype=torch.float64)
        for start in tqdm(range(0, self.steps, PIECE), desc=f"T = {self.steps:,}", unit="piece"):
            t = torch.arange(start, start + PIECE + 1, dtype=torch.float64)[:, None]
            x = torch.sin(t * speeds).sum(1, keepdim=True).float()
            yield x[:-1], x[1:]
            self.peak = max(self.peak, resident())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--solver", default="cholesky")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = []
    for steps in options.steps:
        source = Waves(steps)
        esn = ESN(1, 1, 500, density=0.01, readout=Ridge(1e-3 * steps / 1e5, options.solver))
        before, begin = resident(), time.perf_counter()
        esn.fit(source, washout=100, continued=True)
        seconds = time.perf_counter() - begin
        grown = source.peak - before
        rows.append(
            {"T": steps, "seconds": seconds, "MiB": grown, "us_per_step": seconds / steps * 1e6}
        )
        print(f"T = {steps:>10,}: {seconds:7.1f} s, memory grows by {grown:.0f} MiB", flush=True)
        print(f"    {esn.readout.report}")
    if options.output:
        content = {"N": 500, "density": 0.01, "threads": torch.get_num_threads(), "rows": rows}
        options.output.write_text(json.dumps(content | {"solver": options.solver}, indent=1) + "\n")


if __name__ == "__main__":
    main()
