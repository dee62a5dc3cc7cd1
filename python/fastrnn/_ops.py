"""The one gate to the compiled modules: checks, allocation, and the choice of an engine.

Everything that reaches ``fastrnn._core`` as a bare address has been checked here, once: device,
dtype, shape, strides and lifetime. What has been checked goes to ``_cuda_ops`` if it is on a GPU
(``_cuda_device.takes``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _cuda_device, _cuda_ops, _errors
from ._plans import (
    LARGE,
    Packed,
    PackedCache,
    Plan,
    allocate,
    core,
    large_pages,
    plan_now,
    saved_values,
    scratch_memory,
)
from ._problem import Layer, Ragged

FinalStates = tuple[Tensor | None, Tensor | None]
"""h_n (``None`` for a single step), c_n (``None`` if the cell has one state)."""

Outputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state), reserve."""

LARGE_WEIGHTS = 1 << 20
"""Bytes from which few steps keep no packed weights: fingerprint and copy would read them twice."""

LARGE_FOR_ROWS = 3 << 20
"""The same of more than ``FEW_ROWS`` rows: packing takes longer than reading it twice from L2."""

FEW_ROWS = 6
"""Rows that read weights as they lie (``kMaxUnpackedRows`` in csrc/cpu/unpacked.h)."""

_NO_TABLE = (0, 0, 0)


def version() -> str:
    """Return the version of the compiled module."""
    return core.version()


def isa() -> str:
    """Return the name of the instruction set in use."""
    return core.isa()


def available_isas() -> list[str]:
    """Return the names of the instruction sets that this machine can run."""
    return core.available_isas()


def set_isa(name: str) -> None:
    """Use another instruction set from the next call on.

    Args:
        name: one of ``available_isas()``.

    Raises:
        ValueError: if the machine or the build does not have it.
    """
    core.set_isa(name)


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _table(ragged: Ragged | None) -> tuple[int, int, int]:
    if ragged is None or ragged.rows is None:
        return _NO_TABLE
    return ragged.rows.data_ptr(), *ragged.padded


