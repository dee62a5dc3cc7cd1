"""Run existing torch.nn modules on fastrnn's kernels, without changing them.

``torch.nn.RNN``, ``LSTM``, ``GRU`` and their cells call torch's kernels through one name, ``_VF``
in ``torch.nn.modules.rnn``. While :class:`accelerate` is on, that name is bound to a module that
looks the same and asks, at each call, whether acceleration is on for this thread and task.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin
from torch.nn.modules import rnn as torch_rnn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakTensorKeyDictionary

from . import _checks, _plans, functional
from ._base import run, run_step
from ._problem import make_step
from .cells import CellSpec
from .cells.elman import SPEC as ELMAN
from .cells.gru import SPEC as GRU
from .cells.lstm import SPEC as LSTM

Function = TypeVar("Function", bound=Callable[..., Any])

_SEQUENCES = {
    "rnn_tanh": ("RNN", ELMAN, "tanh"),
    "rnn_relu": ("RNN", ELMAN, "relu"),
    "lstm": ("LSTM", LSTM, "tanh"),
    "gru": ("GRU", GRU, "tanh"),
}
_STEPS = {
    f"{name}_cell": (f"{owner}Cell", spec, f) for name, (owner, spec, f) in _SEQUENCES.items()
}


class Report:
    """What became of the calls of torch's recurrent functions while acceleration was on.

    Attributes:
        accelerated: number of calls that ran on fastrnn, by function (``lstm``, ``gru_cell`` ...).
        fallbacks: number of calls that went to torch, by function and reason.
    """

    def __init__(self) -> None:
        self.accelerated: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()  # += on a Counter is not atomic

    def _count(self, function: str, reason: str | None) -> None:
        with self._lock:
            if reason is None:
                self.accelerated[function] += 1
            else:
                self.fallbacks[function, reason] += 1

    def __str__(self) -> str:
        lines = [f"{name}: {n} calls on fastrnn" for name, n in sorted(self.accelerated.items())]
        for (name, reason), n in sorted(self.fallbacks.items()):
            lines.append(f"{name}: {n} calls on torch: {reason}")
        return "\n".join(lines) or "no calls"


class _Setting:
    """One block, or the process-wide switch, while it lasts.

    A task that was started in a block keeps a copy of the context, so the block's end is marked
    here, where all copies see it.
    """

    def __init__(self, enabled: bool, strict: bool, outer: _Setting | None) -> None:
        self.enabled = enabled
        self.strict = strict
        self.outer = outer
        self.report = Report()
        self.ended = False


_block: ContextVar[_Setting | None] = ContextVar("fastrnn_accelerate", default=None)


def _innermost() -> _Setting | None:
    """Return the innermost block of this thread and task that has not ended."""
    setting = _block.get()
    while setting is not None and setting.ended:
        setting = setting.outer
    return setting


class accelerate:
    """Run ``torch.nn``'s RNN, LSTM, GRU and their cells on fastrnn while a block or function lasts.

    As a context manager and as a decorator it holds for its own thread and ``asyncio`` task (and
    for the tasks these start, until the block ends); the switch ``accelerate.enable()`` holds for
    the process. An inner block overrides an outer one, and a block overrides the switch::

        with fastrnn.accelerate() as report:
            loss = model(x).sum()  # any model with nn.LSTM and its like inside
        loss.backward()  # the gradients are fastrnn's too, in the block and after it
        print(report)

        @fastrnn.accelerate(strict=True)
        def train(): ...

        fastrnn.accelerate.enable()
        fastrnn.accelerate.disable()

    Results, gradients, dropout's random numbers, packed batches and autocast's dtypes are those of
    the modules of fastrnn. A call goes to torch, and is counted, if it is one that fastrnn has no
    kernels for: tensors that are not plain, dense ones on the CPU, other dtypes, mixed dtypes
    outside autocast, empty weights, ``torch.jit.trace``. Code that ``torch.compile`` or
    ``torch.jit.script`` translates calls torch's kernels and is not counted (but ``torch.compile``
    leaves ``nn.RNN``, ``LSTM`` and ``GRU`` to eager mode, where they are accelerated).

    With everything off, ``torch.nn.modules.rnn`` is exactly as it was.

    Args:
        enabled: ``False`` turns acceleration off inside. Default: ``True``.
        strict: raise instead of going to torch. Default: ``False``.

    Returns:
        ``with`` gives a :class:`Report` of the calls in this block, those of inner blocks left out.

    Raises:
        NotImplementedError: if ``strict`` and a call is one that fastrnn has no kernels for.
    """

    def __init__(self, enabled: bool = True, *, strict: bool = False) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(
                f"accelerate: enabled must be a bool, got {type(enabled).__name__}; decorate with "
                "@accelerate(), with brackets"
            )
        self._enabled = enabled
        self._strict = strict
        self._open: list[_Setting] = []

    def __enter__(self) -> Report:
        setting = _Setting(self._enabled, self._strict, _innermost())
        _seam.install()
        self._open.append(setting)
        _block.set(setting)
        return setting.report

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        setting = _block.get()
        while setting is not None and setting not in self._open:
            setting = setting.outer
        if setting is None:  # left in another context than it was entered in
            setting = self._open[-1]
        self._open.remove(setting)
        setting.ended = True
        _block.set(_innermost())
        _seam.remove()

    def __call__(self, function: Function) -> Function:
        """Return the function with every call of it in a block of its own.

        Coroutine functions and generators are taken too; a generator's block holds while it runs,
        not between its values.

        Raises:
            TypeError: if it is a class or an asynchronous generator.
        """
        if inspect.isclass(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "accelerate: only functions, coroutine functions and generators can be decorated, "
                f"got {function!r}; use a with block inside it"
            )
        block = functools.partial(accelerate, self._enabled, strict=self._strict)
        decorated: Function = _decorated(function, block)
        return decorated

    @staticmethod
    def enable(*, strict: bool = False) -> Report:
        """Turn acceleration on for the process, outside all blocks.

        Returns:
            The report of the calls from now on.
        """
        setting = _Setting(True, strict, None)
        _seam.switch(setting)
        return setting.report

    @staticmethod
    def disable() -> None:
        """Turn off what ``enable`` turned on; blocks are not touched."""
        _seam.switch(None)

    @staticmethod
    def is_enabled() -> bool:
        """Tell whether a call made here and now would be accelerated."""
        setting = _seam.setting()
        return setting is not None and setting.enabled


def _decorated(function: Any, block: Callable[[], accelerate]) -> Any:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kw: Any) -> Any:
            with block():
                return await function(*args, **kw)

        return coroutine
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kw: Any) -> Any:
            return (yield from _Resumed(function(*args, **kw), block))

        return generator

    @functools.wraps(function)
    def wrapped(*args: Any, **kw: Any) -> Any:
        with block():
            return function(*args, **kw)

    return wrapped


class _Resumed:
    """A generator that runs in a block each time it is resumed, and leaves it at each value."""

    def __init__(self, generator: Any, block: Callable[[], accelerate]) -> None:
        self._generator, self._block = generator, block

    def __iter__(self) -> _Resumed:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        with self._block():
            return self._generator.send(value)

    def throw(self, *error: Any) -> Any:
        with self._block():
            return self._generator.throw(*error)

    def close(self) -> None:
        with self._block():
            self._generator.close()


class _Seam(ModuleType):
    """What ``torch.nn.modules.rnn._VF`` is while anything is on: torch's, but for our functions."""

    def __init__(self) -> None:
        super().__init__("torch._VF")
        self._torch: Any = torch_rnn._VF  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self._users = 0
        self._switch: _Setting | None = None
        for table, call in ((_SEQUENCES, _sequence), (_STEPS, _step)):
            for name, about in table.items():
                function = _function(self, name, call, about)
                setattr(self, name, functools.wraps(getattr(self._torch, name))(function))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_torch"], name)

    def install(self) -> None:
        with self._lock:
            if self._users == 0 and torch_rnn._VF is not self:  # type: ignore[attr-defined]
                self._torch = torch_rnn._VF  # type: ignore[attr-defined]
                torch_rnn._VF = self  # type: ignore[attr-defined]
                for name in (*_SEQUENCES, *_STEPS):  # torch.jit.script sees torch's own functions
                    _register_builtin(getattr(self, name), f"aten::{name}")
            self._users += 1

    def remove(self) -> None:
        with self._lock:
            self._users -= 1
            # If someone has put a module of their own over this one, it stays.
            if self._users == 0 and torch_rnn._VF is self:  # type: ignore[attr-defined]
                torch_rnn._VF = self._torch  # type: ignore[attr-defined]

    def switch(self, setting: _Setting | None) -> None:
        if setting is not None:
            self.install()
        with self._lock:
            before, self._switch = self._switch, setting
        if before is not None:
            self.remove()

    def setting(self) -> _Setting | None:
        return _innermost() or self._switch


