"""Cases, and how to run and compare them."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
import tolerances

CELLS = ("tanh", "relu", "lstm", "proj", "gru")
DTYPES = (torch.float32, torch.float64)
NUMBERS = ("x", "h0", "c0")  # the inputs a gradient can be asked for, besides the parameters
ROOT = Path(__file__).resolve().parents[1]
# Where `run` runs this library's modules; what they are held against stays on the CPU.
DEVICE = torch.device(os.environ.get("FASTRNN_TEST_DEVICE", "cpu"))

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One configuration of one module and of its input."""

    cell: str
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 6
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    layout: str = "dense"  # dense, unbatched, packed, unsorted
    states: bool = True  # hx is given
    seed: int = 0

    def __str__(self) -> str:
        names = [self.cell, f"{self.T}x{self.B}x{self.I}x{self.H}", f"L{self.layers}"]
        names += [n for n in ("bidirectional", "batch_first") if getattr(self, n)]
        names += [] if self.bias else ["nobias"]
        names += [] if self.states else ["nostates"]
        return "-".join([*names, self.layout])

    @property
    def kind(self) -> str:
        """The module's class name."""
        return {"lstm": "LSTM", "proj": "LSTM", "gru": "GRU"}.get(self.cell, "RNN")

    @property
    def is_lstm(self) -> bool:
        return self.kind == "LSTM"

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional

    @property
    def packed(self) -> bool:
        return self.layout in ("packed", "unsorted")

    @property
    def output_size(self) -> int:
        return (self.H + 1) // 2 if self.cell == "proj" else self.H

    def module(self, namespace: Any, dtype: torch.dtype = torch.float32, **over: Any) -> Any:
        """Build the module of ``namespace`` (fastrnn or torch.nn) from the case's seed."""
        options: dict[str, Any] = {
            "num_layers": self.layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
        }
        if self.kind == "RNN":
            options["nonlinearity"] = self.cell
        if self.cell == "proj":
            options["proj_size"] = self.output_size
        torch.manual_seed(self.seed)
        return getattr(namespace, self.kind)(self.I, self.H, **options | over).to(dtype)

    def lengths(self) -> Tensor:
        """Return one length for each sequence: decreasing, or in any order if unsorted."""
        generator = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(1, self.T + 1, (self.B,), generator=generator)
        lengths[self.B // 2] = self.T
        return lengths.sort(descending=True).values if self.layout == "packed" else lengths

    def inputs(self, dtype: torch.dtype = torch.float32) -> Tensors:
        """Return x and the initial states: float32 numbers whatever the dtype."""
        torch.manual_seed(self.seed + 1)
        unbatched = self.layout == "unbatched"
        x = torch.randn(self.T, self.B, self.I)
        if unbatched:
            x = x[:, 0]
        elif self.batch_first:
            x = x.transpose(0, 1).contiguous()
        tensors = {"x": x}
        if self.states:
            slots = self.layers * self.directions
            tensors["h0"] = torch.randn(slots, self.B, self.output_size)
            if self.is_lstm:
                tensors["c0"] = torch.randn(slots, self.B, self.H)
            if unbatched:
                tensors |= {k: v[:, 0].clone() for k, v in tensors.items() if k != "x"}
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def pack(self, x: Tensor) -> PackedSequence:
        return pack_padded_sequence(
            x, self.lengths(), self.batch_first, enforce_sorted=self.layout == "packed"
        )


def states_of(case: Case, tensors: Mapping[str, Tensor]) -> Any:
    """Return ``hx`` as the module takes it."""
    if "h0" not in tensors:
        return None
    return (tensors["h0"], tensors["c0"]) if case.is_lstm else tensors["h0"]


def call(module: Any, case: Case, tensors: Mapping[str, Tensor]) -> Tensors:
    """Call the module and return its outputs by name."""
    x = tensors["x"]
    y, states = module(case.pack(x) if case.packed else x, states_of(case, tensors))
    outputs = {"y": y.data if case.packed else y}
    names = ("h_n", "c_n") if case.is_lstm else ("h_n",)
    return outputs | dict(zip(names, states if case.is_lstm else (states,), strict=True))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    module: Any,
    case: Case,
    tensors: Mapping[str, Tensor] | None = None,
    wants: Iterable[str] | None = None,
    heads: Iterable[str] | None = None,
    seed: int = 7,
) -> Tensors:
    """Return the outputs, and the gradient of each of ``wants`` (by default all) as ``d.NAME``.

    ``heads`` names the outputs that receive a gradient, by default all of them.
    """
    # More threads make torch no faster at sizes like these, and on a busy machine far slower.
    ours = type(module).__module__.startswith("fastrnn")
    device = DEVICE if ours else torch.device("cpu")
    with threads(torch.get_num_threads() if ours else 1):
        try:
            return _run(module.to(device), case, tensors, wants, heads, seed, device)
        finally:
            module.cpu()


