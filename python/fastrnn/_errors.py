"""Messages for wrong arguments: who, which argument, what was expected, what came, the remedy.

The exception types are those of torch.nn for the same mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._problem import Layer, Ragged


class InputDtypeError(ValueError, RuntimeError):
    """The input's dtype is not the weights': torch.nn raises either kind, by module and input."""


def shape(owner: str, name: str, form: str, expected: Sequence[object], got: Tensor) -> Exception:
    """Return the error for a tensor of the wrong shape."""
    sizes = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
    return RuntimeError(f"{owner}: {name} must have shape {form} = {sizes}, got {tuple(got.shape)}")


def input_shape(layer: Layer, ragged: Ragged | None, got: Tensor) -> Exception:
    """Return the error for an input of the wrong shape."""
    if layer.step:
        form, sizes = "(B, I)", ["*"]
    elif ragged is not None and ragged.rows is None:
        form, sizes = "(N, I)", [str(ragged.N)]
    elif ragged is not None:
        T, B = map(str, ragged.padded)
        form, sizes = ("(B, T, I)", [B, T]) if layer.x_batch_first else ("(T, B, I)", [T, B])
    else:
        form, sizes = "(B, T, I)" if layer.x_batch_first else "(T, B, I)", ["*", "*"]
    return shape(layer.owner, "input", form, [*sizes, layer.input_size], got)


def weight_shape(layer: Layer, name: str, expected: Sequence[int], got: Tensor) -> Exception:
    """Return the error for a weight of the wrong shape."""
    form = {"ih": "(G*H, I)", "hh": "(G*H, O)", "hr": "(P, H)"}[name.split("_")[1]]
    return shape(layer.owner, name, form if len(expected) == 2 else "(G*H,)", expected, got)


def rank(owner: str, got: Tensor, step: bool) -> Exception:
    """Return the error for an input that is neither unbatched nor batched."""
    ranks = "1 or 2 dimensions, (I) or (B, I)" if step else "2 or 3 dimensions, (T, I) or batched"
    return ValueError(f"{owner}: input must have {ranks}, got {tuple(got.shape)}")


def state_rank(owner: str, name: str, expected: int, got: Tensor) -> Exception:
    """Return the error for a state with a batch where the input has none, or the reverse."""
    kind = "batched" if expected == 3 else "unbatched"
    return RuntimeError(
        f"{owner}: {name} must have {expected} dimensions, as the input is {kind}, got "
        f"{tuple(got.shape)}"
    )


def step_state_rank(owner: str, name: str, expected: int, got: Tensor) -> Exception:
    """Return the error for a state of a single step whose rank is not the input's."""
    kind = "batched, (B, H)" if expected == 2 else "unbatched, (H)"
    error = RuntimeError if got.dim() in (1, 2) else ValueError
    return error(f"{owner}: {name} must be {kind}, as the input is, got {tuple(got.shape)}")


def not_a_tensor(owner: str, name: str, got: object) -> Exception:
    """Return the error for something that should be a tensor."""
    return TypeError(f"{owner}: {name} must be a torch.Tensor, got {type(got).__name__}")


def subclass(owner: str, name: str, got: Tensor) -> Exception:
    """Return the error for a tensor whose memory is not plainly its own."""
    return TypeError(
        f"{owner}: {name} must be a plain torch.Tensor, got {type(got).__name__}; "
        "give the tensor that it wraps"
    )


def mixed(owner: str, name: str, x: Tensor, got: Tensor) -> Exception:
    """Return the error for a real tensor among fake ones, or the reverse."""
    return TypeError(
        f"{owner}: {name} and input must both be real or both fake, got {type(got).__name__} and "
        f"{type(x).__name__}; make the real one fake with mode.from_tensor(tensor)"
    )


def device(owner: str, name: str, x: Tensor, got: Tensor) -> Exception:
    """Return the error for a tensor that is not where the input is."""
    return RuntimeError(
        f"{owner}: {name} must be on the input's device, {x.device}, got {got.device}; "
        "move the module or the tensors with .to(device)"
    )


def unsupported_device(owner: str, name: str, got: Tensor) -> Exception:
    """Return the error for a device there are no kernels for."""
    return RuntimeError(
        f"{owner}: {name} must be on the CPU or a CUDA device, got {got.device}, for which fastrnn "
        f"has no kernels; move the module and its input with .to('cpu'), or use torch.nn.{owner} "
        "there"
    )


def cpu_only(owner: str, what: str, remedy: str) -> Exception:
    """Return the error for what the CUDA engine does not do."""
    return NotImplementedError(
        f"{owner}: {what} is for the CPU only, got tensors on a CUDA device; {remedy}"
    )


def captured_lengths(owner: str) -> Exception:
    """Return the error for rows that the host describes, within a CUDA graph."""
    return RuntimeError(
        f"{owner}: packed input, lengths and reset_mask must not be captured into a CUDA graph, as "
        "the host reads them once; capture padded input without them"
    )


def unsupported_layout(owner: str, name: str, got: Tensor) -> Exception:
    """Return the error for a sparse tensor and its like."""
    return RuntimeError(
        f"{owner}: {name} must be dense, got the layout {got.layout}; convert it with .to_dense()"
    )


