"""Tensors that the compiled module reads by itself: which, and that no result depends on it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import _checks, _plans

T, B, I, H = 5, 3, 4, 6

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
NAMES = ("x", "h0", "c0", *WEIGHTS)

TABLE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
needs_table = pytest.mark.skipif(TABLE is None, reason="this torch has no table for DLPack")


@pytest.fixture
def without_table() -> Iterator[None]:
    """Check tensors property by property, as with a torch that has no table."""
    _plans.core.use_tensors(list(_checks.PLAIN), None)
    yield
    _plans.core.use_tensors(list(_checks.PLAIN), TABLE)


class Parts:
    """The inputs of an LSTM, all of them ordinary."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.module = fastrnn.LSTM(I, H, dtype=dtype)
        self.layer = self.module._stack().time_major[0]
        self.tensors: dict[str, Any] = {
            "x": torch.randn(T, B, I, dtype=dtype),
            "h0": torch.randn(1, B, H, dtype=dtype),
            "c0": torch.randn(1, B, H, dtype=dtype),
        }
        self.tensors |= dict(zip(WEIGHTS, self.module.parameters(), strict=True))
        self.problem = _plans.training_problem(self.layer, dtype, T, B, False)

    def read(self) -> object:
        x, h0, c0, *weights = self.tensors.values()
        return self.problem.read_inputs(x, h0, c0, [*weights, None], False, False)


@needs_table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ordinary_tensors_are_read(dtype: torch.dtype) -> None:
    parts = Parts(dtype)
    assert parts.read() is not None
    parts.tensors["x"] = torch.randn(B, T, 2 * I, dtype=dtype).transpose(0, 1)[..., :I]
    assert parts.read() is not None, "rows may lie anywhere"
    parts.tensors["h0"] = parts.tensors["c0"] = None
    assert parts.read() is not None


class Wrapped(Tensor):
    """A subclass, which may keep its values elsewhere."""


