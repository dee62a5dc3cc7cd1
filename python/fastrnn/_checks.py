"""Checks of tensors whose memory the engine will read: half of the gate that ``_ops`` is.

The tests before each call of a function here are written out where they are needed, because a
function call costs as much as three of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _errors
from ._problem import Layer, Ragged

PLAIN = frozenset({Tensor, Parameter})
"""Types whose memory is their own and where it seems to be."""

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what the engine computes in, and keeps for itself, where tensors are of ``dtype``."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def is_fake(owner: str, name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor has a shape but no memory (meta, fake).

    Raises:
        TypeError: if it wraps another tensor.
        RuntimeError: if it is on a device without kernels.
    """
    kind = type(tensor)
    if kind in PLAIN or kind.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
        fake = tensor.is_meta
    else:
        from torch._subclasses.fake_tensor import FakeTensor

        if not isinstance(tensor, FakeTensor):
            raise _errors.subclass(owner, name, tensor)
        fake = True
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise _errors.unsupported_device(owner, name, tensor)
    return fake


def check_like(layer: Layer, name: str, tensor: object, x: Tensor, fake: bool) -> None:
    """Check type, device and dtype of a state or weight against those of the input.

    Raises:
        TypeError: if it is no tensor, or one that wraps another, or a real one among fake ones.
        RuntimeError: if device or dtype differ, or the layout is not strided.
        ValueError: if the dtype of the first weight differs, and this is no single step.
    """
    if not isinstance(tensor, Tensor):
        raise _errors.not_a_tensor(layer.owner, name, tensor)
    if tensor.layout is not torch.strided:
        raise _errors.unsupported_layout(layer.owner, name, tensor)
    if tensor.device != x.device:
        raise _errors.device(layer.owner, name, x, tensor)
    if tensor.dtype is not x.dtype:
        if name == layer.names[0]:
            raise _errors.input_dtype(layer, x, tensor)
        raise _errors.dtype(layer.owner, name, x, tensor)
    if is_fake(layer.owner, name, tensor) is not fake:
        raise _errors.mixed(layer.owner, name, x, tensor)


def check_readable(
    layer: Layer, x: Tensor, h0: Tensor | None, c0: Tensor | None, weight: Tensor | None
) -> None:
    """Check what torch's operators meet before the gate does: freed memory would end the process.

    Raises:
        RuntimeError, ValueError, TypeError: as the gate does.
    """
    for name, tensor in (("input", x), ("h0", h0), ("c0", c0)):
        if tensor is None or (
            type(tensor) in PLAIN
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and tensor.data_ptr()
        ):
            continue
        fake = is_fake(layer.owner, "input", x)
        check_like(layer, name, tensor, x, fake)
        own = layer.names[0] or "weight"
        near = weight if weight is not None and weight.device == x.device else None
        if near is not None and is_fake(layer.owner, own, near) is not fake:
            raise _errors.mixed(layer.owner, own, x, near)
        if tensor.is_cpu and not fake:
            address(layer, name, tensor)


def sizes(layer: Layer, x: Tensor, ragged: Ragged | None) -> tuple[bool, int, int, tuple[int, ...]]:
    """Check the input's type, device and shape.

    Returns:
        Whether it is fake, T, B, and the shape of y.

    Raises:
        TypeError: if it is no tensor, or one that wraps another.
        RuntimeError: if its device, layout or shape are wrong, or T is 0.
    """
    if type(x) in PLAIN and (x.is_cpu or x.is_cuda):
        fake = False
    elif isinstance(x, Tensor):
        fake = is_fake(layer.owner, "input", x)
    else:
        raise _errors.not_a_tensor(layer.owner, "input", x)
    if x.layout is not torch.strided:
        raise _errors.unsupported_layout(layer.owner, "input", x)
    shape, width = x.shape, layer.width
    padded = ragged is not None and ragged.rows is not None
    if len(shape) == 3 and not layer.step and (ragged is None or padded):
        first, second, features = shape
        T, B = (second, first) if layer.x_batch_first else (first, second)
        y_shape: tuple[int, ...] = (B, T, width) if layer.y_batch_first else (T, B, width)
        if ragged is not None:
            if ragged.padded != (T, B):
                raise _errors.input_shape(layer, ragged, x)
            T, B = min(T, ragged.T), ragged.B
    elif len(shape) == 2 and layer.step and ragged is None:
        B, features = shape
        T, y_shape = 1, (B, width)
    elif len(shape) == 2 and ragged is not None and not padded and shape[0] == ragged.N:
        T, B, features = ragged.T, ragged.B, shape[1]
        y_shape = (ragged.N, width)
    else:
        raise _errors.input_shape(layer, ragged, x)
    if features != layer.input_size:
        raise _errors.input_shape(layer, ragged, x)
    if T == 0:
        raise _errors.no_steps(layer.owner)
    return fake, T, B, y_shape