def _strides(layer: Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many elements lie between two steps, and between two rows, of a new output."""
    width = shape[-1]
    if len(shape) == 2:
        return 0, width
    return (width, shape[1] * width) if layer.y_batch_first else (shape[1] * width, width)


def _reserve(layer: Layer, x: Tensor, T: int, B: int, ragged: Ragged | None) -> Tensor | None:
    shape = _checks.reserve_shape(layer, T, B, ragged, saved_values(layer))
    return x.new_empty(shape, dtype=_checks.value_dtype(x.dtype)) if shape[2] else None


def _packed(
    layer: Layer, plan: Plan, inputs: core.Inputs, cache: PackedCache
) -> tuple[Packed, bool]:
    """Return memory for packed weights, and whether they have to be packed.

    Only their whole content tells whether weights have changed: version counters do not notice
    fused optimizers, writes through ``.data`` or numpy, or other processes. Quantized weights are
    never changed in place; who replaces them drops the cache.
    """
    content = None if layer.quantized else plan.problem.fingerprint(inputs)
    last = cache.get(layer.index)
    if last is not None and (last.content, last.packing) == (content, plan.packing):
        return Packed(content, plan.packing, last.memory, layer, plan), False
    return Packed(content, plan.packing, allocate(plan.packed), layer, plan), True


def repeated(
    layer: Layer,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    cache: PackedCache,
    out: FinalStates | None,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Do a call if it is like the last one of this layer, without gradients, all of it in C++.

    Returns:
        y, h_n and c_n as ``forward`` does; or ``None``, and nothing has been done.
    """
    last = cache.get(layer.index)
    if last is None or last.layer is not layer:
        return None
    plan = last.plan
    if not plan.small_outputs or plan.threads != torch.get_num_threads() or _cuda_device.takes(x):
        return None
    if torch._C._len_torch_dispatch_stack():  # under a mode new tensors may have no memory
        return None
    size = plan.workspace
    taken = scratch_memory.take(size + plan.final_h if layer.step else size)
    scratch = taken[0]
    outputs = plan.problem.repeat(
        plan.layout,
        x,
        h0,
        c0,
        weights,
        last.content,
        out,
        last.memory.data_ptr(),
        scratch,
        scratch + size,
    )
    scratch_memory.give_back(taken)
    return outputs


def _checked(
    layer: Layer,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    B: int,
    fake: bool,
) -> tuple[list[int], int, int, object]:
    """Check weights and initial states against the input.

    Returns:
        The addresses of the weights, of h0 and of c0 (0: absent), and what must live as long as
        these are used.
    """
    if layer.quantized:
        addresses, copies = _checks.quantized_weights(layer, x, weights, fake)
    else:
        addresses, copies = _checks.weights(layer, x, weights, fake)
    h0_address = c0_address = 0
    if h0 is not None:
        h0_address, h0 = _checks.state(layer, "h0", h0, x, B, fake)
    if c0 is not None:
        c0_address, c0 = _checks.state(layer, "c0", c0, x, B, fake)
    return addresses, h0_address, c0_address, (copies, h0, c0)


def _prepared(
    layer: Layer,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    sizes: tuple[int, int],
    training: bool,
    samples: int = 1,
) -> tuple[Plan, core.Inputs, object]:
    """Make the plan of a call on the CPU, and check what the call reads.

    Tensors that have nothing special about them the module reads by itself, in a tenth of the time
    that a look at each of their properties takes.

    Returns:
        The plan; where x, the initial states and the weights are; and what must live as long as
        these are used.
    """
    T, B = sizes
    every = layer.checkpoint_steps(T) if training else 0
    try:
        plan = plan_now(layer, x.dtype, T, B, ragged is not None, training, every, samples)
    except ValueError:
        _checked(layer, x, h0, c0, weights, B, False)  # these may know better what is wrong
        raise
    own = plan.problem.read_inputs(x, h0, c0, weights, layer.x_batch_first, layer.step)
    if own is not None:
        return plan, own, None
    addresses, h0_address, c0_address, alive = _checked(layer, x, h0, c0, weights, B, False)
    x, x_rows = _checks.rows(layer, "input", x, layer.x_batch_first)
    own = plan.problem.inputs(*x_rows, h0_address, c0_address, addresses)
    return plan, own, (x, alive)


def forward(
    layer: Layer,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    training: bool = False,
    cache: PackedCache | None = None,
    out: FinalStates | None = None,
) -> Outputs:
    """Run one layer over a batch of sequences.

    Args:
        layer: what to run; it says how ``x`` and y are laid out.
        x: input, (T, B, I) or (B, T, I); (N, I) for packed rows; (B, I) for a single step.
        ragged: where the rows of sequences of several lengths are; it counts the sequences of the
            states, and the output has zeros in the padding.
        h0: initial state, (D, B, O), or (B, O) for a single step; ``None`` for zeros.
        c0: initial cell state with H in place of O, if the cell has one.
        weights: five for each direction.
        training: fill the reserve that ``backward`` needs.
        cache: keeps packed weights from one call to the next; ``None``, or in training: pack them
            now.
        out: where h_n and c_n go, contiguous; by default they are allocated.

    Returns:
        y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state), reserve.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as torch.nn does.
    """
    if training:
        cache = None  # what it keeps are calls that can be repeated
    if cache and ragged is None:
        outputs = repeated(layer, x, h0, c0, weights, cache, out)
        if outputs is not None:
            return *outputs, None
    fake, T, B, y_shape = _checks.sizes(layer, x, ragged)
    on_cpu = not (fake or B == 0 or _cuda_device.takes(x)) and x.dtype in _checks.DTYPES
    if on_cpu and training and ragged is None and out is None:
        found = _ordinary_forward(layer, (T, B), x, h0, c0, weights)
        if found is not None:
            return found
    if on_cpu:
        plan, inputs, _alive = _prepared(layer, x, ragged, h0, c0, weights, (T, B), training)
    else:
        addresses, h0_address, c0_address, _alive = _checked(layer, x, h0, c0, weights, B, fake)
    y = x.new_empty(*y_shape) if B else x.new_zeros(y_shape)
    h_n, c_n = _checks.final_states(layer, x, B) if out is None else out
    reserve = _reserve(layer, x, T, B, ragged) if training else None
    if fake or B == 0:
        return y, h_n, c_n, reserve
    if type(y) is not Tensor and _checks.is_fake(layer.owner, "input", y):
        raise _errors.hidden_memory(layer.owner)
    if not on_cpu:
        _checks.address(layer, "input", x)  # torch's products would meet it first
        states = (h0, c0), (h0_address, c0_address)
        call = _cuda_ops.Call(layer, ragged, T, B, x, weights, addresses, *states)
        _cuda_ops.forward(call, training, y, h_n, c_n, reserve)
        return y, h_n, c_n, reserve

    large_pages(y)
    if reserve is not None:
        large_pages(reserve)
    size = plan.workspace
    if h_n is None:
        h_n_at, size = size, size + plan.final_h
    repack, packed = True, None
    large = LARGE_WEIGHTS if T * B <= FEW_ROWS else LARGE_FOR_ROWS
    if plan.problem.packs_as_used and (cache is None or plan.packed >= large):
        taken = scratch_memory.take(size)
        packed_address = 0
    elif cache is None:
        taken = scratch_memory.take(size + plan.packed)
        packed_address = taken[0] + size
    else:
        packed, repack = _packed(layer, plan, inputs, cache)
        taken = scratch_memory.take(size)
        packed_address = packed.memory.data_ptr()
    scratch = taken[0]
    core.forward(
        plan.problem,
        inputs,
        0 if ragged is None else ragged.offsets.data_ptr(),
        _table(ragged),
        y.data_ptr(),
        *_strides(layer, y_shape),
        scratch + h_n_at if h_n is None else h_n.data_ptr(),
        _pointer(c_n),
        _pointer(reserve),
        packed_address,
        repack,
        scratch,
    )
    scratch_memory.give_back(taken)
    if packed is not None and cache is not None:
        cache[layer.index] = packed
    return y, h_n, c_n, reserve


def _ordinary_forward(
    layer: Layer,
    sizes: tuple[int, int],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
) -> Outputs | None:
    """Do what ``forward`` does of a batch without lengths that is recorded, all of it in C++.

    Returns:
        What ``forward`` returns; or ``None``, and nothing has been done: something is not ordinary.
    """
    T, B = sizes
    try:
        plan = plan_now(layer, x.dtype, T, B, False, True, layer.checkpoint_steps(T))
    except ValueError:
        return None
    if not plan.small_outputs or torch._C._len_torch_dispatch_stack():
        return None
    h_n_at = plan.workspace
    packed_at = h_n_at + plan.final_h
    apart = not plan.problem.packs_as_used
    taken = scratch_memory.take(packed_at + plan.packed if apart else packed_at)
    scratch = taken[0]
    packed = scratch + packed_at if apart else 0
    outputs = plan.problem.ordinary_forward(
        plan.layout, x, h0, c0, weights, packed, scratch, scratch + h_n_at
    )
    scratch_memory.give_back(taken)
    return outputs


def _ordinary_backward(
    layer: Layer,
    sizes: tuple[int, int],
    wanted: Sequence[bool],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...] | None:
    """Do what ``backward`` does of a batch without lengths, all of it in C++.

    Returns:
        The gradients; or ``None``, and nothing has been done: something is not ordinary.
    """
    T, B = sizes
    try:
        plan = plan_now(layer, x.dtype, T, B, False, True, layer.checkpoint_steps(T))
    except ValueError:
        return None
    if plan.backward_workspace >= LARGE or torch._C._len_torch_dispatch_stack():
        return None
    dy, dh_n, dc_n = map(_in_rows, gradients)
    taken = scratch_memory.take(plan.backward_workspace)
    results = plan.problem.ordinary_backward(
        plan.layout, x, h0, c0, weights, wanted, dy, dh_n, dc_n, *outputs, taken[0]
    )
    scratch_memory.give_back(taken)
    return results


def _in_rows(gradient: Tensor | None) -> Tensor | None:
    """Return a gradient with adjacent features, which that of a sum, one number for all, lacks."""
    if not isinstance(gradient, Tensor) or gradient.layout is not torch.strided:
        return gradient  # absent, or to be refused
    return gradient if gradient.stride()[-1:] == (1,) else gradient.contiguous()


def backward(
    layer: Layer,
    ragged: Ragged | None,
    wanted: Sequence[bool],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights: Tensor | None,
    dgates: Tensor | None = None,
    samples: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Propagate gradients through one layer.

    Args:
        layer: as in ``forward``.
        ragged: as in ``forward``.
        wanted: for each of x, h0, c0 and the weights, whether its gradient is wanted.
        gradients: of y, h_n and c_n; ``None`` for zeros.
        outputs: y and reserve of ``forward``.
        x: as in ``forward``, and so are the others.
        h0: see there.
        c0: see there.
        weights: see there.
        dgates: where the gradients of the pre-activations go, and behind them those of
            the states, (D, T*B or N, ``gradients`` + ``states`` of ``cell_info``, H).
        samples: S: the gradients of the weights are (S, ...), sequence b being of sample b % S. On
            the CPU only. ``None``: of all together.

    Returns:
        The gradients of x, h0, c0 and the weights, ``None`` for what is not wanted.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as torch.nn does.
    """
    fake, T, B, y_shape = _checks.sizes(layer, x, ragged)
    on_cpu = not (fake or B == 0 or _cuda_device.takes(x)) and x.dtype in _checks.DTYPES
    if on_cpu and ragged is None and samples is None and dgates is None:
        found = _ordinary_backward(layer, (T, B), wanted, gradients, outputs, x, h0, c0, weights)
        if found is not None:
            return found
    if on_cpu:
        run = (T, B), True, samples or 1
        plan, inputs, _alive = _prepared(layer, x, ragged, h0, c0, weights, *run)
    else:
        addresses, h0_address, c0_address, _alive = _checked(layer, x, h0, c0, weights, B, fake)
    if fake or B == 0:
        results = _checks.allocated((x, h0, c0), weights, wanted, samples)
        return results if fake else tuple(None if t is None else t.zero_() for t in results)
    dy, dh_n, dc_n = _checks.gradients(layer, x, B, y_shape, gradients)
    reserve_shape = _checks.reserve_shape(layer, T, B, ragged, saved_values(layer))
    y, reserve = _checks.saved(layer, x, y_shape, reserve_shape, outputs)
    if not on_cpu:
        _checks.address(layer, "input", x)  # torch's products would meet it first
        states = (h0, c0), (h0_address, c0_address)
        call = _cuda_ops.Call(layer, ragged, T, B, x, weights, addresses, *states)
        return _cuda_ops.backward(call, wanted, (dy, dh_n, dc_n), (y, reserve), dgates)

    results = _checks.allocated((x, h0, c0), weights, wanted, samples)
    dx, dh0, dc0, *dweights = results
    y, y_rows = _checks.rows(layer, "output", y, layer.y_batch_first)
    dy_rows = dx_rows = (0, 0, 0)
    if dy is not None:
        dy, dy_rows = _checks.rows(layer, "the gradient of the output", dy, layer.y_batch_first)
    if dx is not None:
        dx, dx_rows = _checks.rows(layer, "the gradient of the input", dx, layer.x_batch_first)
    if samples or plan.backward_workspace >= LARGE:  # else no gradient is that large
        for result in results:
            if result is not None:
                large_pages(result)
    taken = scratch_memory.take(plan.backward_workspace)
    core.backward(
        plan.problem,
        inputs,
        0 if ragged is None else ragged.offsets.data_ptr(),
        _table(ragged),
        *y_rows,
        _pointer(reserve),
        *dy_rows,
        _pointer(dh_n),
        _pointer(dc_n),
        *dx_rows,
        _pointer(dh0),
        _pointer(dc0),
        [_pointer(t) for t in dweights],
        _pointer(dgates),
        taken[0],
    )
    scratch_memory.give_back(taken)
    return results
