"""Calls that end early: signals, exceptions within backward, memory that is not there."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import fastrnn
from _support import Case, assert_bitwise, call, output_of, python, run, twin
from fastrnn import _ops, _plans
from fastrnn._problem import make_stack
from fastrnn.cells import CELLS as SPECS

needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")


class StopError(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run something in a signal's handler, 0.3 s from now."""
    before = signal.getsignal(signal.SIGALRM)

    def start(handle: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda _number, _frame: handle())
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    assert threading.current_thread() is threading.main_thread()
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def stop() -> None:
    raise StopError


# B = 1 with large weights shares the chain itself among threads, as few rows with larger ones do;
# other batches share rows.
SHAPES = {"single": (1, 400), "batch": (6, 96)}
FOREVER = 3_000_000  # steps: minutes, and memory that is never touched


def endless(kind: str, shape: str) -> tuple[Any, Callable[[], object], Callable[[], object]]:
    """Return a layer with a forward and a backward call that take minutes."""
    batch, hidden = SHAPES[shape]
    spec = SPECS[{"RNN": "elman"}.get(kind, kind.lower())]
    layer = make_stack(kind, spec, "tanh", 8, hidden).time_major[0]
    module = getattr(fastrnn, kind)(8, hidden)
    weights = [*module.parameters(), None]
    x = torch.randn(1, batch, 8).expand(FOREVER, batch, 8)

    def forward() -> object:
        with torch.no_grad():
            return module(x)

    def backward() -> object:
        # numpy leaves zeros to the system, which makes no memory of them as long as they are read.
        y = torch.from_numpy(numpy.zeros((FOREVER, batch, hidden), numpy.float32))
        saved = _plans.saved_values(layer)
        assert saved == 0  # an RNN keeps nothing but y
        wanted = [False] * 4 + [True] + [False] * 3
        gradients = (y, None, None)
        return _ops.backward(layer, None, wanted, gradients, (y, None), x, None, None, *weights)

    return module, forward, backward


