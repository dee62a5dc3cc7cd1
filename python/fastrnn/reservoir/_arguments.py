"""Checks of a reservoir's arguments: each message names the argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _engine, _inputs


def count(name: str, value: object, least: int) -> int:
    """Return an integer that is at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"Reservoir: {name} must be an integer >= {least}, got {value!r}")
    return value


def number(name: str, value: object) -> float:
    """Return a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"Reservoir: {name} must be a finite number, got {value!r}")
    return float(value)


def in_range(name: str, value: float, low: float, high: float, open_below: bool = False) -> float:
    """Return a finite number of [low, high], or (low, high]."""
    checked = number(name, value)
    if checked < low or (open_below and checked == low) or checked > high:
        raise ValueError(
            f"Reservoir: {name} must be in {'(' if open_below else '['}{low}, {high}"
            f"{')' if high == math.inf else ']'}, got {value!r}"
        )
    return checked


def dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Return the weights' dtype."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _engine.DTYPES:
        raise ValueError(f"Reservoir: dtype must be torch.float32 or torch.float64, got {dtype}")
    return dtype


def finite(name: str, value: Tensor, form: str, expected: tuple[int, ...]) -> Tensor:
    """Return a tensor of a shape, all of whose numbers are finite."""
    _inputs.check_shape("Reservoir", name, form, expected, value)
    if not torch.isfinite(value).all():
        raise ValueError(f"Reservoir: {name} must be finite, got inf or NaN")
    return value.detach()


def bias(bias: float | Tensor, N: int) -> float | Tensor:
    """Return the half-width of biases, or the biases."""
    if isinstance(bias, Tensor):
        return finite("bias", bias, "(N,)", (N,))
    return in_range("bias", bias, 0, math.inf)


def scaling(scaling: float | Tensor, I: int) -> Tensor:
    """Return what input weights are multiplied by, (I,) or ()."""
    if isinstance(scaling, Tensor) and scaling.dim():
        return finite("input_scaling", scaling, "(I,)", (I,)).double()
    return torch.tensor(number("input_scaling", float(scaling)), dtype=torch.float64)


def leaks(leak: float | Tensor, layers: int, N: int) -> Tensor:
    """Return the leak of every layer and unit."""
    if not isinstance(leak, Tensor) or leak.dim() == 0:
        same = in_range("leak", float(leak), 0, 1, open_below=True)
        return torch.full((layers, N), same, dtype=torch.float64)
    shape = (N,) if leak.dim() == 1 else (layers, N)
    value = finite("leak", leak, "(N,) or (num_layers, N)", shape)
    if not bool(((value > 0) & (value <= 1)).all()):
        raise ValueError("Reservoir: leak must be in (0, 1] for every unit")
    return value.expand(layers, N)
