"""Time a fit by each solver of the readout: python benchmarks/esn_solvers.py.

T = 10,000 steps, float64, one thread, density 1%; the median of three runs, in microseconds a step.
"""

from __future__ import annotations

import statistics
import time

import torch

from fastrnn.reservoir import ESN, Reservoir, Ridge

STEPS = 10_000


def main() -> None:
    torch.set_num_threads(1)
    x = torch.randn(STEPS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    print("| N | " + " | ".join(solvers := ("cholesky", "cholqr3", "tsqr")) + " |")
    print("|---|---|---|---|")
    for size in (100, 500, 1000):
        reservoir = Reservoir(3, size, density=0.01, dtype=torch.float64)
        times: dict[str, list[float]] = {solver: [] for solver in solvers}
        for _ in range(3):
            for solver in solvers:
                esn = ESN(3, 3, reservoir=reservoir, readout=Ridge(1e-4, solver))
                begin = time.perf_counter()
                esn.fit(x[:-1], x[1:], washout=100)
                times[solver].append((time.perf_counter() - begin) / STEPS * 1e6)
        medians = [f"{statistics.median(times[solver]):.1f}" for solver in solvers]
        print(f"| {size} | " + " | ".join(medians) + " |")


if __name__ == "__main__":
    main()
