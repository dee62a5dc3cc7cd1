"""The gate to the engines' streams: what ``_ops`` is for calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import _checks, _cuda_device, _cuda_ops, _errors, _plans
from ._problem import Layer

_CPU = torch.device("cpu")


class _StreamLike(Protocol):
    batch_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def cell_dtype(self) -> torch.dtype: ...


def stream_device(weight: Tensor) -> torch.device:
    """Return the device of a stream: the weights', or the CPU if no engine runs there."""
    return weight.device if _cuda_device.takes(weight) else _CPU


def open_stream(
    layers: Sequence[Layer], dtype: torch.dtype, batch: int, like: Tensor
) -> _plans.core.Stream | _cuda_ops.Stream:
    """Make the engine's side of a stream; its weights are loaded by ``load_stream``.

    Raises:
        NotImplementedError: if there are no kernels for the dtype.
    """
    if dtype not in _checks.DTYPES:
        raise _errors.unsupported_dtype(layers[0].owner, dtype)
    if _cuda_device.takes(like):
        return _cuda_ops.Stream(layers, dtype, batch, like.device)
    return _plans.core.Stream(_plans.stream_problem(layers[0], dtype, batch), len(layers))


def tensor_step(
    engine: _plans.core.Stream | _cuda_ops.Stream,
) -> Callable[[object], Tensor | None] | None:
    """Return what does a whole step of a plain tensor, checks and output, in the compiled module.

    It answers with ``None``, and has done nothing, if there is anything special about the tensor.
    An engine that cannot see tensors has none.
    """
    return None if isinstance(engine, _cuda_ops.Stream) else engine.step_tensor


def load_stream(
    engine: _plans.core.Stream | _cuda_ops.Stream,
    layers: Sequence[Layer],
    weights: Sequence[Sequence[Tensor | None]],
    stream: _StreamLike,
) -> None:
    """Copy the weights of all layers into a stream.

    Raises:
        RuntimeError, ValueError, TypeError: as ``forward`` does for weights.
    """
    like = torch.empty(0, dtype=stream.dtype, device=stream.device)
    checked = [
        _checks.quantized_weights(layer, like, own, False)
        if layer.quantized
        else _checks.weights(layer, like, own, False)
        for layer, own in zip(layers, weights, strict=True)
    ]
    if isinstance(engine, _cuda_ops.Stream):
        engine.load([weight for own in weights for weight in own])
    else:
        engine.load([address for addresses, _copies in checked for address in addresses])


def set_stream_state(
    engine: _plans.core.Stream | _cuda_ops.Stream,
    layers: Sequence[Layer],
    value: object,
    stream: _StreamLike,
) -> None:
    """Replace the state of a stream.

    Raises:
        RuntimeError, TypeError: if a state is missing or wrong in shape, dtype, device or type.
    """
    layer = layers[0]
    states: Sequence[object] = [value]
    if layer.spec.states > 1:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise _errors.two_states(layer.owner, value, False)
        states = value
    kept = []
    for name, state, dtype in zip(
        ("h0", "c0"), states, (stream.dtype, stream.cell_dtype), strict=False
    ):
        like = torch.empty(0, dtype=dtype, device=stream.device)
        _checks.check_like(layer, name, state, like, False)
        assert isinstance(state, Tensor)
        _checks.check_state_shape(layer, name, state, stream.batch_size, len(layers))
        kept.append(_checks.copy_if_needed(layer, name, state))
        _checks.address(layer, name, kept[-1])
    engine.set_state(kept[0].data_ptr(), kept[1].data_ptr() if len(kept) > 1 else 0)
