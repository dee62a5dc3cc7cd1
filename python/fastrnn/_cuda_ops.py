"""The gate to the CUDA engine. Its part of a layer is what is sequential, the recurrence.

Products over whole sequences are torch's: ``wx = x W_ih^T + b_ih`` before the forward pass; after
the backward pass, which leaves the gradients of the pre-activations (``dgates``), dx, dW and db.
``_ops`` has checked the tensors; everything is put on the caller's current stream, and nothing
waits for the device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _checks, _cuda_device, _errors
from ._problem import Layer, Ragged

if TYPE_CHECKING:
    from . import _cuda

WEIGHTS = 5
"""Weights of a direction: w_ih, w_hh, b_ih, b_hh, w_hr."""


@dataclass(frozen=True)
class Call:
    """What a pass is about, checked.

    Args:
        layer: what to run.
        ragged: see ``_ops.forward``.
        T: number of steps.
        B: number of sequences.
        x: input.
        weights: five for each direction.
        addresses: of the weights, contiguous copies where need be.
        states: h0 and c0.
        state_addresses: of these.
    """

    layer: Layer
    ragged: Ragged | None
    T: int
    B: int
    x: Tensor
    weights: Sequence[Tensor | None]
    addresses: Sequence[int]
    states: tuple[Tensor | None, Tensor | None]
    state_addresses: tuple[int, int]

    def pair(self, which: int) -> tuple[int, int]:
        """Return the addresses of a weight of both directions."""
        found = self.addresses[which::WEIGHTS]
        return found[0], found[-1]

    @property
    def N(self) -> int:
        """The number of rows."""
        return self.T * self.B if self.ragged is None else self.ragged.N


class _Rows:
    """Where the rows of a call are, on its device: dense, packed, or in padded tensors."""

    def __init__(self, call: Call) -> None:
        ragged, device = call.ragged, call.x.device
        self.offsets = self.places = None
        if ragged is None:
            return
        if _cuda_device.capturing():
            raise _errors.captured_lengths(call.layer.owner)
        self.offsets = ragged.offsets.to(device)
        if ragged.rows is not None:
            self.places = ragged.rows.to(device)
            self.T, self.B = ragged.padded

    def _flat(self, tensor: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """Return a padded tensor as rows, and the place of each packed row among them."""
        assert self.places is not None
        places = self.places
        if batch_first:
            places = places % self.B * self.T + places // self.B
        return tensor.flatten(0, 1), places

    def packed(self, tensor: Tensor, batch_first: bool) -> Tensor:
        """Return the rows of a padded tensor, packed; other tensors as they are."""
        if self.places is None:
            return tensor
        rows, places = self._flat(tensor, batch_first)
        return rows.index_select(0, places)

    def unpack(self, rows: Tensor, padded: Tensor, batch_first: bool) -> None:
        """Write packed rows to where they belong in a padded, contiguous tensor, and zeros."""
        if self.places is not None:
            to, places = self._flat(padded.zero_(), batch_first)
            to.index_copy_(0, places, rows)

    def in_order(self, tensor: Tensor, batch_first: bool) -> Tensor:
        """Return (N, features), step by step."""
        if self.offsets is not None:
            return self.packed(tensor, batch_first)
        if tensor.dim() == 3:
            tensor = (tensor.transpose(0, 1) if batch_first else tensor).flatten(0, 1)
        return tensor


@functools.lru_cache(maxsize=1024)
def _problem(
    layer: Layer, dtype: torch.dtype, T: int, B: int, ragged: bool, training: bool
) -> _cuda.Problem:
    found: _cuda.Problem = _cuda_device.module().Problem(
        cell=layer.spec.name,
        dtype=_checks.DTYPES[dtype],
        activation=layer.activation,
        T=T,
        B=B,
        H=layer.hidden_size,
        P=layer.proj_size,
        directions=layer.directions,
        ragged=ragged,
        training=training,
    )
    return found


@functools.lru_cache(maxsize=1024)
def _plan(
    layer: Layer, dtype: torch.dtype, B: int, device: torch.device, backward: bool, tf32: bool
) -> tuple[_cuda.Plan, int]:
    """Return how a pass runs and the bytes of its workspace, which do not depend on T."""
    engine = _cuda_device.engine()
    problem = _problem(layer, dtype, 1, B, False, True)
    plan = engine.plan(problem, _cuda_device.properties(device), backward, tf32)
    return plan, engine.workspace_bytes(problem, plan)


@functools.cache
def _layout(cell: str) -> _cuda._Layout:
    found: _cuda._Layout = _cuda_device.module().layout(cell)
    return found


@contextlib.contextmanager
def _quietly(device: torch.device) -> Iterator[int]:
    """Keep autograd and autocast out of what torch computes here; give the current stream."""
    with (
        _cuda_device.current(device) as stream,
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield stream


def check(layer: Layer, training: bool) -> None:
    """Raise NotImplementedError for what only the CPU engine does."""
    if layer.quantized:
        remedy = "move the module and its input with .to('cpu'), or use the one it was made of"
        raise _errors.cpu_only(layer.owner, "a quantized module", remedy)
    if training and layer.checkpoint_every:
        remedy = "set module.checkpoint_every = None"
        raise _errors.cpu_only(layer.owner, "checkpoint_every", remedy)


def forward(
    call: Call,
    training: bool,
    y: Tensor,
    h_n: Tensor | None,
    c_n: Tensor | None,
    reserve: Tensor | None,
) -> None:
    """Run one layer over a batch of sequences, into outputs as ``_ops.forward`` returns them."""
    layer, x, dtype = call.layer, call.x, call.x.dtype
    check(layer, training)
    tf32 = _cuda_device.tf32(dtype, x.device)
    with _quietly(x.device) as stream:
        rows = _Rows(call)
        plan, size = _plan(layer, dtype, call.B, x.device, False, tf32)
        x = rows.packed(x, layer.x_batch_first)
        with _cuda_device.products(dtype, tf32):
            # One for each direction, laid out as x is.
            wx = [
                linear(x, w_ih, b_ih)  # type: ignore[arg-type]
                for w_ih, b_ih in zip(
                    call.weights[::WEIGHTS], call.weights[2::WEIGHTS], strict=True
                )
            ]
        padded = rows.places is not None
        out = y.new_empty(call.N, layer.width) if padded else y
        if h_n is None:
            h_n = x.new_empty(call.B, layer.output_size)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        _cuda_device.engine().forward(
            _problem(layer, dtype, call.T, call.B, call.ragged is not None, training),
            plan,
            (wx[0].data_ptr(), wx[-1].data_ptr()),
            *_checks.rows(layer, "the input product", wx[0], layer.x_batch_first)[1][1:],
            _pointer(rows.offsets),
            *call.state_addresses,
            call.pair(1),
            call.pair(3),
            call.pair(4),
            *_checks.rows(layer, "output", out, layer.y_batch_first)[1],
            h_n.data_ptr(),
            _pointer(c_n),
            _pointer(reserve),
            workspace.data_ptr(),
            stream,
        )
        rows.unpack(out, y, layer.y_batch_first)


def backward(
    call: Call,
    wanted: Sequence[bool],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    dgates: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Propagate gradients through one layer; see ``_ops.backward``."""
    layer, x = call.layer, call.x
    check(layer, True)
    tf32 = _cuda_device.tf32(x.dtype, x.device)
    with _quietly(x.device) as stream:
        rows = _Rows(call)
        y = rows.packed(outputs[0], layer.y_batch_first)
        dh0, dc0 = (
            torch.empty_like(t, memory_format=torch.contiguous_format)
            if want and t is not None
            else None
            for t, want in zip(call.states, wanted[1:3], strict=True)
        )
        own, dprojected = _recur(call, rows, (y, outputs[1]), gradients, (dh0, dc0), tf32, stream)
        if dgates is not None:
            dgates[:, :, : own.shape[2]].copy_(own)
        with _cuda_device.products(x.dtype, tf32):
            made = _Products(call, rows, wanted, own, dprojected, y, outputs[1])
            return (made.input(), dh0, dc0, *made.weights())