def ragged(owner: str, batch_sizes: Tensor, rows: int) -> Ragged:
    """Check the batch sizes of a packed batch of ``rows`` rows.

    As in torch.nn, rows beyond their sum are left out, and so are steps of size zero at the end.

    Raises:
        RuntimeError: if they are no int64 vector on the CPU, if they grow or are negative, if their
            sum exceeds the rows, or if there is no step.
    """
    if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise _errors.batch_sizes(owner, "be a torch.int64 vector on the CPU", batch_sizes)
    T = batch_sizes.numel()
    if T == 0:
        raise _errors.no_steps(owner)
    if not bool((batch_sizes[1:] <= batch_sizes[:-1]).all()) or int(batch_sizes[-1]) < 0:
        raise _errors.batch_sizes(owner, "fall from step to step and not below 0", batch_sizes)
    B = int(batch_sizes[0])
    if int(batch_sizes[-1]) == 0:
        T = int(torch.count_nonzero(batch_sizes))
        if T == 0:
            raise _errors.no_steps(owner)
    offsets = torch.zeros(T + 1, dtype=torch.int64, device=batch_sizes.device)
    torch.cumsum(batch_sizes[:T], 0, out=offsets[1:])
    N = int(offsets[-1])
    if rows < max(B, N):
        raise _errors.batch_sizes(owner, f"sum to the number of rows, {rows}", N)
    return Ragged(offsets, T, B, N)


def check_state_shape(layer: Layer, name: str, state: Tensor, batch: int, count: int) -> None:
    """Check an initial state of ``count`` layers against the batch.

    Raises:
        RuntimeError: if the shape is not (L*D, B, H), or (B, H) for a single step; a projected
            state has P in place of H.
    """
    size = layer.output_size if name == "h0" else layer.hidden_size
    expected: tuple[int, ...] = (count * layer.directions, batch, size)
    if layer.step:
        expected = expected[1:]
    if state.shape != expected:
        letter = "P" if name == "h0" and layer.proj_size else "H"
        form = f"(B, {letter})" if layer.step else f"(L*D, B, {letter})"
        raise _errors.shape(layer.owner, name, form, expected, state)


def state(
    layer: Layer, name: str, tensor: Tensor, x: Tensor, batch: int, fake: bool
) -> tuple[int, Tensor]:
    """Check an initial state; return its address and the tensor this belongs to."""
    if (
        fake
        or type(tensor) not in PLAIN
        or tensor.dtype is not x.dtype
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
    ):
        check_like(layer, name, tensor, x, fake)
    check_state_shape(layer, name, tensor, batch, 1)
    if fake:
        return 0, tensor
    tensor = copy_if_needed(layer, name, tensor)
    return address(layer, name, tensor), tensor


def weights(
    layer: Layer, x: Tensor, tensors: Sequence[Tensor | None], fake: bool
) -> tuple[list[int], list[Tensor]]:
    """Check the weights; return their addresses and the copies that some of these belong to."""
    dtype, strided = x.dtype, torch.strided
    addresses = []
    copies = []
    # A lazily negated view (of a complex tensor) is contiguous only if it has a single value.
    single = layer.hidden_size == 1
    for weight, shape, name in zip(tensors, layer.shapes, layer.names):  # noqa: B905 (slow)
        if name is None or shape is None:
            addresses.append(0)
            continue
        if (
            fake
            or weight is None
            or type(weight) not in PLAIN
            or weight.dtype is not dtype
            or not weight.is_cpu
            or weight.layout is not strided
        ):
            check_like(layer, name, weight, x, fake)
            assert weight is not None
        if weight.shape != shape:
            raise _errors.weight_shape(layer, name, shape, weight)
        if fake:
            continue
        if not weight.is_contiguous() or (single and weight.is_neg()):
            weight = copy_if_needed(layer, name, weight)
            copies.append(weight)
        addresses.append(weight.data_ptr() or address(layer, name, weight))
    if dtype not in DTYPES:
        raise _errors.unsupported_dtype(layer.owner, dtype)
    return addresses, copies