def _run(
    module: Any,
    case: Case,
    tensors: Mapping[str, Tensor] | None,
    wants: Iterable[str] | None,
    heads: Iterable[str] | None,
    seed: int,
    device: torch.device,
) -> Tensors:
    parameters = dict(module.named_parameters())
    dtype = next(iter(parameters.values())).dtype
    tensors = case.inputs(dtype) if tensors is None else tensors
    everything = [*tensors, *parameters]
    wants = [n for n in everything if wants is None or n in set(wants)]
    leaves = {n: t.detach().to(device).requires_grad_(n in wants) for n, t in tensors.items()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wants)
    torch.manual_seed(seed)  # dropout
    outputs = call(module, case, leaves)
    results = {name: tensor.detach().clone().cpu() for name, tensor in outputs.items()}
    if wants:
        torch.manual_seed(seed + 1)
        used = [n for n in outputs if heads is None or n in set(heads)]
        upstream = [torch.randn(outputs[n].shape).to(device, dtype) for n in used]
        sources = leaves | parameters
        gradients = torch.autograd.grad(
            [outputs[n] for n in used], [sources[n] for n in wants], upstream
        )
        results |= {f"d.{n}": g.cpu() for n, g in zip(wants, gradients, strict=True)}
    return results


class Truth(NamedTuple):
    """What torch.nn makes of a case."""

    theirs: Tensors  # in float32
    exact: Tensors  # in float64, from the same numbers
    moved: Tensors | None = None  # in float64, from numbers that are half a float32 eps off


@functools.lru_cache(maxsize=4)
def truth(case: Case) -> Truth:
    """Return what a case is held against."""
    theirs = run(case.module(nn), case)
    module = case.module(nn, torch.float64)
    exact = run(module, case)
    tensors = case.inputs(torch.float64)
    with torch.no_grad():
        for tensor in [*tensors.values(), *module.parameters()]:
            tensor *= 1 + 2**-24 * torch.randint(0, 2, tensor.shape).mul(2).sub(1)
    return Truth(theirs, exact, run(module, case, tensors))


def twin(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return the module of fastrnn and that of torch.nn, with the same weights."""
    reference = case.module(nn, dtype)
    ours = case.module(fastrnn, dtype)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


def error(actual: Tensor, exact: Tensor) -> float:
    """Return the largest absolute error (NaN if there is one)."""
    assert actual.shape == exact.shape
    return largest(actual.double() - exact.double())


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def root_mean_square(tensor: Tensor) -> float:
    # Scaled, so that neither a subnormal nor a huge number is lost in its square.
    unit = largest(tensor) or 1.0
    return unit * (tensor / unit).square().mean().sqrt().item() if tensor.numel() else 0.0


NORMS = {"accuracy": root_mean_square, "outlier": largest}


def assert_accurate(
    actual: Tensors,
    dtype: torch.dtype,
    truth: Truth,
    norms: Mapping[str, Callable[[Tensor], float]] | None = None,
) -> None:
    """Hold each tensor to the contract; ``norms`` maps rows of the table to measures."""
    theirs, exact, moved = truth
    assert actual.keys() == exact.keys()
    units = tolerances.eps(dtype) / tolerances.eps(torch.float32)
    for name, true in exact.items():
        assert actual[name].dtype == dtype, name
        assert actual[name].shape == true.shape, name
        for kind, norm in (norms or NORMS).items():
            yardstick = norm(theirs[name].double() - true) * units
            scale = norm(true)
            if moved is not None:
                scale = max(scale, norm(moved[name] - true) * 2**24)
            allowed = tolerances.bound(kind, dtype, yardstick, scale, true.numel())
            found = norm(actual[name].double() - true)
            assert found <= allowed, (
                f"{name}: {kind} error {found:.3g}, allowed {allowed:.3g}, torch's {yardstick:.3g}"
            )


def assert_matches_torch(case: Case, dtype: torch.dtype) -> None:
    """Run a case on fastrnn and hold outputs, states and every gradient to the contract."""
    assert_accurate(run(twin(case, dtype)[0], case), dtype, truth(case))


def assert_bitwise(actual: Tensors, expected: Tensors, names: Iterable[str] | None = None) -> None:
    """Compare bit for bit (0 and -0 count as equal)."""
    for name in expected if names is None else names:
        assert torch.equal(actual[name], expected[name]), (
            f"{name} differs by {error(actual[name], expected[name]):.3g}"
        )


def python(
    code: str | Path, *arguments: str, timeout: float = 120, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a program (its text, or a file) in a fresh interpreter that imports what this one does.

    ``environment`` adds variables; one that is ``None`` is not passed on.
    """
    path = os.pathsep.join([str(Path(fastrnn.__file__).parents[1]), str(ROOT / "tests")])
    inherited = os.environ.get("PYTHONPATH")
    env = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{inherited}" if inherited else path}
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if isinstance(code, str) else [str(code)]), *arguments],
        env={name: value for name, value in (env | environment).items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its forked children too
        output, errors = process.communicate()
        errors += f"\nstill running after {timeout} s"
    return subprocess.CompletedProcess(code, process.returncode, output, errors)


def output_of(result: subprocess.CompletedProcess[str]) -> str:
    """Return what a successful program printed; show what a failed one said."""
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout
