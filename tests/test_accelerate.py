"""torch.nn's own modules on fastrnn's kernels: results, and where and how long it is on."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import rnn as torch_rnn

import fastrnn
from _support import CELLS, Case, assert_accurate, assert_bitwise, run, truth, twin
from fastrnn.acceleration import _caches

ORIGINAL = torch_rnn._VF
KINDS = ("RNN", "LSTM", "GRU")
CASES = [
    Case(cell, layers=2, bidirectional=True, bias=bias, batch_first=batch_first, layout=layout)
    for cell in CELLS
    for bias, batch_first, layout in (
        (True, False, "dense"),
        (False, True, "dense"),
        (True, False, "unbatched"),
        (True, False, "packed"),
        (True, True, "unsorted"),
    )
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Whatever a test does, torch is as it was afterwards."""
    assert torch_rnn._VF is ORIGINAL
    yield
    fastrnn.accelerate.disable()
    assert torch_rnn._VF is ORIGINAL
    assert not fastrnn.accelerate.is_enabled()


def gru(x: torch.Tensor | None = None) -> Any:
    """Call a module of torch.nn once."""
    return nn.GRU(3, 4)(torch.zeros(2, 1, 3) if x is None else x)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(case: Case) -> None:
    """The numbers are, bitwise, those of fastrnn's module, and within the contract of torch's."""
    ours, theirs = twin(case)
    expected = run(ours, case)
    with fastrnn.accelerate(strict=True) as report:
        actual = run(theirs, case)
    assert_bitwise(actual, expected)
    assert_accurate(actual, torch.float32, truth(case))
    name = {"tanh": "rnn_tanh", "relu": "rnn_relu", "proj": "lstm"}.get(case.cell, case.cell)
    assert report.accelerated == {name: 1}
    assert not report.fallbacks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_dtypes(cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, layers=2)
    ours, theirs = twin(case, dtype)
    with fastrnn.accelerate(strict=True):
        assert_bitwise(run(theirs, case), run(ours, case))


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh", "relu"])
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cells(cell: str, unbatched: bool, bias: bool) -> None:
    kind = f"{Case(cell).kind}Cell"
    options: dict[str, Any] = {"bias": bias}
    if kind == "RNNCell":
        options["nonlinearity"] = cell
    theirs, ours = getattr(nn, kind)(4, 6, **options), getattr(fastrnn, kind)(4, 6, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4) if unbatched else torch.randn(3, 4)
    results = []
    with fastrnn.accelerate(strict=True) as report:
        for module in (theirs, ours):
            leaf = x.clone().requires_grad_()
            outputs = module(leaf, module(leaf))  # with hx and without
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            gradients = torch.autograd.grad(
                sum(o.sum() for o in outputs), [leaf, *module.parameters()]
            )
            results.append([*outputs, *gradients])
    assert report.accelerated.total() == 2  # not those of fastrnn's own module
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_torchs_numbers(kind: str, packed: bool) -> None:
    module = getattr(nn, kind)(4, 6, num_layers=3, dropout=0.4)
    x = torch.randn(5, 3, 4)
    input = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2]) if packed else x

    def call() -> Any:
        torch.manual_seed(3)
        output = module(input)[0]
        return (output.data if packed else output), torch.rand(1)

    for training in (True, False):
        module.train(training)
        expected, after = call()
        with fastrnn.accelerate(strict=True):
            actual, drawn = call()
        torch.testing.assert_close(actual, expected)
        assert torch.equal(drawn, after)


def test_packed_weights_are_kept_and_never_stale() -> None:
    module, x = nn.LSTM(4, 6), torch.randn(5, 3, 4)
    with torch.no_grad(), fastrnn.accelerate():
        before = module(x)[0]
        assert torch.equal(module(x)[0], before)
        module.weight_hh_l0.data.mul_(2)
        after = module(x)[0]
    assert not torch.equal(after, before)
    with torch.no_grad():
        torch.testing.assert_close(after, module(x)[0])


