"""Turn the recurrent modules of a model into fastrnn's, in place, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from . import _checks, _cuda_device, compat
from ._base import RNNBase, RNNCellBase
from .cells import elman, gru, lstm
from .quantize import Quantized

Model = TypeVar("Model", bound=torch.nn.Module)

_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OURS: dict[type, type] = {
    torch.nn.RNN: elman.RNN,
    torch.nn.LSTM: lstm.LSTM,
    torch.nn.GRU: gru.GRU,
    torch.nn.RNNCell: elman.RNNCell,
    torch.nn.LSTMCell: lstm.LSTMCell,
    torch.nn.GRUCell: gru.GRUCell,
}
_COMPATIBLE: dict[type, type] = {getattr(torch.nn, n): getattr(compat, n) for n in _NAMES}
_TORCHS: dict[type, type] = {
    ours: theirs for table in (_OURS, _COMPATIBLE) for theirs, ours in table.items()
}
_ONLY_OURS = ("_runtime", "_checkpoint_every")
"""Attributes that torch's modules do not have: none of them changes a result."""


@dataclass(frozen=True)
class Conversion:
    """What becomes of one recurrent module of a model.

    Attributes:
        name: of the module in the model, ``""`` for the model itself.
        before: its class.
        after: the class it gets; the same as ``before`` if it is left as it is.
        reason: why it is left, ``None`` if it is converted.
    """

    name: str
    before: type
    after: type
    reason: str | None = None


def convert(
    model: Model,
    *,
    compatible: bool = False,
    strict: bool = False,
    report: list[Conversion] | None = None,
) -> Model:
    """Turn every ``torch.nn`` RNN, LSTM, GRU and their cells in a model into fastrnn's, in place.

    Only the class of each module is changed. So parameters, buffers, hooks, parametrizations, tied
    weights, ``training``, ``requires_grad``, and everything that refers to the module or to its
    parameters (optimizers, other modules) stay, and ``state_dict`` is the same. Convert a model
    before it is compiled, exported or sharded with ``fully_shard``.

    Left as they are: subclasses, which may rely on torch's code; modules with parameters that
    fastrnn has no kernels for (on a GPU, of other dtypes, without elements); quantized and scripted
    ones.

    Args:
        model: any module, also an RNN itself.
        compatible: convert to the classes of :mod:`fastrnn.compat`, which ``isinstance`` takes for
            torch's. Default: ``False``.
        strict: raise if a recurrent module would be left as it is. Default: ``False``.
        report: a list that gets a :class:`Conversion` for each recurrent module. Default: ``None``.

    Returns:
        The same model.

    Raises:
        TypeError: if ``strict`` and a module cannot be converted; then none is.
    """
    plan = list(_plan(model, _COMPATIBLE if compatible else _OURS, _why_not_ours))
    return _carry_out("convert", model, plan, strict, report)


def to_torch(
    model: Model, *, strict: bool = False, report: list[Conversion] | None = None
) -> Model:
    """Turn every RNN, LSTM, GRU and their cells of fastrnn in a model into torch's, in place.

    The reverse of :func:`convert`, in the same way, also for modules made by fastrnn's
    constructors. Options that torch does not have are dropped if they change no result
    (``checkpoint_every``); modules that torch has no equal of (:class:`fastrnn.Quantized`) and
    subclasses are left as they are.

    Args:
        model: any module, also an RNN itself.
        strict: raise if a module of fastrnn would be left as it is. Default: ``False``.
        report: a list that gets a :class:`Conversion` for each such module. Default: ``None``.

    Returns:
        The same model.

    Raises:
        TypeError: if ``strict`` and a module cannot be converted; then none is.
    """
    plan = list(_plan(model, _TORCHS, _why_not_torchs))
    return _carry_out("to_torch", model, plan, strict, report)


def _carry_out(
    owner: str,
    model: Model,
    plan: list[tuple[torch.nn.Module, Conversion]],
    strict: bool,
    report: list[Conversion] | None,
) -> Model:
    for _, entry in plan:
        if strict and entry.reason is not None:
            where = f"the module {entry.name!r}" if entry.name else "the model"
            raise TypeError(
                f"{owner}: {where} must be convertible, got {entry.before.__name__}: "
                f"{entry.reason}; leave out strict=True to leave it as it is"
            )
    for module, entry in plan:
        if entry.reason is None:
            module.__class__ = entry.after
            for name in _ONLY_OURS:
                module.__dict__.pop(name, None)
    if report is not None:
        report += [entry for _, entry in plan]
    return model


def _plan(
    model: torch.nn.Module, table: Mapping[type, type], why_not: Any
) -> Iterator[tuple[torch.nn.Module, Conversion]]:
    """Yield the recurrent modules, and what becomes of them."""
    for name, module in model.named_modules():
        cls = type(module)
        plain = parametrize.type_before_parametrizations(module)
        reason = why_not(module, plain in table)
        if reason is not None:
            yield module, Conversion(name, cls, cls, reason)
        elif plain in table:
            yield module, Conversion(name, cls, _like(cls, table[plain]))


def _like(cls: type, base: type) -> type:
    """Return ``base``, or what parametrizing makes of it if ``cls`` is a parametrized class."""
    if cls in _OURS or cls in _TORCHS:
        return base
    members = {n: m for n, m in vars(cls).items() if n not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), members)


def _why_not_ours(module: torch.nn.Module, known: bool) -> str | None:
    """Return why a module is left as it is; ``None`` if it is converted, or not recurrent."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", None) in _NAMES
        return "TorchScript cannot be converted; convert the model before" if scripted else None
    if type(module).__module__.startswith("torch.ao.nn.") and type(module).__name__ in _NAMES:
        return "it is quantized; fastrnn.quantize_dynamic makes 8-bit modules"
    if not isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
        return None
    if isinstance(module, RNNBase | RNNCellBase):
        return None
    if not known:
        return "it is a subclass, which may rely on torch's code"
    for name, weight in module.named_parameters():
        on_gpu = weight.is_cuda and _cuda_device.module().has_kernels
        if weight.device.type not in ("cpu", "meta") and not on_gpu:
            return f"{name} is on {weight.device}, for which there are no kernels"
        if weight.dtype not in _checks.DTYPES:
            return f"{name} is {weight.dtype}, for which there are no kernels"
        if weight.numel() == 0:
            return f"{name} has no elements"
    return None


def _why_not_torchs(module: torch.nn.Module, known: bool) -> str | None:
    """Return why a module of fastrnn is left as it is."""
    if isinstance(module, Quantized):
        return "torch.nn has no 8-bit modules"
    if isinstance(module, RNNBase | RNNCellBase) and not known:
        return "it is a subclass, which may rely on fastrnn's code"
    return None