def _recur(
    call: Call,
    rows: _Rows,
    outputs: tuple[Tensor, Tensor | None],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    initial: tuple[Tensor | None, Tensor | None],
    tf32: bool,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence backwards, into ``initial``, dh0 and dc0.

    Returns:
        dgates, (D, N, gradients, H), and of a projection the gradients of its output, (D, N, P).
    """
    layer, x, N = call.layer, call.x, call.N
    (y, reserve), (dy, dh_n, dc_n) = outputs, gradients
    dgates = x.new_empty(
        layer.directions, N, _layout(layer.spec.name)["gradients"], layer.hidden_size
    )
    dprojected = x.new_empty(layer.directions, N, layer.proj_size)
    y, y_rows = _checks.rows(layer, "output", y, layer.y_batch_first)
    dy_rows = (0, 0, 0)
    if dy is not None:
        dy = rows.packed(dy, layer.y_batch_first)
        dy, dy_rows = _checks.rows(layer, "the gradient of the output", dy, layer.y_batch_first)
    plan, size = _plan(layer, x.dtype, call.B, x.device, True, tf32)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    _cuda_device.engine().backward(
        _problem(layer, x.dtype, call.T, call.B, call.ragged is not None, True),
        plan,
        _pointer(rows.offsets),
        *call.state_addresses,
        call.pair(1),
        call.pair(4),
        *y_rows,
        _pointer(reserve),
        *dy_rows,
        _pointer(dh_n),
        _pointer(dc_n),
        (dgates[0].data_ptr(), dgates[-1].data_ptr()),
        (dprojected[0].data_ptr(), dprojected[-1].data_ptr()),
        *map(_pointer, initial),
        workspace.data_ptr(),
        stream,
    )
    return dgates, dprojected


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Products:
    """The gradients of a layer that are products of ``dgates`` over all rows."""

    def __init__(
        self,
        call: Call,
        rows: _Rows,
        wanted: Sequence[bool],
        dgates: Tensor,
        dprojected: Tensor,
        y: Tensor,
        reserve: Tensor | None,
    ) -> None:
        self.call, self.rows, self.wanted = call, rows, wanted
        self.dgates, self.dprojected, self.reserve = dgates, dprojected, reserve
        self.layer = call.layer
        self.layout = _layout(self.layer.spec.name)
        self.first = min(self.layout["input"])
        self.y = y if rows.offsets is not None else rows.in_order(y, self.layer.y_batch_first)

    def _of(self, d: int, first: int) -> Tensor:
        """Return the gradients of the gates from number ``first`` on, (N, G*H), not copied."""
        return self.dgates[d][:, first : first + self.layer.spec.gates].flatten(1)

    def _gates(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """Return (G*H, ...) with gate ``order[k]`` at place k."""
        if list(order) == sorted(order):
            return tensor
        H = self.layer.hidden_size
        return torch.cat([tensor.narrow(0, k * H, H) for k in order])

    def _places(self) -> list[int]:
        """Return where each gate of the input product is among their gradients, which adjoin."""
        return [k - self.first for k in self.layout["input"]]

    def input(self) -> Tensor | None:
        """Return dx."""
        layer, x = self.layer, self.call.x
        if not self.wanted[0]:
            return None
        places = self._places()
        order = [places.index(k) for k in range(len(places))]
        dx = None
        for d in range(layer.directions):
            w_ih = self.call.weights[d * WEIGHTS]
            assert w_ih is not None
            own, w_ih = self._of(d, self.first), self._gates(w_ih, order)
            dx = own @ w_ih if dx is None else torch.addmm(dx, own, w_ih)
        assert dx is not None
        if self.rows.places is not None:
            padded = x.new_empty(x.shape)
            self.rows.unpack(dx, padded, layer.x_batch_first)
            return padded
        if x.dim() == 3 and layer.x_batch_first:
            return dx.view(x.shape[1], x.shape[0], -1).transpose(0, 1).contiguous()
        return dx.view(x.shape)

    def weights(self) -> list[Tensor | None]:
        """Return the gradients of all weights, ``None`` for what is not wanted."""
        wanted = self.wanted[3:]
        found: list[Tensor | None] = []
        for d in range(self.layer.directions):
            w_ih, w_hh, b_ih, b_hh, w_hr = wanted[d * WEIGHTS : (d + 1) * WEIGHTS]
            own, places = self._of(d, self.first), self._places()
            recurrent = self._of(d, self.layout["recurrent"][0])
            found += [
                self._gates(own.T @ self._inputs, places) if w_ih else None,
                self._recurrent(d, recurrent) if w_hh else None,
                self._gates(own.sum(0), places) if b_ih else None,
                recurrent.sum(0) if b_hh else None,
                self._projection(d) if w_hr else None,
            ]
        given = self.call.weights
        return [None if w is None else g for w, g in zip(given, found, strict=True)]

    @functools.cached_property
    def _inputs(self) -> Tensor:
        return self.rows.in_order(self.call.x, self.layer.x_batch_first)

    def _recurrent(self, d: int, gradients: Tensor) -> Tensor:
        """Return dW_hh: gradients times the output before each row's step."""
        layer, B = self.layer, self.call.B
        y = self.y[:, d * layer.output_size : (d + 1) * layer.output_size]
        h0 = self.call.states[0]
        if h0 is not None and not layer.step:
            h0 = h0[d]
        if self.rows.offsets is not None:
            start = y.new_zeros(B, layer.output_size) if h0 is None else h0
            before = _rows_before(self.rows.offsets, self.call.N, B, d == 1)
            return gradients.T @ torch.cat((start, y)).index_select(0, before)
        first, later, before = gradients[:B], gradients[B:], y[:-B]
        if d == 1:
            first, later, before = gradients[-B:], gradients[:-B], y[B:]
        product = later.T @ before
        return product if h0 is None else torch.addmm(product, first.T, h0)

    def _projection(self, d: int) -> Tensor:
        """Return dW_hr; the output before the projection is the last value in the reserve."""
        assert self.reserve is not None
        return self.dprojected[d].T @ self.reserve[d][:, -1].to(self.dprojected.dtype)


def _rows_before(offsets: Tensor, N: int, B: int, reverse: bool) -> Tensor:
    """Return the row before each packed row's step, among B initial states and the N outputs."""
    rows = torch.arange(N, device=offsets.device)
    t = torch.searchsorted(offsets, rows, right=True) - 1
    b = rows - offsets[t]
    if not reverse:
        return torch.where(t > 0, B + offsets[(t - 1).clamp_min(0)] + b, b)
    after = offsets[t + 1]
    alive = offsets[(t + 2).clamp_max(offsets.shape[0] - 1)] - after
    return torch.where(b < alive, B + after + b, b)


class Stream:
    """The engine's side of a stream, with the methods of the CPU engine's.

    A step is one launch with the same arguments each time, so it can be captured into a CUDA graph.

    Args:
        layers: the stack.
        dtype: of weights, inputs and outputs.
        batch: number of sequences.
        device: the GPU.
    """

    def __init__(
        self, layers: Sequence[Layer], dtype: torch.dtype, batch: int, device: torch.device
    ) -> None:
        check(layers[0], False)
        first, self._device = layers[0], device
        self._engine: _cuda.Stream = _cuda_device.engine().Stream(
            _problem(first, dtype, 1, batch, False, False),
            first.input_size,
            len(layers),
            _cuda_device.properties(device),
            _cuda_device.tf32(dtype, device),
        )
        self._weights: list[Tensor | None] = []
        self._state = torch.empty(self._engine.bytes, dtype=torch.uint8, device=device)
        self.set_state(0, 0)

    def load(self, weights: Sequence[Tensor | None]) -> None:
        """Copy five weights of each layer, every time to the same place: graphs stay valid."""
        with torch.no_grad():
            if self._weights:
                for mine, weight in zip(self._weights, weights, strict=True):
                    if mine is not None and weight is not None:
                        mine.copy_(weight)
                return
            self._weights = [
                None if w is None else w.detach().clone(memory_format=torch.contiguous_format)
                for w in weights
            ]
        found = [_pointer(w) for w in self._weights]
        rows = [found[i : i + WEIGHTS] for i in range(0, len(found), WEIGHTS)]
        self._engine.load([(w[0], w[1], w[2], w[3], w[4]) for w in rows])

    def step(self, x: int, x_row: int, y: int, y_row: int) -> None:
        """Do one time step, from x, (B, I), to y, (B, O)."""
        with _cuda_device.current(self._device) as stream:
            self._engine.step(x, x_row, y, y_row, self._state.data_ptr(), stream)

    def set_state(self, h: int, c: int) -> None:
        """Replace the state; 0: zeros."""
        with _cuda_device.current(self._device) as stream:
            self._engine.set_state(self._state.data_ptr(), h, c, stream)

    def get_state(self, h: int, c: int) -> None:
        """Copy the state."""
        with _cuda_device.current(self._device) as stream:
            self._engine.get_state(self._state.data_ptr(), h, c, stream)