def _function(
    seam: _Seam, name: str, call: Callable[..., Any], about: tuple[str, CellSpec, str]
) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        if torch.compiler.is_compiling():  # a counter would break the graph
            return getattr(torch._VF, name)(*args)
        setting = seam.setting()
        if setting is None or not setting.enabled:
            return getattr(seam._torch, name)(*args)
        reason = _obstacle(args)
        if reason is None:
            try:
                result = call(*about, *args)
            except NotImplementedError as error:  # fastrnn says that it has no kernels
                reason = str(error)
            else:
                setting.report._count(name, None)
                return result
        if setting.strict:
            raise NotImplementedError(
                f"accelerate: {name} cannot run on fastrnn: {reason}; leave out strict=True to let "
                "torch do it"
            )
        setting.report._count(name, reason)
        return getattr(seam._torch, name)(*args)

    _keep_out_of_dynamo(function)
    return function


def _keep_out_of_dynamo(function: Any) -> None:
    """Let Dynamo not compile the function, and what it calls, on their own.

    It may still be traced as a part of what calls it.
    """
    dynamo: Any = torch._C._dynamo.eval_frame
    if hasattr(dynamo, "set_code_exec_strategy"):
        skip = dynamo._FrameAction.SKIP
        strategy = dynamo._FrameExecStrategy(skip, skip)
        dynamo.set_code_exec_strategy(function.__code__, strategy)
    else:  # before torch 2.7
        dynamo.skip_code(function.__code__)