def _freed(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    copy.untyped_storage().resize_(0)
    return copy


SPECIAL: dict[str, Callable[[Tensor], object]] = {
    "another dtype": lambda t: t.detach().to(torch.float64),
    "ints of that size": lambda t: t.detach().view(torch.int32),
    "a subclass": lambda t: t.detach().as_subclass(Wrapped),
    "no device": lambda t: t.detach().to("meta"),
    "sparse": lambda t: t.detach().to_sparse(),
    "freed": _freed,
    "scattered": lambda t: t.detach().repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda t: t.detach().flatten()[:1].expand(t.shape[-1]).expand(t.shape),
    "an array": lambda t: t.detach().numpy(),
    "a number": lambda t: 1.0,
    "None": lambda t: None,
}


@needs_table
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", NAMES)
def test_special_tensors_are_left_to_the_checks(name: str, special: str) -> None:
    parts = Parts()
    parts.tensors[name] = SPECIAL[special](parts.tensors[name])
    if special == "None" and name in ("h0", "c0"):
        return
    assert parts.read() is None


@needs_table
@pytest.mark.parametrize("name", [n for n in NAMES if n != "x"])
def test_wrong_shapes_are_left_to_the_checks(name: str) -> None:
    for change in (
        lambda t: t.detach()[:-1] if t.shape[0] > 1 else t.detach()[:, :-1].contiguous(),
        lambda t: torch.cat([t.detach(), t.detach()]),
        lambda t: t.detach().unsqueeze(0),
        lambda t: t.detach().flatten().unsqueeze(0).unsqueeze(0),
    ):
        parts = Parts()
        parts.tensors[name] = change(parts.tensors[name])
        assert parts.read() is None, parts.tensors[name].shape


@needs_table
def test_wrong_numbers_of_weights_are_left_to_the_checks() -> None:
    parts = Parts()
    x, h0, c0, *weights = parts.tensors.values()
    for given in ([], weights, [*weights, None, None]):
        assert parts.problem.read_inputs(x, h0, c0, given, False, False) is None


def _negated(value: Tensor) -> Tensor:
    """Return ``value`` as a lazily negated view, which is contiguous only if it is one number."""
    view = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("hidden", [1, 3])
@pytest.mark.parametrize("name", ["x", "h0", *(f"{n}_l0" for n in WEIGHTS)])
def test_negated_views_are_right(name: str, hidden: int) -> None:
    """DLPack cannot say that they are, nor can strides where there is one number."""
    module = fastrnn.RNN(1, hidden)
    given = {"x": torch.randn(1, 1, 1), "h0": torch.randn(1, 1, hidden)}
    given |= {n: p.detach() for n, p in module.named_parameters()}
    results = []
    for changed in (given, given | {name: _negated(given[name])}):
        weights = {n: t for n, t in changed.items() if n.endswith("_l0")}
        with torch.no_grad():
            results.append(
                torch.func.functional_call(module, weights, (changed["x"], changed["h0"]))
            )
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


def _results(module: Any, *args: Any) -> list[Tensor]:
    parameters = list(module.parameters())
    y, states = module(*args)
    y = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
    found = [y, *(states if isinstance(states, tuple) else (states,))]
    if not parameters:
        return found
    wanted = [*parameters, *(a for a in args if isinstance(a, Tensor) and a.requires_grad)]
    return [*found, *torch.autograd.grad(y.float().square().sum(), wanted)]


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "RNN": lambda: (fastrnn.RNN(I, H, 2), torch.randn(T, B, I, requires_grad=True)),
    "GRU": lambda: (fastrnn.GRU(I, H, bidirectional=True), torch.randn(T, B, I)),
    "projected": lambda: (fastrnn.LSTM(I, H, proj_size=2, bias=False), torch.randn(T, B, I)),
    "batch_first": lambda: (fastrnn.LSTM(I, H, batch_first=True), torch.randn(B, T, I)),
    "unbatched": lambda: (fastrnn.LSTM(I, H), torch.randn(T, I)),
    "bfloat16": lambda: (
        fastrnn.GRU(I, H, dtype=torch.bfloat16),
        torch.randn(T, B, I, dtype=torch.bfloat16),
    ),
    "quantized": lambda: (
        fastrnn.quantize_dynamic(fastrnn.LSTM(I, H, proj_size=2)).eval(),
        torch.randn(T, B, I),
    ),
    "packed": lambda: (
        fastrnn.LSTM(I, H),
        torch.nn.utils.rnn.pack_sequence([torch.randn(n, I) for n in (5, 4, 2)]),
    ),
    "states": lambda: (
        fastrnn.LSTM(I, H),
        torch.randn(T, B, I),
        (torch.randn(1, B, H), torch.randn(1, B, H)),
    ),
}


@needs_table
@pytest.mark.parametrize("case", CASES)
def test_same_bits_without_the_table(case: str, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(5)
    module, *args = CASES[case]()
    with_table = _results(module, *args)
    request.getfixturevalue("without_table")
    for got, wanted in zip(_results(module, *args), with_table, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.usefixtures("without_table")
def test_without_the_table_nothing_is_read() -> None:
    assert Parts().read() is None


@pytest.mark.usefixtures("without_table")
def test_what_is_no_table_is_not_used() -> None:
    _plans.core.use_tensors(list(_checks.PLAIN), object())
    assert Parts().read() is None


@needs_table
@pytest.mark.usefixtures("without_table")
@pytest.mark.parametrize("major", [0, 1, 2])
def test_only_version_1_of_the_table_is_used(major: int) -> None:
    """A copy of torch's table that says to be of that version."""
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = b"dlpack_exchange_api"
    size = 7 * ctypes.sizeof(ctypes.c_void_p)
    copy = ctypes.create_string_buffer(size)
    ctypes.memmove(copy, api.PyCapsule_GetPointer(TABLE, name), size)
    ctypes.c_uint32.from_buffer(copy).value = major
    _plans.core.use_tensors(
        list(_checks.PLAIN), api.PyCapsule_New(ctypes.addressof(copy), name, None)
    )
    assert (Parts().read() is not None) == (major == 1)