def unsupported_dtype(owner: str, got: torch.dtype) -> Exception:
    """Return the error for a type of number there are no kernels for."""
    return NotImplementedError(
        f"{owner}: input and weights must be torch.float32, float64, bfloat16 or float16, got "
        f"{got}, for which fastrnn has no kernels; convert the module and its input with "
        ".to(torch.float32)"
    )


def quantized_dtype(owner: str, got: Tensor) -> Exception:
    """Return the error for an input of a quantized module that is not float32."""
    return InputDtypeError(
        f"{owner}: input must be torch.float32 for a quantized module, got {got.dtype}; "
        "convert it with input.float()"
    )


def quantized_gradient(owner: str) -> Exception:
    """Return the error for a gradient asked of a quantized module."""
    return RuntimeError(
        f"{owner}: input and states must not require gradients, as a quantized module is for "
        "inference only; call it under torch.no_grad()"
    )


def input_dtype(layer: Layer, x: Tensor, weight: Tensor) -> Exception:
    """Return the error for an input whose numbers are not of the weights' type."""
    message = (
        f"{layer.owner}: input must have the dtype of {layer.names[0]}, {weight.dtype}, got "
        f"{x.dtype}; convert the input with input.to({weight.dtype})"
    )
    if x.is_floating_point():
        message += f" or the module with module.to({x.dtype})"
    return InputDtypeError(message)


def dtype(owner: str, name: str, x: Tensor, got: Tensor) -> Exception:
    """Return the error for a state or weight whose numbers are not of the input's type."""
    return RuntimeError(
        f"{owner}: {name} must have the input's dtype, {x.dtype}, got {got.dtype}; "
        f"convert it with .to({x.dtype})"
    )


def freed(owner: str, name: str) -> Exception:
    """Return the error for a tensor without memory."""
    return RuntimeError(
        f"{owner}: {name} must have memory, got a tensor whose storage is empty; "
        "allocate it (or gather it, if it is sharded) before the call"
    )


def hidden_memory(owner: str) -> Exception:
    """Return the error for real tensors under a mode that makes fake ones."""
    return RuntimeError(
        f"{owner}: under FakeTensorMode all tensors must be fake, got real ones; "
        "make them fake with mode.from_tensor(tensor)"
    )


def stream_without_memory(owner: str) -> Exception:
    """Return the error for a step of a stream where new tensors have no memory."""
    return RuntimeError(
        f"{owner}: a stream's output must have memory, got a tensor without, as FakeTensorMode and "
        "torch.func.functionalize make them; call step() outside"
    )


def no_steps(owner: str) -> Exception:
    """Return the error for a sequence of length zero."""
    return RuntimeError(f"{owner}: expected sequence length to be larger than 0, got 0")


def two_states(owner: str, got: object, step: bool) -> Exception:
    """Return the error for an hx that is not a pair of tensors."""
    if isinstance(got, tuple | list):
        came = "(" + ", ".join(type(item).__name__ for item in got) + ")"
    else:
        came = type(got).__name__
    error = TypeError if step and not isinstance(got, tuple | list) else RuntimeError
    return error(
        f"{owner}: hx must be a pair (h0, c0) of tensors, got {came}; "
        "give both states, or None for zeros"
    )


def batch_sizes(owner: str, expected: str, got: object) -> Exception:
    """Return the error for batch sizes that no packed batch has."""
    error = TypeError if isinstance(got, Tensor) and got.is_floating_point() else RuntimeError
    if isinstance(got, Tensor) and got.dtype is not torch.int64:
        got = got.dtype
    return error(
        f"{owner}: batch_sizes of a PackedSequence must {expected}, got {got}; "
        "make it with torch.nn.utils.rnn.pack_padded_sequence"
    )


def segments(owner: str, name: str, expected: str, got: object, kind: bool = False) -> Exception:
    """Return the error for lengths or a reset_mask that do not fit the input, or are of no kind."""
    error = TypeError if kind else ValueError
    return error(f"{owner}: {name} must {expected}, got {got}")


def packed_with(owner: str, name: str) -> Exception:
    """Return the error for a PackedSequence together with what describes padded input."""
    return ValueError(
        f"{owner}: {name} must be None with a PackedSequence, which has its own lengths; "
        "give the padded input instead"
    )


def transform(owner: str, what: str) -> Exception:
    """Return the error for what torch does around the call and fastrnn does not yet know."""
    return NotImplementedError(
        f"{owner}: {what} is not supported yet; use torch.nn.{owner}, which takes the same "
        "state_dict, there"
    )


def refuse_projection(owner: str, unsupported: dict[str, Any]) -> None:
    """Raise for keyword arguments that the class does not take.

    Raises:
        ValueError: if there is a ``proj_size``, which is only for LSTM.
        TypeError: if there is any other.
    """
    if "proj_size" in unsupported:
        raise ValueError(f"{owner}: proj_size is only supported by LSTM; leave it out")
    for name in unsupported:
        raise TypeError(f"{owner}.__init__() got an unexpected keyword argument {name!r}")
