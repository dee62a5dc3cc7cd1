"""Layers as ONNX's own operators, while torch.onnx.export records a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _checks
from ._problem import Layer, Stack, Weights, constant_when_traced

if TYPE_CHECKING:
    from .cells._spec import Foreign


def active() -> bool:
    """Tell whether torch.onnx.export is recording the call."""
    # The second question costs as much as a tenth of a small call; it implies the first one.
    return is_compiling() and _exporting()


@constant_when_traced
def _exporting() -> bool:
    """Ask torch for real, where Dynamo would take the answer for False."""
    return torch.onnx.is_in_onnx_export()


def run_layers(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Record one node a layer, in place of running the layers; ``lengths`` are int32, (B).

    Returns:
        y, h_n and, of an LSTM, c_n.
    """
    layers = stack.time_major
    x = x.transpose(0, 1) if batch_first else x
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None:
            _checks.check_state_shape(layers[0], name, state, x.shape[1], len(layers))
    parts = []
    for layer, own in zip(layers, weights, strict=True):
        at = slice(layer.index * stack.directions, (layer.index + 1) * stack.directions)
        states = [None if state is None else state[at] for state in (h0, c0)]
        x, *finals = _node(layer, x, states, own, lengths)
        parts.append(finals)
        if dropout and layer is not layers[-1]:
            x = torch.dropout(x, dropout, True)
    y = x.transpose(0, 1) if batch_first else x
    h_n, *c_n = (
        part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True)
    )
    return y, h_n, c_n[0] if c_n else None


def run_padded(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    batch_first: bool,
    dropout: float,
    lengths: Tensor | Sequence[int] | int | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Record the layers with lengths, which are ``sequence_lens`` of ONNX; see ``run_layers``."""
    if reset_mask is not None:
        raise NotImplementedError(
            f"{stack.owner}: reset_mask must be None for ONNX export; ONNX has no resets"
        )
    if x.dim() != 3 or lengths is None:
        raise NotImplementedError(
            f"{stack.owner}: lengths must be None without a batch for ONNX export; cut the input"
        )
    size = x.shape[0 if batch_first else 1]
    lengths = torch.as_tensor(lengths)
    if lengths.dtype not in (torch.int32, torch.int64) or lengths.shape != (size,):
        raise ValueError(
            f"{stack.owner}: lengths must be int64 or int32 of shape (B,) = ({size},), got "
            f"{lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    y, h_n, c_n = run_layers(
        stack, x, h0, c0, weights, batch_first, dropout, lengths.to(torch.int32)
    )
    # Runtimes differ in what a sequence without a step ends in.
    empty = (lengths == 0).unsqueeze(1)
    return y, _kept(empty, h0, h_n), None if c_n is None else _kept(empty, c0, c_n)


def _kept(empty: Tensor, before: Tensor | None, after: Tensor) -> Tensor:
    return torch.where(empty, after.new_zeros(()) if before is None else before, after)


def run_step(
    layer: Layer, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Weights
) -> Tensor | tuple[Tensor, Tensor]:
    """Record one node that does a single step, in place of doing it.

    Returns:
        h, or (h, c) of an LSTM.
    """
    lead = (None,) * (3 - x.dim())  # a step, and a batch if there is none
    states = [None if state is None else state[lead] for state in (h0, c0)]
    for name, state in zip(("h0", "c0"), states, strict=True):
        if state is not None:
            _checks.check_state_shape(layer, name, state[0], state.shape[1], 1)
    finals = _node(layer, x[lead], states, weights)[1:]
    h, *c = [final.flatten(0, -2) if x.dim() == 2 else final.flatten() for final in finals]
    return (h, c[0]) if c else h


def packed(owner: str) -> Exception:
    """Return the error for a PackedSequence, whose shapes depend on the data."""
    return NotImplementedError(
        f"{owner}: input must be a padded tensor for ONNX export, got a PackedSequence; "
        "give the padded batch and lengths"
    )


def _node(
    layer: Layer,
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Weights,
    lengths: Tensor | None = None,
) -> Sequence[Tensor]:
    """Record the node of one layer.

    Args:
        layer: the layer.
        x: (T, B, I).
        states: h0 and c0, each (D, B, H) or ``None`` for zeros.
        weights: of all directions.
        lengths: int32, (B), or ``None`` if all are T.

    Returns:
        y as (T, B, D*H), then h_n and, of an LSTM, c_n.
    """
    form = _operator(layer)
    if x.shape[-1] != layer.input_size:
        raise RuntimeError(
            f"{layer.owner}: input must have {layer.input_size} features, got {tuple(x.shape)}"
        )
    T, B, _ = x.shape
    D, H, count = layer.directions, layer.hidden_size, layer.spec.states
    own = [weights[d * len(weights) // D :][:5] for d in range(D)]
    bias = None if not layer.bias else [_both(form, w[2], w[3]) for w in own]
    inputs = [x, _stacked(form, own, 0), _stacked(form, own, 1)]
    optional = [None if bias is None else torch.stack(bias), lengths, *states[:count]]
    y, *finals = torch.onnx.ops.symbolic_multi_out(
        form.name,
        [*inputs, *optional],
        _attributes(layer, form),
        dtypes=[x.dtype] * (1 + count),
        shapes=[[T, D, B, H], *[[D, B, H]] * count],
    )
    return [y.squeeze(1) if D == 1 else y.transpose(1, 2).flatten(2), *finals]


def _operator(layer: Layer) -> Foreign:
    """Return the operator that does what the layer does, or say why there is none."""
    if not hasattr(torch.onnx, "ops") or not hasattr(torch.onnx.ops, "symbolic_multi_out"):
        raise RuntimeError(
            f"{layer.owner}: ONNX export needs torch.onnx.ops.symbolic_multi_out of torch >= 2.8, "
            f"got torch {torch.__version__}; upgrade torch, or load the state_dict into torch.nn"
        )
    form = layer.spec.onnx
    if form is None:
        raise NotImplementedError(f"{layer.owner}: ONNX has no operator for this cell")
    if layer.quantized:
        raise NotImplementedError(
            f"{layer.owner}: ONNX has no operator with 8-bit weights; export the module that this "
            "one was made from, and quantize the ONNX model"
        )
    if layer.proj_size:
        raise NotImplementedError(
            f"{layer.owner}: proj_size must be 0 for ONNX export, got {layer.proj_size}; ONNX's "
            f"{form.name} has no projection"
        )
    return form


def _attributes(layer: Layer, form: Foreign) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": "forward" if layer.directions == 1 else "bidirectional",
        **dict(form.options),
    }
    if len(layer.spec.activations) > 1:
        names = [name.title() for name in form.activations(layer.activation)]
        attributes["activations"] = names * layer.directions
    return attributes


def _stacked(form: Foreign, own: Sequence[Weights], slot: int) -> Tensor:
    tensors = [weights[slot] for weights in own]
    return torch.stack([form.from_torch(tensor) for tensor in tensors if tensor is not None])


def _both(form: Foreign, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
    assert b_ih is not None
    assert b_hh is not None
    return torch.cat([form.from_torch(b_ih), form.from_torch(b_hh)])
