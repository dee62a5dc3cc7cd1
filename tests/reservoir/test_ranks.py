"""Two processes, each with half of the series, have the fit of all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from fastrnn.reservoir import ESN, Ridge

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or sys.platform == "win32", reason="needs torch.distributed"
)
CASES = [
    {"alpha": 1e-4, "solver": "cholesky"},
    {"alpha": 0.0, "solver": "tsqr"},
    {"alpha": 1e-10, "solver": "cholqr3"},
    {"alpha": 1e-13, "solver": "auto"},
    {"alpha": [1e-6, 1e-2], "criterion": "kfold"},
]


def series() -> list[Tensor]:
    t = torch.arange(300, dtype=torch.float64)[:, None]
    return [
        torch.cat([torch.sin(t * (0.1 + 0.03 * k)), torch.cos(t * 0.17 + k)], 1) for k in range(5)
    ]


def network(case: dict[str, object], group: object) -> ESN:
    readout = Ridge(**case, fold_length=50, process_group=group)
    return ESN(2, 2, 30, density=0.3, dtype=torch.float64, readout=readout)


def fitted(case: dict[str, object], data: list[Tensor], group: object) -> ESN:
    esn = network(case, group)
    return esn.fit([x[:-1] for x in data], [x[1:] for x in data], washout=20)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    mine = series()[rank::2]
    results = []
    for case in CASES:
        esn = fitted(case, mine, "world")
        results.append((esn.readout.weight, esn.readout.bias, esn.readout.report))
    part = network(CASES[1], "world")
    for x in mine:
        part.partial_fit(x[:-1], x[1:], washout=20)
    part.finalize()
    part.finalize()  # the sums of a rank are its own: those of others are not added twice
    results.append((part.readout.weight, part.readout.bias, part.readout.report))
    constant = mine[0].clone()
    constant[:, 0] = 1.0 if rank == 0 else 2.0  # constant on each rank, but not on both
    network(CASES[0], "world").fit(constant[:-1], constant[1:])
    torch.save(results, Path(folder, f"rank{rank}.pt"))
    distributed.destroy_process_group()


def test_shards_equal_the_whole(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    x = torch.cat([part[:50] for part in series()])
    for case, one, other in zip([*CASES, CASES[1]], *ranks, strict=True):
        for a, b in zip(one[:2], other[:2], strict=True):
            assert torch.equal(a, b)
        assert one[2].rows == 5 * 279
        if case.get("criterion") == "kfold":
            continue
        whole = fitted(case, series(), None)
        assert one[2].solver == whole.readout.report.solver
        states = whole.reservoir(x)[0]
        expected = states @ whole.readout.weight.T + whole.readout.bias
        torch.testing.assert_close(states @ one[0].T + one[1], expected, rtol=1e-5, atol=1e-5)