def test_off_is_torch_itself() -> None:
    with fastrnn.accelerate():
        assert torch_rnn._VF is not ORIGINAL
        assert torch_rnn._VF.dropout is ORIGINAL.dropout  # all else is torch's
        assert fastrnn.accelerate.is_enabled()
    assert torch_rnn._VF is ORIGINAL


def test_exception_in_the_block() -> None:
    with pytest.raises(ZeroDivisionError), fastrnn.accelerate():
        _ = 1 / 0


def test_errors_of_the_call_are_raised() -> None:
    with fastrnn.accelerate() as report:
        with pytest.raises(RuntimeError, match=r"input\.size"):
            nn.GRU(3, 4)(torch.zeros(2, 1, 5))
        with pytest.raises(RuntimeError, match="hidden size"):
            nn.GRU(3, 4)(torch.zeros(2, 1, 3), torch.zeros(1, 1, 9))
    assert not report.fallbacks


def test_nesting() -> None:
    with fastrnn.accelerate() as outer:
        gru()
        with fastrnn.accelerate(False) as off:
            gru()
            with fastrnn.accelerate() as inner:
                gru()
        gru()
    assert [r.accelerated["gru"] for r in (outer, off, inner)] == [2, 0, 1]
    assert str(outer) == "gru: 2 calls on fastrnn"
    assert str(off) == "no calls"


def test_one_object_may_be_used_again_and_in_itself() -> None:
    block = fastrnn.accelerate()
    for _ in range(2):
        with block as outer, block as inner:
            gru()
        assert (outer.accelerated.total(), inner.accelerated.total()) == (0, 1)
        assert not fastrnn.accelerate.is_enabled()


def test_switch() -> None:
    report = fastrnn.accelerate.enable()
    gru()
    with fastrnn.accelerate(False):
        gru()
    thread = threading.Thread(target=gru)
    thread.start()
    thread.join()
    assert report.accelerated == {"gru": 2}
    second = fastrnn.accelerate.enable(strict=True)
    with pytest.raises(NotImplementedError, match="complex64"):
        nn.GRU(3, 4, dtype=torch.complex64)(torch.zeros(2, 1, 3, dtype=torch.complex64))
    gru()
    assert (report.accelerated.total(), second.accelerated.total()) == (2, 1)
    with fastrnn.accelerate():
        fastrnn.accelerate.disable()
        assert fastrnn.accelerate.is_enabled()  # the block's
    fastrnn.accelerate.disable()  # once more does nothing
    assert torch_rnn._VF is ORIGINAL


def test_block_is_its_threads_own() -> None:
    with fastrnn.accelerate() as report:
        seen = []
        thread = threading.Thread(target=lambda: seen.append(fastrnn.accelerate.is_enabled()))
        thread.start()
        thread.join()
        gru()
    assert seen == [False]
    assert report.accelerated.total() == 1


def test_threads_come_and_go() -> None:
    """Blocks of many threads overlap; torch comes back after the last; no call is lost."""
    module, x = nn.LSTM(4, 6), torch.randn(5, 3, 4)
    with torch.no_grad(), fastrnn.accelerate():
        expected = module(x)[0]
    reports: list[Any] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with torch.no_grad(), fastrnn.accelerate(strict=True) as report:
                    assert torch.equal(module(x)[0], expected)
                reports.append(report)
        except BaseException as error:  # shown by the test's own thread
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert [r.accelerated["lstm"] for r in reports] == [1] * 160


