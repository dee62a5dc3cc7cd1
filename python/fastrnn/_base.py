"""What the modules share: layers one on the other, kinds of input, initial states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _autocast, _checks, _errors, _onnx_export, _plans, _repeat, _variable_length
from ._autograd import needs_grad, recurrence, watched
from ._problem import (
    Layer,
    Ragged,
    Stack,
    Weights,
    check_checkpoint_every,
    checkpoint_steps,
    stack_of,
    step_of,
)
from ._variable_length import Lengths
from .streaming import Stream

if TYPE_CHECKING:
    from typing_extensions import Self

    from .cells._spec import CellSpec

Hidden = Tensor | tuple[Tensor, Tensor]
"""h, or (h, c) of an LSTM."""


def run_layers(
    stack: Stack,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    batch_first: bool,
    dropout: float,
    cache: _plans.PackedCache | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run the layers one after the other, with dropout between them.

    Returns:
        y, h_n and, of an LSTM, c_n.
    """
    if _onnx_export.active():
        return _onnx_export.run_layers(stack, x, h0, c0, weights, batch_first, dropout)
    layers = stack.batch_first if batch_first else stack.time_major
    count = len(layers)
    if count == 1:
        y, h_n, c_n = recurrence(layers[0], x, ragged, h0, c0, weights[0], cache)
        assert h_n is not None
        return y, h_n, c_n

    batch = x.shape[0 if batch_first else 1] if ragged is None else ragged.B
    if h0 is not None:
        _checks.check_state_shape(layers[0], "h0", h0, batch, count)
    if c0 is not None:
        _checks.check_state_shape(layers[0], "c0", c0, batch, count)
    joined = watched() or needs_grad(x, h0, c0, [w for own in weights for w in own])
    # torch.cat may use torch's own threads, which hang in a forked child: inference goes without.
    finals = None if joined else _checks.final_states(layers[0], x, batch, count)
    parts = []
    for layer, own in zip(layers, weights, strict=True):
        at = slice(layer.index * stack.directions, (layer.index + 1) * stack.directions)
        out = None if finals is None else (_part(finals[0], at), _part(finals[1], at))
        y, h_n, c_n = recurrence(layer, x, ragged, _part(h0, at), _part(c0, at), own, cache, out)
        parts.append((h_n, c_n))
        x = torch.dropout(y, dropout, True) if dropout and layer is not layers[-1] else y
    h_n, c_n = finals or (_joined(part) for part in zip(*parts, strict=True))
    assert h_n is not None
    return y, h_n, c_n


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _part(tensor: Tensor | None, own: slice) -> Tensor | None:
    return None if tensor is None else tensor[own]


