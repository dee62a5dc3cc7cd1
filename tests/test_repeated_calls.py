"""Calls like the one before: the compiled module does all of it, with the same outcome."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn import _memory, _ops

T, B, I, H = 5, 3, 4, 6

needs_table = pytest.mark.skipif(
    not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no table for DLPack"
)
pytestmark = [needs_table]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each layer that may be repeated: whether the compiled module did it."""
    done: list[bool] = []
    original = _ops.repeated

    def watched(*args: Any) -> Any:
        outputs = original(*args)
        done.append(outputs is not None)
        return outputs

    monkeypatch.setattr(_ops, "repeated", watched)
    return done


def lstm(**options: Any) -> fastrnn.LSTM:
    return fastrnn.LSTM(I, H, **options)


def states(*sizes: int, count: int = 2, **kind: Any) -> Any:
    made = tuple(torch.randn(*sizes, **kind) for _ in range(count))
    return made if count > 1 else made[0]


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "RNN": lambda: (fastrnn.RNN(I, H), torch.randn(T, B, I)),
    "relu": lambda: (fastrnn.RNN(I, H, nonlinearity="relu", bias=False), torch.randn(T, B, I)),
    "GRU": lambda: (fastrnn.GRU(I, H), torch.randn(T, B, I), states(1, B, H, count=1)),
    "LSTM": lambda: (lstm(), torch.randn(T, B, I), states(1, B, H)),
    "one unit": lambda: (fastrnn.LSTM(1, 1), torch.randn(T, B, 1), states(1, B, 1)),
    "projected": lambda: (lstm(proj_size=2, bidirectional=True), torch.randn(T, B, I)),
    "batch_first": lambda: (lstm(batch_first=True, bidirectional=True), torch.randn(B, T, I)),
    "layers": lambda: (
        lstm(num_layers=3, bidirectional=True, batch_first=True),
        torch.randn(B, T, I),
        states(6, B, H),
    ),
    "unbatched": lambda: (lstm(), torch.randn(T, I), states(1, H)),
    "rows apart": lambda: (lstm(), torch.randn(B, T, 2 * I).transpose(0, 1)[..., :I]),
    "float64": lambda: (lstm(dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)),
    "bfloat16": lambda: (
        fastrnn.GRU(I, H, dtype=torch.bfloat16),
        torch.randn(T, B, I, dtype=torch.bfloat16),
    ),
    "quantized": lambda: (
        fastrnn.quantize_dynamic(lstm(proj_size=2)).eval(),
        torch.randn(T, B, I),
        (torch.randn(1, B, 2), torch.randn(1, B, H)),
    ),
    "LSTMCell": lambda: (fastrnn.LSTMCell(I, H), torch.randn(B, I), states(B, H)),
    "GRUCell": lambda: (fastrnn.GRUCell(I, H), torch.randn(B, I), states(B, H, count=1)),
    "RNNCell": lambda: (fastrnn.RNNCell(I, H), torch.randn(I), states(H, count=1)),
}


def results(module: Any, *args: Any) -> list[Tensor]:
    outputs = module(*args)
    if isinstance(outputs, Tensor):
        return [outputs]
    first, rest = outputs
    return [first, *(rest if isinstance(rest, tuple) else (rest,))]


@pytest.mark.parametrize("start", ["states", "none"])
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str, start: str, answers: list[bool]) -> None:
    """The same as a module that has never run, for each call; and outputs of calls are apart."""
    module, x, *hx = CASES[case]()
    if start == "none":
        hx = []
    first = results(module, x, *hx)
    kept = [t.clone() for t in first]
    layers = getattr(module, "num_layers", 1)
    given = x.clone()
    assert not any(answers)
    answers.clear()
    for scale in (1.0, 0.5, -2.0):
        x.copy_(given * scale)  # as it lies
        again = results(module, x, *hx)
        for got, wanted in zip(again, results(copy.deepcopy(module), x, *hx), strict=True):
            assert torch.equal(got, wanted)
            assert (got.shape, got.stride(), got.dtype) == (
                wanted.shape,
                wanted.stride(),
                wanted.dtype,
            )
    assert sum(answers) == 3 * layers
    for got, wanted in zip(first, kept, strict=True):
        assert torch.equal(got, wanted), "a later call wrote to the outputs of an earlier one"


def _negated(value: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(value), -value).conj().imag


class Wrapped(Tensor):
    """A subclass that torch.nn takes as it is."""


SPECIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "another T": lambda x: torch.cat([x, x]),
    "another B": lambda x: torch.cat([x, x], dim=1),
    "no features": lambda x: x[..., :0],
    "another I": lambda x: torch.cat([x, x], dim=2),
    "no steps": lambda x: x[:0],
    "no batch": lambda x: x[:, :0],
    "four dimensions": lambda x: x.unsqueeze(0),
    "float64": lambda x: x.double(),
    "ints": lambda x: x.view(torch.int32),
    "negated": _negated,
    "scattered": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "a subclass": lambda x: x.as_subclass(Wrapped),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
}


def outcome(module: Any, *args: Any) -> Any:
    try:
        return results(module, *args)
    except Exception as error:
        return type(error), str(error)


def assert_same_outcome(got: Any, wanted: Any) -> None:
    if isinstance(wanted, tuple):
        assert got == wanted
        return
    for a, b in zip(got, wanted, strict=True):
        assert type(a) is type(b)
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.is_meta or torch.equal(a, b)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", ["x", "h0", "c0"])
def test_what_is_not_as_before_is_found_out(name: str, special: str, answers: list[bool]) -> None:
    """Results and errors are those of a module that has never run."""
    module = lstm()
    given = {"x": torch.randn(T, B, I), "h0": torch.randn(1, B, H), "c0": torch.randn(1, B, H)}
    for _ in range(2):
        module(given["x"], (given["h0"], given["c0"]))
    assert answers.pop()
    given[name] = SPECIAL[special](given[name])
    x, *hx = given.values()
    got = outcome(module, x, tuple(hx))
    assert not any(answers), "no outputs can have been made of this"
    assert_same_outcome(got, outcome(copy.deepcopy(module), x, tuple(hx)))


NO_STATES: dict[str, Callable[[Tensor], Any]] = {
    "nothing twice": lambda s: (None, None),
    "no cell state": lambda s: (s, None),
    "no output": lambda s: [None, s],
    "one": lambda s: s,
    "three": lambda s: (s, s, s),
    "half": lambda s: (s,),
    "a number": lambda s: (s, 0.0),
    "a number alone": lambda s: 1.0,
    "as a dict": lambda s: {"h": s, "c": s},
}


@pytest.mark.parametrize("kind", NO_STATES)
@pytest.mark.parametrize("name", ["LSTM", "LSTMCell", "GRU", "RNNCell"])
def test_what_is_no_state_is_refused(name: str, kind: str) -> None:
    """After a call like it as before any."""
    step = name.endswith("Cell")
    module = getattr(fastrnn, name)(I, H)
    x = torch.randn(B, I) if step else torch.randn(T, B, I)
    hx = NO_STATES[kind](torch.randn(B, H) if step else torch.randn(1, B, H))
    wanted = outcome(module, x, hx)
    assert isinstance(wanted, tuple) or (kind == "one" and "LSTM" not in name)
    module(x), module(x)
    assert_same_outcome(outcome(module, x, hx), wanted)


@pytest.mark.parametrize("kind", ["sequence", "cell", "quantized"])
def test_packed_weights_are_not_written_again(kind: str, answers: list[bool]) -> None:
    """Another thread may be reading them, and packing takes time."""
    module: Any = fastrnn.LSTMCell(I, H) if kind == "cell" else lstm()
    if kind == "quantized":
        module = fastrnn.quantize_dynamic(module).eval()
    x = torch.randn(B, I) if kind == "cell" else torch.randn(T, B, I)
    before = results(module, x)
    cache = module._cache if kind == "quantized" else module.__dict__["_runtime"]
    cache = cache if isinstance(cache, dict) else getattr(cache, "cache", None) or cache[1]
    memory = cache[0].memory
    kept = memory.clone()
    memory.zero_()
    after = results(module, x)
    assert answers == [True]
    assert not memory.any()
    assert not torch.equal(after[0], before[0])
    memory.copy_(kept)
    assert_same_outcome(results(module, x), before)


@pytest.mark.parametrize("name", ["x", "h0", "c0"])
def test_negated_numbers(name: str, answers: list[bool]) -> None:
    """Of one number strides do not tell that it is part of a complex one."""
    module = fastrnn.LSTM(1, 1)
    given = {"x": torch.randn(1, 1, 1), "h0": torch.randn(1, 1, 1), "c0": torch.randn(1, 1, 1)}
    for _ in range(2):
        module(given["x"], (given["h0"], given["c0"]))
    assert answers.pop()
    given[name] = _negated(given[name])
    x, *hx = given.values()
    got = outcome(module, x, tuple(hx))
    assert_same_outcome(got, outcome(module, x.clone(), tuple(s.clone() for s in hx)))
    assert (answers[0], answers[-1]) == (False, True)