def test_count_of_the_switch_from_many_threads() -> None:
    report = fastrnn.accelerate.enable()
    module, x = nn.GRUCell(2, 2), torch.zeros(1, 2)
    workers = [threading.Thread(target=lambda: [module(x) for _ in range(50)]) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert report.accelerated == {"gru_cell": 400}


def test_block_is_its_tasks_own() -> None:
    async def on(turns: list[bool]) -> None:
        with fastrnn.accelerate():
            for _ in range(3):
                turns.append(fastrnn.accelerate.is_enabled())
                await asyncio.sleep(0)

    async def off(turns: list[bool]) -> None:
        for _ in range(3):
            turns.append(fastrnn.accelerate.is_enabled())
            await asyncio.sleep(0)

    async def main() -> tuple[list[bool], list[bool]]:
        turns: tuple[list[bool], list[bool]] = ([], [])
        await asyncio.gather(on(turns[0]), off(turns[1]), on(turns[0]))
        return turns

    assert asyncio.run(main()) == ([True] * 6, [False] * 3)


def test_task_started_in_a_block_ends_with_it() -> None:
    async def child(go: asyncio.Event) -> tuple[bool, bool]:
        inside = fastrnn.accelerate.is_enabled()
        await go.wait()
        return inside, fastrnn.accelerate.is_enabled()

    async def main() -> tuple[bool, bool]:
        go = asyncio.Event()
        with fastrnn.accelerate():
            task = asyncio.create_task(child(go))
            await asyncio.sleep(0)
        assert torch_rnn._VF is ORIGINAL
        go.set()
        return await task

    assert asyncio.run(main()) == (True, False)


def test_left_in_another_context() -> None:
    block = fastrnn.accelerate()
    thread = threading.Thread(target=block.__enter__)
    thread.start()
    thread.join()
    assert not fastrnn.accelerate.is_enabled()
    block.__exit__(None, None, None)
    assert torch_rnn._VF is ORIGINAL


def test_decorator() -> None:
    @fastrnn.accelerate(strict=True)
    def function(a: int, *, b: int) -> tuple[int, bool]:
        """Add."""
        return a + b, fastrnn.accelerate.is_enabled()

    @fastrnn.accelerate()
    async def coroutine() -> bool:
        await asyncio.sleep(0)
        return fastrnn.accelerate.is_enabled()

    @fastrnn.accelerate()
    def generator() -> Any:
        got = yield fastrnn.accelerate.is_enabled()
        try:
            yield got, fastrnn.accelerate.is_enabled()
        except ValueError:
            yield fastrnn.accelerate.is_enabled()
        return "end"

    assert function(1, b=2) == (3, True)
    assert (function.__name__, function.__doc__) == ("function", "Add.")
    assert asyncio.run(coroutine())
    values = generator()
    assert next(values) is True
    assert not fastrnn.accelerate.is_enabled()  # between the values
    assert values.send(5) == (5, True)
    assert values.throw(ValueError()) is True
    with pytest.raises(StopIteration) as stop:
        next(values)
    assert stop.value.value == "end"
    generator().close()


def test_decorator_refuses() -> None:
    with pytest.raises(TypeError, match="with brackets"):
        fastrnn.accelerate(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="with block inside"):

        @fastrnn.accelerate()
        class Model:
            pass


def unsupported() -> dict[str, tuple[str, Any]]:
    """Return calls that go to torch, with what the reason says."""
    complex_gru = nn.GRU(3, 4, dtype=torch.complex64)
    meta_gru = nn.GRU(3, 4, device="meta")
    return {
        "meta": ("a tensor on meta", lambda: meta_gru(torch.zeros(2, 1, 3, device="meta"))),
        "dtype": ("a tensor of torch.complex64", lambda: complex_gru(torch.zeros(2, 1, 3) * 1j)),
        "trace": ("torch.jit.trace", lambda: torch.jit.trace(nn.GRU(3, 4), torch.zeros(2, 1, 3))),
        "empty": ("weights without elements", lambda: nn.GRUCell(3, 0)(torch.zeros(2, 3))),
    }


@pytest.mark.filterwarnings("ignore")  # torch's, about complex numbers and torch.jit
@pytest.mark.parametrize("name", ["empty", "dtype", "trace", "meta"])
def test_fallback(name: str) -> None:
    reason, call = unsupported()[name]
    results = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        with fastrnn.accelerate(accelerated) as report:
            try:
                results.append(type(call()))
            except Exception as error:  # torch's own, the same on and off
                results.append(type(error))
    assert results[0] is results[1]
    assert {why for _, why in report.fallbacks} == {reason}
    assert not report.accelerated or name == "trace"  # which calls the module plainly as well
    with fastrnn.accelerate(strict=True), pytest.raises(NotImplementedError, match=reason):
        call()


def test_several_dtypes_go_to_torch() -> None:
    with fastrnn.accelerate() as report, pytest.raises(RuntimeError):
        nn.GRU(3, 4)(torch.zeros(2, 1, 3), torch.zeros(1, 1, 4, dtype=torch.float64))
    assert report.fallbacks == {("gru", "tensors of several dtypes"): 1}


def test_what_fastrnn_refuses_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """NotImplementedError is how fastrnn says that it has no kernels; other errors are errors."""
    from fastrnn import acceleration

    def refuse(*args: Any) -> Any:
        raise error("refused")

    monkeypatch.setattr(acceleration, "run", refuse)
    error: type[Exception] = NotImplementedError
    with fastrnn.accelerate() as report:
        gru()
    assert report.fallbacks == {("gru", "refused"): 1}
    error = MemoryError
    with fastrnn.accelerate(), pytest.raises(MemoryError):
        gru()


def test_subclassed_tensors_go_to_torch() -> None:
    class Mine(torch.Tensor):
        pass

    x = torch.zeros(2, 1, 3)
    with fastrnn.accelerate() as report:
        y = gru(x.as_subclass(Mine))[0]
    assert isinstance(y, Mine)
    assert report.fallbacks == {("gru", "a tensor of type Mine"): 1}
    assert "1 calls on torch: a tensor of type Mine" in str(report)


class Stepwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.layer = nn.LSTM(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.cell(x[0])
        return self.layer(h[None])[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_sees_torchs_functions() -> None:
    model, x = Stepwise(), torch.randn(2, 3, 3)
    expected = model(x)
    with fastrnn.accelerate() as report:
        scripted = torch.jit.script(model)
        torch.testing.assert_close(scripted(x), expected)
    assert "aten::lstm_cell" in str(scripted.cell.graph)
    assert not report.accelerated
    torch.testing.assert_close(scripted(x), expected)


def test_compiled_modules_are_right() -> None:
    torch._dynamo.reset()
    model, x = Stepwise(), torch.randn(2, 3, 3)
    expected = model(x)
    gradients = torch.autograd.grad(expected.sum(), [*model.parameters()])
    compiled = torch.compile(model, backend="aot_eager")

    def check() -> None:
        y = compiled(x)
        torch.testing.assert_close(y, expected)
        actual = torch.autograd.grad(y.sum(), [*model.parameters()])
        for got, wanted in zip(actual, gradients, strict=True):
            torch.testing.assert_close(got, wanted)

    check()
    with fastrnn.accelerate() as report:
        check()
        cell = torch.compile(model.cell, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(cell(x[0]), model.cell(x[0]))
    check()
    assert report.accelerated["lstm"] == 1  # torch.compile leaves sequences to eager mode
    torch._dynamo.reset()


def test_users_subclass_and_hooks() -> None:
    class Doubled(nn.GRU):
        def forward(self, *args: Any) -> Any:
            y, h = super().forward(*args)
            return 2 * y, h

    module, x = Doubled(3, 4), torch.randn(2, 1, 3)
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    expected = module(x)[0]
    with fastrnn.accelerate(strict=True) as report:
        torch.testing.assert_close(module(x)[0], expected)
    assert report.accelerated == {"gru": 1}
    assert len(seen) == 2


def test_backward_after_the_block() -> None:
    module, x = nn.GRU(3, 4), torch.randn(2, 1, 3)
    with fastrnn.accelerate():
        y = module(x)[0]
    y.sum().backward()
    reference = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(x)[0].sum().backward()
    for parameter, gradient in zip(module.parameters(), reference, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_another_patch_over_ours_stays() -> None:
    class Other:
        def __getattr__(self, name: str) -> Any:
            return getattr(ORIGINAL, name)

    other = Other()
    try:
        with fastrnn.accelerate():
            torch_rnn._VF = other
        assert torch_rnn._VF is other
        gru()
    finally:
        torch_rnn._VF = ORIGINAL


def test_caches_go_with_their_modules() -> None:
    gc.collect()  # of those that other tests left
    before = len(_caches)
    with torch.no_grad(), fastrnn.accelerate():
        for _ in range(20):
            gru()
    gc.collect()
    assert len(_caches) == before