def _split(
    owner: str, spec: CellSpec, hx: object, step: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return h0 and c0."""
    if hx is None:
        return None, None
    if spec.states == 1:
        if not isinstance(hx, Tensor):
            raise _errors.not_a_tensor(owner, "hx", hx)
        return hx, None
    if (
        not isinstance(hx, tuple | list)
        or len(hx) != 2
        or not isinstance(hx[0], Tensor)
        or not isinstance(hx[1], Tensor)
    ):
        raise _errors.two_states(owner, hx, step)
    return hx[0], hx[1]


def run(
    stack: Stack,
    input: Tensor | PackedSequence,
    hx: Hidden | None,
    weights: Sequence[Weights],
    batch_first: bool,
    dropout: float,
    cache: _plans.PackedCache | None = None,
    lengths: Lengths | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Any, Any]:
    """Run a module on whatever kind of input it was given.

    Returns:
        The output, of the kind of the input, and h_n or (h_n, c_n).
    """
    whole = lengths is None and reset_mask is None and len(weights) == 1
    # Asked before `cache`, which compiled code must not look into.
    if whole and not torch.compiler.is_compiling() and cache:
        alone = (stack.batch_first if batch_first else stack.time_major)[0]
        again = _repeat.outputs(alone, input, hx, weights[0], cache)
        if again is not None:
            y, h_n, c_n = again
            return y, h_n if c_n is None else (h_n, c_n)
    if _autocast.applies(input):
        return _autocast.sequences(
            lambda x, hx, weights: run(
                stack, x, hx, weights, batch_first, dropout, cache, lengths, reset_mask
            ),
            stack.time_major[0],
            input,
            hx,
            weights,
        )
    h0, c0 = _split(stack.owner, stack.spec, hx, step=False)
    if isinstance(input, PackedSequence):
        for name, given in (("lengths", lengths), ("reset_mask", reset_mask)):
            if given is not None:
                raise _errors.packed_with(stack.owner, name)
        return _run_packed(stack, input, h0, c0, weights, dropout, cache)
    if not isinstance(input, Tensor):
        raise _errors.not_a_tensor(stack.owner, "input", input)
    rank = input.dim()
    if rank not in (2, 3):
        raise _errors.rank(stack.owner, input, step=False)
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None and state.dim() != rank:
            raise _errors.state_rank(stack.owner, name, rank, state)
    padded = lengths is not None or reset_mask is not None
    if (rank == 2 or padded or len(stack.time_major) > 1) and not watched():
        _checks.check_readable(stack.time_major[0], input, h0, c0, weights[0][0])
    if padded:
        if _onnx_export.active():
            y, h_n, c_n = _onnx_export.run_padded(
                stack, input, h0, c0, weights, batch_first, dropout, lengths, reset_mask
            )
            return y, h_n if c_n is None else (h_n, c_n)
        ragged = _variable_length.describe(stack.owner, input, batch_first, lengths, reset_mask)
        return _run_padded(stack, input, h0, c0, weights, batch_first, dropout, cache, ragged)
    if rank == 3:
        y, h_n, c_n = run_layers(stack, input, None, h0, c0, weights, batch_first, dropout, cache)
        return y, h_n if c_n is None else (h_n, c_n)

    x = input.unsqueeze(1)
    h0, c0 = _unsqueezed(h0, 1), _unsqueezed(c0, 1)
    y, h_n, c_n = run_layers(stack, x, None, h0, c0, weights, False, dropout, cache)
    h_n = h_n.squeeze(1)
    return y.squeeze(1), h_n if c_n is None else (h_n, c_n.squeeze(1))


def _unsqueezed(tensor: Tensor | None, dim: int) -> Tensor | None:
    return None if tensor is None else tensor.unsqueeze(dim)


def _run_packed(
    stack: Stack,
    input: PackedSequence,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    dropout: float,
    cache: _plans.PackedCache | None,
) -> tuple[PackedSequence, Any]:
    if _onnx_export.active():
        raise _onnx_export.packed(stack.owner)
    x, batch_sizes, order, back = input
    if not isinstance(x, Tensor):
        raise _errors.not_a_tensor(stack.owner, "input", x)
    ragged = _checks.ragged(stack.owner, batch_sizes, x.shape[0])
    if x.dim() == 2 and x.shape[0] > ragged.N:
        x = x[: ragged.N]  # torch.nn does not look at rows beyond the batch sizes either
    layers = stack.time_major
    if not watched():
        _checks.check_readable(layers[0], x, h0, c0, weights[0][0])
    if h0 is not None:
        _checks.check_state_shape(layers[0], "h0", h0, ragged.B, len(layers))
        h0 = _permuted(h0, order)
    if c0 is not None:
        _checks.check_state_shape(layers[0], "c0", c0, ragged.B, len(layers))
        c0 = _permuted(c0, order)
    y, h_n, c_n = run_layers(stack, x, ragged, h0, c0, weights, False, dropout, cache)
    output = PackedSequence(y, batch_sizes, order, back)
    h_n = _permuted(h_n, back)
    return output, h_n if c_n is None else (h_n, _permuted(c_n, back))


def _run_padded(
    stack: Stack,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    batch_first: bool,
    dropout: float,
    cache: _plans.PackedCache | None,
    segments: _variable_length.Segments,
) -> tuple[Tensor, Any]:
    unbatched, D = input.dim() == 2, stack.directions
    if unbatched:
        input, batch_first = input.unsqueeze(1), False
        h0, c0 = _unsqueezed(h0, 1), _unsqueezed(c0, 1)
    layers, batch = stack.time_major, segments.ragged.padded[1]
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None:
            _checks.check_state_shape(layers[0], name, state, batch, len(layers))
    h, c = segments.enter(h0, D), segments.enter(c0, D)
    y, h_n, c_n = run_layers(
        stack, input, segments.ragged, h, c, weights, batch_first, dropout, cache
    )
    h_n = segments.leave(h_n, h0, D)
    c_n = None if c_n is None else segments.leave(c_n, c0, D)
    if unbatched:
        y, h_n, c_n = y.squeeze(1), h_n.squeeze(1), None if c_n is None else c_n.squeeze(1)
    return y, h_n if c_n is None else (h_n, c_n)


def _permuted(state: Tensor, order: Tensor | None) -> Tensor:
    return state if order is None else state.index_select(1, order)


def run_step(
    layer: Layer,
    input: Tensor,
    hx: Hidden | None,
    weights: Weights,
    cache: _plans.PackedCache | None = None,
) -> Hidden:
    """Do a single time step.

    Returns:
        h, or (h, c) if the cell has two states.
    """
    if not torch.compiler.is_compiling() and cache:
        again = _repeat.outputs(layer, input, hx, weights, cache)
        if again is not None:
            h, _, c = again
            return h if c is None else (h, c)
    if _autocast.applies(input):
        low: Hidden = _autocast.step(
            lambda x, hx, own: run_step(layer, x, hx, own, cache), layer, input, hx, weights
        )
        return low
    h0, c0 = _split(layer.owner, layer.spec, hx, step=True)
    if not isinstance(input, Tensor):
        raise _errors.not_a_tensor(layer.owner, "input", input)
    rank = input.dim()
    if rank not in (1, 2):
        raise _errors.rank(layer.owner, input, step=True)
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None and state.dim() != rank:
            raise _errors.step_state_rank(layer.owner, name, rank, state)
    if _onnx_export.active():
        return _onnx_export.run_step(layer, input, h0, c0, weights)
    if rank == 2:
        h, _, c = recurrence(layer, input, None, h0, c0, weights, cache)
        return h if c is None else (h, c)
    h0, c0 = _unsqueezed(h0, 0), _unsqueezed(c0, 0)
    h, _, c = recurrence(layer, input.unsqueeze(0), None, h0, c0, weights, cache)
    h = h.squeeze(0)
    return h if c is None else (h, c.squeeze(0))


@dataclass(frozen=True)
class _Runtime:
    """What a module remembers from call to call; neither state_dict nor a copy has it."""

    stack: Stack
    cache: _plans.PackedCache


class RNNBase(torch.nn.RNNBase):
    """What RNN, LSTM and GRU share; parameters, their names and initial values are torch.nn's."""

    _spec: ClassVar[CellSpec]
    _owner: ClassVar[str]

    def __init__(
        self, mode: str, *args: Any, checkpoint_every: int | str | None, **kw: Any
    ) -> None:
        # Not super(): of fastrnn.compat's classes that would be torch.nn.LSTM and its like.
        torch.nn.RNNBase.__init__(self, mode, *args, **kw)
        self.checkpoint_every = checkpoint_every

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None = None,
        lengths: Lengths | None = None,
        reset_mask: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the layers over a batch of sequences.

        Args:
            input: (T, B, I), or (B, T, I) if ``batch_first``, or (T, I) without a batch, or a
                PackedSequence.
            hx: initial states as the class describes them, ``None`` for zeros.
            lengths: the steps of each sequence, B ints in [0, T] in any order, as a sequence or an
                int64 or int32 tensor; one int without a batch. What comes after is padding: it is
                never read, and its output is 0. A sequence of length 0 keeps its initial state.
                ``None``: T each.
            reset_mask: bool (T, B), or (B, T) if ``batch_first``, or (T) without a batch: true at
                (t, b) starts a new segment at step t, with zero state. The second direction, which
                starts from its initial state at the sequence's end, has zero state where it passes
                from step t to step t - 1. ``None``: no resets.

        Returns:
            The output, of the kind of the input, and the final states, of the kind of ``hx``.

        Raises:
            ValueError: if the rank or the dtype of the input is wrong, or lengths or reset_mask do
                not fit the input.
            RuntimeError: if a shape, a device or the dtype of a state is wrong, or T is 0.
            NotImplementedError: if there are no kernels for the dtype.
            TypeError: if an argument is no tensor, or lengths are no ints.
        """
        runtime = self.__dict__.get("_runtime") or self._prepare()
        stack = runtime.stack
        weights = [_read(self, layer.names) for layer in stack.time_major]
        dropout = self.dropout if self.training else 0.0
        return run(
            stack,
            input,
            hx,
            weights,
            self.batch_first,
            dropout,
            runtime.cache,
            lengths,
            reset_mask,
        )

    def stream(self, batch_size: int = 1) -> Stream:
        """Return an object that does one time step a call; see :class:`fastrnn.Stream`.

        Args:
            batch_size: sequences that are stepped together. Default: 1.
        """
        return Stream(self, batch_size)

    @property
    def checkpoint_every(self) -> int | str | None:
        """K: forward keeps only every K-th state for backward; ``"auto"``: about sqrt(T).

        The states between are computed again in backward, which changes no gradient, not even by
        rounding. ``None`` keeps all. May be assigned.
        """
        every: int | str | None = self.__dict__.get("_checkpoint_every")
        return every

    @checkpoint_every.setter
    def checkpoint_every(self, value: int | str | None) -> None:
        check_checkpoint_every(self._owner, value)
        self.__dict__.pop("_runtime", None)
        self.__dict__["_checkpoint_every"] = value

    def extra_repr(self) -> str:
        """Return torch.nn's text, and the options that only fastrnn has."""
        text = super().extra_repr()
        every = self.checkpoint_every
        return text if every is None else f"{text}, checkpoint_every={every!r}"

    def _stack(self) -> Stack:
        runtime: _Runtime = self.__dict__.get("_runtime") or self._prepare()
        return runtime.stack

    def _weights(self) -> list[Weights]:
        return [_read(self, layer.names) for layer in self._stack().time_major]

    def _prepare(self) -> _Runtime:
        spec = self._spec
        stack = stack_of(
            self._owner,
            spec.name,
            spec.activations[spec.modes.index(self.mode)],
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.bias,
            False,
            checkpoint_steps(self.checkpoint_every),
        )
        runtime = _Runtime(stack, {})
        if not torch.compiler.is_compiling():
            self.__dict__["_runtime"] = runtime
        return runtime

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.__dict__.pop("_runtime", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_runtime", None)
        return state


class RNNCellBase(torch.nn.RNNCellBase):
    """What RNNCell, LSTMCell and GRUCell share; parameters and initial values are torch.nn's."""

    _spec: ClassVar[CellSpec]
    _owner: ClassVar[str]

    def __init__(self, *args: Any, **kw: Any) -> None:
        torch.nn.RNNCellBase.__init__(self, *args, **kw)  # not super(), as in RNNBase

    def forward(self, input: Tensor, hx: Hidden | None = None) -> Any:
        """Do one time step.

        Args:
            input: (B, I), or (I) without a batch.
            hx: previous states as the class describes them, ``None`` for zeros.

        Returns:
            The new states, of the kind of ``hx``.

        Raises:
            ValueError: if the rank of the input or of a state is wrong.
            RuntimeError: if a shape, a device or a dtype is wrong.
            NotImplementedError: if there are no kernels for the dtype.
            TypeError: if an argument is no tensor.
        """
        layer, cache = self.__dict__.get("_runtime") or self._prepare()
        return run_step(layer, input, hx, _read(self, layer.names), cache)

    def _activation(self) -> str:
        return self._spec.activations[0]

    def _prepare(self) -> tuple[Layer, _plans.PackedCache]:
        layer = step_of(
            self._owner,
            self._spec.name,
            self._activation(),
            self.input_size,
            self.hidden_size,
            bool(self.bias),
        )
        runtime: tuple[Layer, _plans.PackedCache] = layer, {}
        if not torch.compiler.is_compiling():
            self.__dict__["_runtime"] = runtime
        return runtime

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.__dict__.pop("_runtime", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_runtime", None)
        return state


def _read(module: torch.nn.Module, names: Sequence[str | None]) -> Weights:
    """Return the weights as attribute access gives them, past Module.__getattr__, which is slow.

    What parametrizations and functional_call put in a parameter's place is found this way too.
    """
    parameters = module._parameters
    try:
        return [None if n is None else parameters[n] for n in names]
    except KeyError:
        return [None if n is None else getattr(module, n) for n in names]