def test_a_final_state_behind_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step h_n goes there: nothing beyond the memory that was asked for is written."""
    taken = []

    def guarded(size: int) -> Tensor:
        taken.append(torch.full((size + 4096,), 0x5A, dtype=torch.uint8))
        return taken[-1]

    module, x = fastrnn.GRUCell(I, 61), torch.randn(37, I)
    expected = module(x)
    monkeypatch.setattr(_ops, "scratch_memory", _memory.Scratch(guarded))
    assert torch.equal(module(x), expected)
    assert taken
    assert all((memory[-4096:] == 0x5A).all() for memory in taken)


def test_without_inputs() -> None:
    """A matrix without columns has nothing to compare."""
    module, x = fastrnn.GRUCell(0, H), torch.zeros(B, 0)
    first = module(x)
    assert torch.equal(module(x), first)
    torch.testing.assert_close(module(x, first), torch.nn.GRUCell.forward(module, x, first))


def test_weights_that_changed_are_packed_again(answers: list[bool]) -> None:
    module, x = lstm(num_layers=2), torch.randn(T, B, I)
    module(x)
    for change in (
        lambda: module.weight_hh_l1.data.mul_(0.5),
        lambda: module.bias_ih_l0.data.numpy().fill(0.25),
        lambda: setattr(module, "weight_ih_l1", torch.nn.Parameter(torch.randn(4 * H, H))),
    ):
        change()
        answers.clear()
        got = results(module, x)
        assert False in answers
        assert_same_outcome(got, results(copy.deepcopy(module), x))
        answers.clear()
        assert_same_outcome(results(module, x), got)
        assert answers == [True, True]


def test_threads_and_instruction_sets(answers: list[bool]) -> None:
    """Sizes, and the layout of packed weights, hold for one number and one set."""
    module, x = lstm(), torch.randn(T, B, I)
    expected = results(module, x)
    before = torch.get_num_threads(), _ops.isa()
    last = before[1]
    try:
        torch.set_num_threads(before[0] + 1)
        assert_same_outcome(results(module, x), expected)
        assert not any(answers)
        assert_same_outcome(results(module, x), expected)
        assert answers.pop()
        for name in _ops.available_isas():
            _ops.set_isa(name)
            answers.clear()
            for got, wanted in zip(results(module, x), expected, strict=True):
                torch.testing.assert_close(got, wanted)
            assert answers[-1] == any(answers) == (name == last)
            last = name
    finally:
        torch.set_num_threads(before[0])
        _ops.set_isa(before[1])


def test_gradients_are_still_recorded(answers: list[bool]) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    module(x), module(x)
    answers.clear()
    with torch.enable_grad():
        y, _ = module(x)
        frozen = copy.deepcopy(module).requires_grad_(False)
        frozen(x)
        moved, _ = frozen(x.clone().requires_grad_())
    assert y.requires_grad
    assert moved.requires_grad
    assert not any(answers)


def test_the_next_call_after_lengths(answers: list[bool]) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    expected = results(module, x)
    lengths = [T, 2, 1]
    padded = results(module, x, None, lengths)
    for _ in range(2):
        assert_same_outcome(results(module, x), expected)
        assert_same_outcome(results(module, x, None, lengths), padded)
    assert not any(answers)
    assert_same_outcome(results(module, x), expected)
    assert_same_outcome(results(module, x), expected)
    assert answers[-1]


def test_what_new_tensors_are_is_torchs_matter(answers: list[bool]) -> None:
    """Under a mode that makes tensors without memory any call is refused."""
    module, x = lstm(), torch.randn(T, B, I)
    fresh = copy.deepcopy(module)
    module(x), module(x)
    assert answers.pop()
    with FakeTensorMode(allow_non_fake_inputs=True):
        got = outcome(module, x)
        assert got == outcome(fresh, x)
    assert got[0] is RuntimeError, got
    assert not any(answers)


def test_in_inference_mode(answers: list[bool]) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    expected = results(module, x)
    assert not any(t.is_inference() for t in expected)
    with torch.inference_mode():
        inside = results(module, x)
        assert answers == [True]
    assert all(t.is_inference() for t in inside)
    assert_same_outcome([t.clone() for t in inside], expected)
    assert not any(t.is_inference() for t in results(module, x))
