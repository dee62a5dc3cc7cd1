"""Many Python threads, and forked children."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import torch

import fastrnn
from _support import CELLS, Case, Tensors, assert_bitwise, call, output_of, python, run, twin

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_threads(work: Any, count: int = 8) -> None:
    """Run ``work(i)`` in threads that start together; raise what any of them raised."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def body(i: int) -> None:
        try:
            barrier.wait(60)
            work(i)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=body, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("torch_threads", [1, 2])
def test_one_module_in_many_threads(cell: str, torch_threads: int) -> None:
    """Inference of a shared module: every caller gets the bits of a lone caller."""
    torch.set_num_threads(torch_threads)
    case = Case(cell, 12, 40, 16, 48, 2, True)
    module = twin(case)[0].eval()
    tensors = case.inputs()
    with torch.no_grad():
        expected = call(module, case, tensors)

    def work(_: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                assert_bitwise(call(module, case, tensors), expected)

    in_threads(work)


@pytest.mark.parametrize("torch_threads", [1, 2])
def test_many_modules_in_many_threads(torch_threads: int) -> None:
    """Training, each thread with a module and a shape of its own."""
    torch.set_num_threads(torch_threads)
    cases = [Case(CELLS[i % 5], 5 + i, 3 + 9 * i, 7 + i, 20 + 3 * i, 2, True) for i in range(8)]
    modules = [twin(case)[0] for case in cases]
    # The seed of the gradients is global state: draw them before the threads start.
    upstream = []
    expected: list[Tensors] = []
    for module, case in zip(modules, cases, strict=True):
        outputs = call(module, case, case.inputs())
        upstream.append([torch.randn_like(t) for t in outputs.values()])
        expected.append(differentiate(module, case, case.inputs(), upstream[-1]))
    inputs = [case.inputs() for case in cases]

    def work(i: int) -> None:
        for _ in range(10):
            found = differentiate(modules[i], cases[i], inputs[i], upstream[i])
            assert_bitwise(found, expected[i])

    in_threads(work)


def differentiate(
    module: Any, case: Case, tensors: Tensors, upstream: list[torch.Tensor]
) -> Tensors:
    outputs = call(module, case, tensors)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(list(outputs.values()), list(parameters.values()), upstream)
    return {n: t.detach() for n, t in outputs.items()} | dict(
        zip(parameters, gradients, strict=True)
    )


def test_weights_change_under_readers() -> None:
    """Readers of a shared module see some packed weights, old or new, never a mixture."""
    module = fastrnn.GRU(16, 48).eval()
    x = torch.randn(4, 8, 16)
    weights = [{n: t * sign for n, t in module.state_dict().items()} for sign in (1.0, -1.0)]
    with torch.no_grad():
        results = []
        for each in weights:
            module.load_state_dict(each)
            results.append(module(x)[0].clone())
    other = fastrnn.GRU(16, 48).eval()
    lock = threading.Lock()

    def work(i: int) -> None:
        with torch.no_grad():
            for step in range(60):
                which = (i + step) % 2
                with lock:  # a write during a read is the caller's race; packing is not
                    other.load_state_dict(weights[which])
                    found = other(x)[0]
                assert torch.equal(found, results[which])

    in_threads(work, 4)


def test_gil_is_released() -> None:
    """Another Python thread runs while a long call is under way."""
    torch.set_num_threads(1)
    module = fastrnn.LSTM(256, 512).eval()
    x = torch.randn(200, 32, 256)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    with torch.no_grad():
        module(x)
    done.set()
    ticker.join(60)
    assert ticks > 5


FORK = """
import os, sys, warnings
import torch, fastrnn

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested
kind, threads, used = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "used"
torch.set_num_threads(threads)
torch.manual_seed(0)
module = getattr(fastrnn, kind)(24, 96, 2, bidirectional=True)
x = torch.randn(20, 64, 24)
with torch.no_grad():
    expected = module(x)[0].clone() if used else None
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            first = module(x)[0].numpy().tobytes()
            same = first == module(x)[0].numpy().tobytes()
            if used:
                same &= first == expected.numpy().tobytes()
        os._exit(0 if same else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert codes == [0, 0, 0], codes
with torch.no_grad():
    again = module(x)[0]
assert expected is None or torch.equal(again, expected)
print("done")
"""


@needs_fork
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("used", ["used", "unused"])
def test_fork(kind: str, used: str) -> None:
    """A child that calls only fastrnn works, and exits, whether or not the pool ran before."""
    assert output_of(python(FORK, kind, "2", used, timeout=60)).strip() == "done"


EXIT = """
import threading, torch, fastrnn

torch.set_num_threads(4)
module = fastrnn.LSTM(32, 128)
x = torch.randn(30, 64, 32)
threads = [threading.Thread(target=module, args=(x,)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
module(x)[0].sum().backward()
print("leaving")
"""


@pytest.mark.parametrize("attempt", range(3))
def test_exit_with_a_warm_pool(attempt: int) -> None:
    """The interpreter leaves while the pool's threads still wait for work."""
    assert output_of(python(EXIT, timeout=60)).strip() == "leaving"


LOADER = """
import torch, fastrnn

class Encoded(torch.utils.data.Dataset):
    def __init__(self):
        self.module = fastrnn.GRU(8, 64)
        with torch.no_grad():
            self.module(torch.zeros(20, 64, 8))
    def __len__(self):
        return 12
    def __getitem__(self, i):
        with torch.no_grad():
            return self.module(torch.full((20, 64, 8), float(i)))[0]

if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.manual_seed(0)
    data = Encoded()
    context = "fork"
    loader = torch.utils.data.DataLoader(data, 2, num_workers=2, multiprocessing_context=context)
    for i, batch in enumerate(loader):
        assert torch.equal(batch[0], data[2 * i]), i
    print("done")
"""


@needs_fork
def test_data_loader_workers() -> None:
    """A data set that encodes with fastrnn, in forked workers."""
    assert output_of(python(LOADER, timeout=90)).strip() == "done"


ROUNDING = """
import torch, fastrnn
torch.set_num_threads(2)
tiny = torch.full((30, 64, 16), 1e-40)
module = fastrnn.RNN(16, 64, nonlinearity="relu", bias=False)
with torch.no_grad():
    module.weight_ih_l0.fill_(0.1)
    module.weight_hh_l0.zero_()
    kept = module(tiny)[0]
    assert torch.set_flush_denormal(True)
    flushed = module(tiny)[0]
    torch.set_flush_denormal(False)
    again = module(tiny)[0]
assert (kept.flatten().view(torch.int32) != 0).all()
assert (flushed.flatten().view(torch.int32) == 0).all()
assert torch.equal(again.flatten().view(torch.int32), kept.flatten().view(torch.int32))
print("done")
"""


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the CPU has no such mode")
def test_workers_copy_the_floating_point_mode() -> None:
    """torch.set_flush_denormal of the caller holds on every thread that works for it."""
    assert output_of(python(ROUNDING)).strip() == "done"


BORROWED = """
import os, torch, fastrnn
from fastrnn import _plans

torch.set_num_threads(2)
torch.manual_seed(0)
a = torch.randn(1000, 1000)
a.tanh()  # torch's threads are there now
before = len(os.listdir("/proc/self/task"))
lstm, x = fastrnn.LSTM(64, 160), torch.randn(60, 32, 64)
for _ in range(20):
    a.tanh()
    y = lstm(x)[0]
y.sum().backward()
a.tanh()
print(bool(_plans.torchs_threads), len(os.listdir("/proc/self/task")) - before)
print(hash(y.detach().numpy().tobytes()), hash(lstm.weight_hh_l0.grad.numpy().tobytes()))
"""
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
needs_two = pytest.mark.skipif((PROCESSORS or 1) < 2, reason="needs two processors")
on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")


@needs_two
@on_linux
def test_torchs_threads_or_own() -> None:
    """Calls make no thread where torch's OpenMP has some, or one if told to: with the same bits."""
    same = {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    outputs = [
        output_of(python(BORROWED, FASTRNN_OWN_THREADS=own, **same)).splitlines()
        for own in ("0", "1")
    ]
    assert [lines[0] for lines in outputs] == ["True 0", "False 1"]
    assert outputs[0][1] == outputs[1][1]


def test_unknown_choice_of_threads() -> None:
    result = python("import fastrnn", FASTRNN_OWN_THREADS="yes")
    assert result.returncode != 0
    assert "FASTRNN_OWN_THREADS must be 0 or 1, got 'yes'" in result.stderr


HANDLED = """
import signal, time, torch, fastrnn

torch.set_num_threads(2)
a, lstm = torch.randn(1000, 1000), fastrnn.LSTM(8, 512)
tanh, small = a.tanh(), torch.randn(50, 16, 8)

def timed(T):
    x = torch.ones(T, 2, 8)
    begin = time.perf_counter()
    with torch.no_grad():
        y = lstm(x)[0]
    return y, begin, time.perf_counter()

with torch.no_grad():
    expected = lstm(small)[0]
y, begin, end = timed(2000)
T = min(100_000, int(2000 * 1.5 / (end - begin)))
ran = []

def handler(*_):  # within the call, whose threads are torch's
    with torch.no_grad():
        right = torch.equal(a.tanh(), tanh) and torch.equal(lstm(small)[0], expected)
    ran.append((time.perf_counter(), right))

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.3)
y, begin, end = timed(T)
signal.setitimer(signal.ITIMER_REAL, 0)
assert any(begin < at < end - 0.1 for at, _ in ran), (begin, end, ran)
assert all(right for _, right in ran)
assert torch.equal(timed(T)[0], y)
assert torch.equal(a.tanh(), tanh)
print("done")
"""


@needs_two
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
@pytest.mark.parametrize("own", ["0", "1"])
def test_handlers_use_torch_and_layers_within_a_call(own: str) -> None:
    """What runs between two blocks of a call on several threads may use these itself."""
    assert output_of(python(HANDLED, FASTRNN_OWN_THREADS=own)).strip() == "done"


IMPORTED = """
import os, sys, warnings
import torch

warnings.simplefilter("ignore", DeprecationWarning)
torch.set_num_threads(2)
torch.randn(1000, 1000).tanh()
child = os.fork()
if child == 0:
    import fastrnn

    with torch.no_grad():
        fastrnn.LSTM(16, 64)(torch.zeros(40, 32, 16))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("done")
"""


@needs_fork
def test_import_in_a_forked_child() -> None:
    """Threads that torch had in the parent are not waited for."""
    assert output_of(python(IMPORTED, timeout=60)).strip() == "done"


def test_thread_count_is_read_at_each_call() -> None:
    case = Case("gru", 10, 64, 16, 48)
    module = twin(case)[0]
    expected = run(module, case)
    for count in (1, 4, 2, 16, 1):
        torch.set_num_threads(count)
        assert_bitwise(run(module, case), expected)