def quantized_weights(
    layer: Layer, x: Tensor, tensors: Sequence[Tensor | None], fake: bool
) -> tuple[list[int], list[Tensor]]:
    """Check 8-bit weights and their scales; see ``weights``."""
    if x.dtype is not torch.float32:
        raise _errors.quantized_dtype(layer.owner, x)
    addresses = []
    copies = []
    for tensor, shape, name in zip(tensors, layer.shapes, layer.names, strict=True):
        if name is None or shape is None:
            addresses.append(0)
            continue
        dtype = torch.int8 if name.startswith("weight") else torch.float32
        like = torch.empty(0, dtype=dtype, device=x.device)
        check_like(layer, name, tensor, like, fake)
        assert tensor is not None
        if tensor.shape != shape:
            raise _errors.weight_shape(layer, name, shape, tensor)
        if fake:
            continue
        copies.append(copy_if_needed(layer, name, tensor))
        addresses.append(address(layer, name, copies[-1]))
    return addresses, copies


def reserve_shape(
    layer: Layer, T: int, B: int, ragged: Ragged | None, saved: int
) -> tuple[int, ...]:
    """Return the shape of what forward leaves for backward, (D, T*B or N, saved, H).

    With ``checkpoint_every`` = K there are ceil(T/K)*B rows.
    """
    steps = layer.checkpoint_steps(T)
    rows = -(-T // steps) * B if steps else T * B if ragged is None else ragged.N
    return (layer.directions, rows, saved, layer.hidden_size)


def alike(
    layer: Layer, name: str, tensor: Tensor | None, x: Tensor, shape: tuple[int, ...]
) -> None:
    """Check what autograd or a hook on saved tensors has handed back."""
    if (
        tensor is None
        or type(tensor) not in PLAIN
        or tensor.dtype is not x.dtype
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
    ):
        check_like(layer, name, tensor, x, False)
        assert tensor is not None
    if tensor.shape != shape:
        raise _errors.shape(layer.owner, name, "forward's", shape, tensor)


def saved(
    layer: Layer,
    x: Tensor,
    y_shape: tuple[int, ...],
    reserve_shape: tuple[int, ...],
    outputs: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Tensor | None]:
    """Check y and the reserve that forward left; return them with their values in order."""
    y, reserve = outputs
    alike(layer, "the saved output", y, x, y_shape)
    if reserve is not None or reserve_shape[2]:
        like = x if value_dtype(x.dtype) is x.dtype else x.new_empty(0, dtype=torch.float32)
        alike(layer, "the saved reserve", reserve, like, reserve_shape)
        assert reserve is not None
        reserve = copy_if_needed(layer, "the saved reserve", reserve)
        address(layer, "the saved reserve", reserve)
    return copy_if_needed(layer, "the saved output", y), reserve


def gradients(
    layer: Layer,
    x: Tensor,
    batch: int,
    y_shape: tuple[int, ...],
    tensors: Sequence[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Check the gradients of y, h_n and c_n; return them as the engine can read them."""
    dy, dh_n, dc_n = tensors
    lead = (batch,) if layer.step else (layer.directions, batch)
    if dy is not None:
        alike(layer, "the gradient of the output", dy, x, y_shape)
    if dh_n is not None:
        alike(layer, "the gradient of h_n", dh_n, x, (*lead, layer.output_size))
        dh_n = copy_if_needed(layer, "the gradient of h_n", dh_n)
        address(layer, "the gradient of h_n", dh_n)
    if dc_n is not None:
        alike(layer, "the gradient of c_n", dc_n, x, (*lead, layer.hidden_size))
        dc_n = copy_if_needed(layer, "the gradient of c_n", dc_n)
        address(layer, "the gradient of c_n", dc_n)
    return dy, dh_n, dc_n


def second_backward(
    layer: Layer,
    ragged: Ragged | None,
    saved_values: int,
    tensors: Sequence[Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    inputs: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
) -> bool:
    """Check all that a second backward pass reads, torch's operators included.

    Args:
        layer: as in ``_ops.backward``.
        ragged: as in ``_ops.backward``.
        saved_values: what the reserve has of each row and unit.
        tensors: the gradients of y, h_n and c_n.
        outputs: y and the reserve.
        inputs: x, h0, c0 and the weights.
        directions: for each input, what it changes by.

    Returns:
        Whether the tensors have values.

    Raises:
        RuntimeError, ValueError, TypeError: as the gate does.
    """
    x, h0, c0, *own = inputs
    assert x is not None
    fake, T, B, y_shape = sizes(layer, x, ragged)
    weights(layer, x, own, fake)
    for name, given in (("h0", h0), ("c0", c0)):
        if given is not None:
            state(layer, name, given, x, B, fake)
    if fake:
        return False
    gradients(layer, x, B, y_shape, tensors)
    if tensors[0] is not None:
        address(layer, "the gradient of the output", tensors[0])
    saved(layer, x, y_shape, reserve_shape(layer, T, B, ragged, saved_values), outputs)
    address(layer, "the saved output", outputs[0])
    for of, change in zip(inputs, directions, strict=True):
        if of is not None and change is not None:
            alike(layer, "a gradient of a gradient", change, of, tuple(of.shape))
            address(layer, "a gradient of a gradient", change)
    return True


def stream_input(layer: Layer, x: object, like: Tensor) -> Tensor:
    """Return a plain, contiguous input for one step of a stream.

    Args:
        layer: the first one.
        x: input.
        like: an empty tensor of the shape, dtype and device that it must have.

    Raises:
        RuntimeError, TypeError: if shape, dtype, device or type are wrong.
    """
    check_like(layer, "input", x, like, False)
    assert isinstance(x, Tensor)
    if x.shape != like.shape:
        raise _errors.shape(layer.owner, "input", "(B, I)", like.shape, x)
    x = copy_if_needed(layer, "input", x.detach()).as_subclass(Tensor)
    address(layer, "input", x)
    return x


def allocated(
    numbers: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    wanted: Sequence[bool],
    samples: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Allocate a gradient for each tensor that is there and whose gradient is wanted.

    Those of the weights have a first dimension of ``samples``, if that is given. As a tuple, sizes
    take half as long again.
    """
    tensors = [t if want else None for t, want in zip((*numbers, *weights), wanted, strict=True)]
    shared = len(tensors) if samples is None else len(numbers)
    return (
        *(None if t is None else t.new_empty(*t.shape) for t in tensors[:shared]),
        *(None if t is None else t.new_empty(samples or 0, *t.shape) for t in tensors[shared:]),
    )


def final_states(
    layer: Layer, x: Tensor, batch: int, count: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """Allocate h_n and c_n of ``count`` layers: those that the layer has."""
    if layer.step:
        return None, x.new_empty(batch, layer.hidden_size) if layer.spec.states > 1 else None
    slots = count * layer.directions
    h_n = x.new_empty(slots, batch, layer.output_size)
    c_n = x.new_empty(slots, batch, layer.hidden_size) if layer.spec.states > 1 else None
    return h_n, c_n


def copy_if_needed(layer: Layer, name: str, tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its memory does not hold its values in order.

    Raises:
        RuntimeError: if it would have to be copied from memory that is not there.
    """
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    address(layer, name, tensor)
    return tensor.contiguous().resolve_neg()


def rows(
    layer: Layer, name: str, tensor: Tensor, batch_first: bool
) -> tuple[Tensor, tuple[int, int, int]]:
    """Find the rows of x, y or a gradient of these; the features of a row must be adjacent.

    Returns:
        The tensor, or a copy if need be; and its address with the elements from one step to the
        next and from one row to the next.
    """
    stride = tensor.stride()
    if (stride[-1] != 1 and tensor.shape[-1] != 1) or tensor.is_neg():
        address(layer, name, tensor)
        tensor = tensor.contiguous().resolve_neg()
        stride = tensor.stride()
    at = tensor.data_ptr() or address(layer, name, tensor)
    if len(stride) == 2:
        return tensor, (at, 0, stride[0])
    if batch_first:
        return tensor, (at, stride[1], stride[0])
    return tensor, (at, stride[0], stride[1])


def address(layer: Layer, name: str, tensor: Tensor) -> int:
    """Return where the tensor's values are.

    Raises:
        RuntimeError: if it has values but no memory.
    """
    found = tensor.data_ptr()
    if not found and tensor.numel():
        raise _errors.freed(layer.owner, name)
    return found