@needs_timer
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_handler_ends_a_long_call(
    which: str, shape: str, threads: int, alarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal's handler raises comes out of the call, long before its end."""
    monkeypatch.undo()  # no poison in gigabytes that nobody touches
    torch.set_num_threads(threads)
    module, forward, backward = endless("RNN" if which == "backward" else "GRU", shape)
    x = torch.randn(30, SHAPES[shape][0], 8)
    expected = [t.clone() for t in (*module(x),)]
    alarm(stop)
    with pytest.raises(StopError):
        (forward if which == "forward" else backward)()
    assert all(torch.equal(a, b) for a, b in zip(module(x), expected, strict=True))
    module(x)[0].sum().backward()


CTRL_C = """
import os, signal, sys, threading, time
import torch, fastrnn

torch.set_num_threads(2)
module = fastrnn.LSTM(8, 96)
x = torch.randn(1, 6, 8).expand(3_000_000, 6, 8)
expected = module(x[:50])[0]
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
sent = []
def send():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.5, send).start()
try:
    with torch.no_grad():
        module(x)
except KeyboardInterrupt:
    print(f"stopped {time.monotonic() - sent[0]:.3f}")
assert torch.equal(module(x[:50])[0], expected)
"""


def test_ctrl_c() -> None:
    """Ctrl-C does what it does anywhere in Python, and the module works afterwards."""
    answer = output_of(python(CTRL_C, timeout=100)).split()
    assert answer[0] == "stopped"
    print(f"KeyboardInterrupt {answer[1]} s after the signal")


@needs_timer
def test_a_handler_may_use_the_module(alarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that makes a call on the same thread disturbs neither call."""
    monkeypatch.undo()
    module = fastrnn.GRU(8, 128)
    small, large = torch.randn(20, 4, 8), torch.randn(1, 1, 8).expand(300_000, 1, 8)
    seen: list[torch.Tensor] = []

    def handle() -> None:
        with torch.no_grad():
            seen.append(module(small)[0])

    with torch.no_grad():
        wanted = module(small)[0].clone()
        expected = module(large)[1]
        alarm(handle)
        found = module(large)[1]
    assert len(seen) == 1
    assert torch.equal(seen[0], wanted)
    assert torch.equal(found, expected)


@needs_timer
@pytest.mark.cpu_engine
def test_a_second_backward_pass_ends_early(
    alarm: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that raises ends the engine's part of it, and the graph can be used again."""
    torch.manual_seed(0)
    module = fastrnn.RNN(4, 1024)
    x = torch.randn(4000, 1, 4, requires_grad=True)
    [slope] = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    engine = _plans.core.second_order

    def interrupted(*arguments: Any) -> None:
        alarm(stop)
        engine(*arguments)

    monkeypatch.setattr(_plans.core, "second_order", interrupted)
    with pytest.raises(StopError):
        torch.autograd.grad(slope.square().sum(), x, retain_graph=True)
    monkeypatch.undo()
    first, second = (
        torch.autograd.grad(slope.square().sum(), x, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_signals_reach_only_the_main_thread() -> None:
    """A call on another thread ends, whatever signals come; its results are right."""
    module = fastrnn.GRU(8, 64)
    x = torch.randn(1, 12, 8).expand(60_000, 12, 8)
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            results.append(module(x)[1])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    work()
    assert len(results) == 3
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("cell", ["tanh", "lstm", "proj", "gru"])
@pytest.mark.parametrize("place", ["between layers", "input", "unpacked"])
def test_an_exception_within_backward(cell: str, place: str) -> None:
    """It comes out, nothing of the graph stays, and the next pass is right."""
    case = Case(cell, 12, 5, 8, 16, 2, True)
    module = twin(case)[0]
    expected = run(module, case)

    def fail(*_: object) -> Any:
        raise StopError

    def attempt() -> weakref.ref[torch.Tensor]:
        tensors = {n: t.requires_grad_() for n, t in case.inputs().items()}
        if place == "unpacked":
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), fail):
                y = call(module, case, tensors)["y"]
        else:
            y = call(module, case, tensors)["y"]
        (tensors["x"] if place == "input" else y).register_hook(fail)
        with pytest.raises(StopError):
            y.sum().backward()
        return weakref.ref(y)

    gone = attempt()
    gc.collect()
    assert gone() is None
    module.zero_grad()
    assert_bitwise(run(module, case), expected)


class MemoryGoneError(RuntimeError):
    pass


@pytest.mark.parametrize("cell", ["lstm", "proj", "gru"])
def test_any_allocation_may_fail(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each allocation in turn fails: it raises, and the next call is right."""
    case = Case(cell, 12, 5, 8, 16, 2)
    module = twin(case)[0]
    expected = run(module, case)
    left = -1

    def failing(allocate: Any) -> Any:
        def maybe(*args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal left
            left -= 1
            if left == -1:
                raise MemoryGoneError
            return allocate(*args, **kwargs)

        return maybe

    with monkeypatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        failures = 0
        for i in range(1000):
            left = i
            try:
                outputs = call(module, case, case.inputs())
                outputs["y"].sum().backward()
            except MemoryGoneError:
                failures += 1
                continue
            break
        left = -10
        assert failures >= 4
        module.zero_grad()
        assert_bitwise(run(module, case), expected)


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import torch, fastrnn

training, threads = sys.argv[1] == "training", int(sys.argv[2])
torch.set_num_threads(threads)
module = fastrnn.LSTM(16, 64, 2, bidirectional=True)
x = torch.randn(20, 8, 16)
expected = module(x)[0]
long = torch.randn(1, 64, 16).expand(4000, 64, 16)
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = (400 << 20) if training else (100 << 20)
if threads > 2:
    room = 6 << 20  # not even for a thread's stack
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
for _ in range(3):
    try:
        with torch.set_grad_enabled(training):
            module(long)[0].sum().backward() if training else module(long)
    except RuntimeError as error:
        assert "memory" in str(error), error
    else:
        raise AssertionError("there was memory enough")
    module.zero_grad()
assert torch.equal(module(x)[0], expected)
if training:
    module(x)[0].sum().backward()
print("done")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no limits on memory here")
@pytest.mark.parametrize(("mode", "threads"), [("training", 2), ("inference", 2), ("inference", 8)])
def test_out_of_memory(mode: str, threads: int) -> None:
    """The process has no memory left: it raises, and smaller calls go on."""
    pytest.importorskip("resource")
    assert output_of(python(OUT_OF_MEMORY, mode, str(threads))).strip() == "done"


SPAWNED = """
import multiprocessing, sys
import torch, fastrnn

def encode(module, x):
    torch.set_num_threads(2)
    with torch.no_grad():
        return module(x)[0].numpy()

if __name__ == "__main__":
    torch.manual_seed(0)
    module = fastrnn.LSTM(8, 64)
    x = torch.randn(20, 64, 8)
    expected = encode(module, x)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for found in pool.starmap(encode, [(module, x)] * 4, chunksize=1):
            assert (found == expected).all()
    print("done")
"""


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_started_processes(context: str, tmp_path: Path) -> None:
    """A pool of processes that are no forks of this one; the module travels to them."""
    program = tmp_path / "spawned.py"
    program.write_text(SPAWNED)
    assert output_of(python(program, context)).strip() == "done"