def _obstacle(args: Sequence[Any]) -> str | None:
    """Return why fastrnn cannot take the tensors of a call, ``None`` if it can."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    dtype = args[0].dtype
    mixed = False
    for arg in args:
        for tensor in arg if isinstance(arg, list | tuple) else (arg,):
            if type(tensor) in _checks.PLAIN and tensor.is_cpu:
                if tensor.dtype is dtype and tensor.layout is torch.strided:
                    continue
            elif not isinstance(tensor, Tensor):
                continue
            reason = _obstacle_of(tensor)
            if reason is not None:
                return reason
            mixed = mixed or tensor.is_floating_point()
    if dtype not in _checks.DTYPES:
        return f"a tensor of {dtype}"
    if mixed and not torch.is_autocast_enabled("cpu"):
        return "tensors of several dtypes"
    return None


def _obstacle_of(tensor: Tensor) -> str | None:
    """Return why fastrnn cannot take a tensor, given that it is not like the first one."""
    if type(tensor) not in _checks.PLAIN:
        return f"a tensor of type {type(tensor).__name__}"
    if not tensor.is_cpu:
        return f"a tensor on {tensor.device.type}"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout}"
    if tensor.dtype not in _checks.DTYPES and tensor.dtype is not torch.int64:  # batch sizes
        return f"a tensor of {tensor.dtype}"
    return None


_caches: Any = WeakTensorKeyDictionary()
"""Packed weights by the first parameter of a module, as long as that lives."""


def _cache(weight: Tensor) -> _plans.PackedCache | None:
    if type(weight) is not torch.nn.Parameter:
        return None  # computed for this call
    cache: _plans.PackedCache | None = _caches.get(weight)
    if cache is None:
        cache = _caches[weight] = {}
    return cache


def _check_filled(weight: Tensor) -> None:
    if 0 in weight.shape:
        raise NotImplementedError("weights without elements")


def _sequence(
    owner: str, spec: CellSpec, activation: str, x: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    """Do what torch's sequence functions do, in both overloads: padded and packed."""
    packed = isinstance(args[2], list | tuple)
    batch_sizes, (hx, weights, _bias, num_layers, dropout, training, bidirectional) = (
        (args[0], args[1:]) if packed else (None, args[:7])
    )
    batch_first = False if packed else args[7]
    _check_filled(weights[0])
    stack, layers = functional._stack(
        owner, spec, activation, weights, num_layers, bidirectional, None
    )
    input = x if batch_sizes is None else PackedSequence(x, batch_sizes)
    rate = dropout if training else 0.0
    output, states = run(stack, input, hx, layers, batch_first, rate, _cache(weights[0]))
    states = states if isinstance(states, tuple) else (states,)
    return (output.data if packed else output, *states)


def _step(
    owner: str,
    spec: CellSpec,
    activation: str,
    x: Tensor,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Any:
    """Do what torch's single-step functions do."""
    _check_filled(w_ih)
    size = w_ih.shape[0] // spec.gates
    layer = make_step(owner, spec, activation, w_ih.shape[1], size, b_ih is not None)
    return run_step(layer, x, hx, [w_ih, w_hh, b_ih, b_hh, None], _cache(w_ih))


_seam = _Seam()
