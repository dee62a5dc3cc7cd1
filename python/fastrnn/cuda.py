"""How layers will run on a GPU. It takes no GPU to ask."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from . import _checks, _cuda_device

if TYPE_CHECKING:
    from . import _cuda

KIB = 1024


@dataclass(frozen=True)
class Pass:
    """How one pass, forward or backward, runs; times are a model's, nobody measured them.

    Args:
        kernel: ``"persistent"``, one launch for the whole sequence with the weights on chip, or
            ``"step"``, one launch for each time step.
        blocks: thread blocks of a launch, all directions.
        threads: threads of a block.
        units: hidden units of a block.
        rows: sequences of a block.
        splits: parts that a backward product is divided into among blocks; else 1.
        blocks_per_multiprocessor: blocks that fit on one multiprocessor by shared memory and
            threads.
        occupancy: the part of the GPU's threads that one launch keeps busy, 0 to 1.
        shared_bytes: shared memory of a block, in bytes.
        weight_bytes: of these, weights that stay there for the whole sequence.
        register_bytes: weights that stay in a block's registers for the whole sequence, in bytes.
        broadcast_bytes: what all blocks together read through the L2 cache in a step, in bytes.
        product_us: model: multiplying, microseconds of a step.
        broadcast_us: model: reading through L2, microseconds of a step.
        wait_us: model: launches or barriers, microseconds of a step.
        step_us: model: the sum of the three.
    """

    kernel: str
    blocks: int
    threads: int
    units: int
    rows: int
    splits: int
    blocks_per_multiprocessor: int
    occupancy: float
    shared_bytes: int
    weight_bytes: int
    register_bytes: int
    broadcast_bytes: int
    product_us: float
    broadcast_us: float
    wait_us: float
    step_us: float

    def __str__(self) -> str:
        split = f", {self.splits} parts of each product" if self.splits > 1 else ""
        return (
            f"{self.kernel} kernel, {self.blocks} blocks of {self.threads} threads: each "
            f"{self.units} units x {self.rows} sequences{split}\n"
            f"    occupancy {self.occupancy:.0%}; shared memory {_kib(self.shared_bytes)} a block, "
            f"{_kib(self.weight_bytes)} of it weights that stay, and {_kib(self.register_bytes)} "
            f"of weights in registers; {_kib(self.broadcast_bytes)} read through L2 a step\n"
            f"    model, not measured: {self.step_us:.2f} us a step (products "
            f"{self.product_us:.2f}, L2 {self.broadcast_us:.2f}, waiting {self.wait_us:.2f})"
        )


@dataclass(frozen=True)
class Plan:
    """How a layer runs on a GPU: printed, a short report.

    Args:
        title: what was asked for.
        forward: the forward pass.
        backward: the backward pass.
    """

    title: str
    forward: Pass
    backward: Pass

    def __str__(self) -> str:
        return f"{self.title}\n  forward: {self.forward}\n  backward: {self.backward}"


def plan(
    cell: str,
    B: int,
    H: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "H100",
    *,
    proj_size: int = 0,
    bidirectional: bool = False,
    tf32: bool = False,
) -> Plan:
    """Tell how a layer would run on a GPU, which need not be there.

    Times in it are a model's, made from data sheets and two assumptions (1.5 us for a barrier
    between all blocks, 2.5 us for a launch); they serve to choose among kernels, and nothing was
    measured. Products over the whole sequence, which are the same for every kernel, do not count.

    Args:
        cell: a name in ``fastrnn.cells.CELLS``.
        B: sequences of the batch, at least 1.
        H: hidden size, at least 1.
        dtype: of the parameters, ``torch.float32``, ``float64``, ``bfloat16`` or ``float16``.
            Default: ``torch.float32``.
        device: a GPU by the name of its data sheet (``"T4"``, ``"A100"``, ``"RTX3090"``, ``"L4"``,
            ``"RTX4090"``, ``"H100"``, ``"H200"``, ``"B200"``, ``"RTX5090"``), or one of this
            machine (``"cuda"``, ``"cuda:1"``). Default: ``"H100"``.
        proj_size: size of the output's projection, 0 for none. Default: 0.
        bidirectional: whether both directions run. Default: ``False``.
        tf32: whether float32 products are TF32's, as ``torch.backends.cudnn.rnn`` asks for them.
            Default: ``False``.

    Returns:
        The plan; ``print`` it.

    Raises:
        ValueError: if an argument is out of its range, or the device cannot run the layer.
        RuntimeError: if a device of this machine is asked for and there is none, or no kernels.

    Example:
        >>> print(fastrnn.cuda.plan("lstm", B=64, H=512, dtype=torch.bfloat16))  # doctest: +SKIP
    """
    if dtype not in _checks.DTYPES:
        names = ", ".join(f"torch.{name}" for name in _checks.DTYPES.values())
        raise ValueError(f"plan: dtype must be one of {names}, got {dtype}")
    if B < 1:
        raise ValueError(f"plan: B must be at least 1, got {B}")
    module = _cuda_device.module()
    directions = 1 + bidirectional
    problem = module.Problem(
        cell=cell,
        dtype=_checks.DTYPES[dtype],
        activation="tanh",
        T=1,
        B=B,
        H=H,
        P=proj_size,
        directions=directions,
        ragged=False,
        training=True,
    )
    if isinstance(device, torch.device) or device.startswith("cuda"):
        found = _cuda_device.properties(torch.device(device))
    else:
        found = module.device_named(device)
    passes = [
        _pass(module.plan(problem, found, backward, tf32), found) for backward in (False, True)
    ]
    numbers = "TF32" if tf32 else _checks.DTYPES[dtype]
    extra = f", P={proj_size}" if proj_size else ""
    extra += ", two directions" if bidirectional else ""
    return Plan(f"{cell}, B={B}, H={H}{extra}, {numbers} on {device}", *passes)


def _pass(made: _cuda.Plan, device: _cuda.Device) -> Pass:
    """Copy what the engine planned, with the occupancy that follows."""
    values = {f.name: getattr(made, f.name) for f in fields(Pass) if f.name != "occupancy"}
    most = device.multiprocessors * values["blocks_per_multiprocessor"]
    busy = min(values["blocks"], most) * values["threads"]
    threads = device.multiprocessors * device.threads_per_multiprocessor
    return Pass(occupancy=busy / threads, **values)


def _kib(size: int) -> str:
    return f"{size / KIB:,.0f} KiB"
