"""The libraries that benchmarks/gpu.py times: each does one case on tensors of one device."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import fastrnn
from fastrnn import _cuda_device
from registry import GATES, Case

OURS = "fastrnn"
MODULES = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float64": torch.float64}
DTYPES |= {"bfloat16": torch.bfloat16, "float16": torch.float16}

Results = dict[str, Tensor]


@dataclass
class Tensors:
    """A case's numbers on the device, in its dtype."""

    x: Tensor
    dy: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor

    @classmethod
    def of(cls, case: Case, device: torch.device) -> Tensors:
        """Draw them on the device, the weights as torch.nn draws them."""
        generator = torch.Generator(device).manual_seed(0)
        rows, bound, dtype = GATES[case.cell] * case.H, case.H**-0.5, DTYPES[case.dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        def uniform(*shape: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator, device=device)
            return drawn.mul_(2 * bound).sub_(bound).to(dtype)

        return cls(
            x=normal(case.T, case.B, case.I),
            dy=normal(case.T, case.B, case.H),
            w_ih=uniform(rows, case.I),
            w_hh=uniform(rows, case.H),
            b_ih=uniform(rows),
            b_hh=uniform(rows),
        )


def _passes(case: Case, forward: Callable[[], Tensor], leaves: Results, dy: Tensor) -> Any:
    """Return the function that is timed: the forward pass, or it and the gradients of leaves."""
    if case.mode == "inference":

        def infer() -> Results:
            with torch.inference_mode():
                return {"y": forward()}

        return infer

    def train() -> Results:
        y = forward()
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))

    return train


def _layer(namespace: Any, case: Case, t: Tensors) -> Any:
    module = getattr(namespace, MODULES[case.cell])(case.I, case.H).to(t.x.device, t.x.dtype)
    with torch.no_grad():
        for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
            full = {"w": "weight", "b": "bias"}[name[0]] + name[1:] + "_l0"
            getattr(module, full).copy_(getattr(t, name))
    x = t.x.detach().requires_grad_(case.mode == "training")
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    leaves = {"dx": x} | dict(
        zip((f"d{n}" for n in names), (p for p in module.parameters()), strict=True)
    )
    return _passes(case, lambda: module(x)[0], leaves, t.dy)


def ours(case: Case, t: Tensors) -> Any:
    return _layer(fastrnn, case, t)


def theirs(case: Case, t: Tensors) -> Any:
    return _layer(torch.nn, case, t)


def product(case: Case, t: Tensors) -> Any:
    """Return the input product alone: what every layer does besides the recurrence."""
    x, w, b = (a.detach().requires_grad_(case.mode == "training") for a in (t.x, t.w_ih, t.b_ih))
    dy = t.dy.repeat(1, 1, GATES[case.cell])
    return _passes(case, lambda: linear(x, w, b), {"dx": x, "dw_ih": w, "db_ih": b}, dy)


def _gates(tensor: Tensor, order: str, wanted: str) -> Tensor:
    """Return the blocks of rows in another order of gates."""
    blocks = dict(zip(order, tensor.chunk(len(order)), strict=True))
    return torch.cat([blocks[gate] for gate in wanted])


def haste(case: Case, t: Tensors) -> Any:
    """Return haste's layer, gates in its order, from its documentation."""
    import haste_pytorch

    orders = {"lstm": ("ifgo", "igfo"), "gru": ("rzn", "zrn")}
    if case.cell not in orders or case.dtype not in ("float32", "tf32"):
        raise NotImplementedError("LSTM and GRU in float32 only")
    layer = getattr(haste_pytorch, MODULES[case.cell])(case.I, case.H).to(t.x.device)
    w_ih, w_hh, b_ih, b_hh = (
        _gates(a, *orders[case.cell]) for a in (t.w_ih, t.w_hh, t.b_ih, t.b_hh)
    )
    with torch.no_grad():
        layer.kernel.copy_(w_ih.T)
        layer.recurrent_kernel.copy_(w_hh.T)
        layer.bias.copy_(b_ih if case.cell == "gru" else b_ih + b_hh)
        if case.cell == "gru":
            layer.recurrent_bias.copy_(b_hh)
    layer.train(case.mode == "training")
    x = t.x.detach().requires_grad_(case.mode == "training")
    leaves = {"dx": x} | {f"d {name}": p for name, p in layer.named_parameters()}
    return _passes(case, lambda: layer(x)[0], leaves, t.dy)


def flashrnn(case: Case, t: Tensors) -> Any:
    """Return FlashRNN's recurrence behind an input product by torch, from its documentation."""
    from flashrnn import flashrnn as run

    if case.cell == "gru" or case.dtype not in ("float32", "bfloat16", "float16"):
        raise NotImplementedError("RNN and LSTM in float32, bfloat16 and float16 only")
    gates, states = GATES[case.cell], {"elman": 1, "lstm": 2}[case.cell]
    train = case.mode == "training"
    x = t.x.transpose(0, 1).contiguous().requires_grad_(train)
    w_ih, w_hh = (w.detach().clone().requires_grad_(train) for w in (t.w_ih, t.w_hh))
    bias = (t.b_ih + t.b_hh).requires_grad_(train)
    start = x.new_zeros(states, case.B, 1, 1, case.H)

    def forward() -> Tensor:
        wx = linear(x, w_ih).view(case.B, case.T, gates, 1, case.H)
        r, b = w_hh.view(gates, 1, case.H, case.H), bias.view(gates, 1, case.H)
        every = run(wx, r, b, states=start, function=case.cell, backend="cuda_fused")[0]
        return every[0].reshape(case.B, case.T, case.H).transpose(0, 1)

    return _passes(case, forward, {"d x": x, "dw_ih": w_ih, "dw_hh": w_hh, "d b": bias}, t.dy)


Builders = dict[str, Callable[[Case, Tensors], Any]]
REQUIRED: Builders = {OURS: ours, "torch": theirs, "input product": product}
_PEERS = {"haste": ("haste_pytorch", haste), "flashrnn": ("flashrnn", flashrnn)}
OPTIONAL: Builders = {
    name: build for name, (package, build) in _PEERS.items() if importlib.util.find_spec(package)
}


def kernel(case: Case, backward: bool, device: torch.device) -> str:
    """Return which kernel fastrnn plans for a pass."""
    module, tf32 = _cuda_device.module(), case.dtype == "tf32"
    dtype = str(DTYPES[case.dtype]).removeprefix("torch.")
    problem = module.Problem(
        case.cell, dtype, "tanh", case.T, case.B, case.H, 0, 1, False, case.mode == "training"
    )
    plan = module.plan(problem, _cuda_device.properties(device), backward, tf32)
    return plan.kernel


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Send tensors on the CPU to the emulated kernels."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import pytest

    import _cuda_emulated

    if _cuda_emulated.module() is None:
        raise SystemExit(f"--device emulated: {_cuda_emulated.BUILD}")
    with pytest.MonkeyPatch.context() as patch:
        _cuda_emulated.install(patch)
        yield
