"""ONNX's RNN, LSTM and GRU nodes on fastrnn's kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _errors, functional
from .cells.elman import RNN
from .cells.gru import GRU
from .cells.lstm import LSTM
from .loaded import LAYERS, Loaded, as_tensor, load

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
"""The inputs of ONNX's operators, in order; RNN and GRU have the first six."""

DIRECTIONS = ("forward", "reverse", "bidirectional")
_FUNCTIONS: dict[type, Callable[..., Any]] = {
    RNN: functional.rnn,
    LSTM: functional.lstm,
    GRU: functional.gru,
}
_VALUES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
"""Where an AttributeProto has its value, by its type."""


class OnnxNode(Loaded):
    r"""An RNN, LSTM or GRU node of an ONNX graph.

    Made by :func:`fastrnn.from_onnx_node`. :meth:`run_onnx` is the operator with ONNX's inputs,
    outputs and layouts; a plain call takes and returns what the fastrnn layer inside, ``module``,
    does, in the node's direction.

    Args:
        layer: the class of fastrnn that does the operator's maths.
        activation: of the layer.
        hidden_size: H.
        direction: ``"forward"``, ``"reverse"`` or ``"bidirectional"`` (D = 2, else D = 1).
        layout: 0 for time first, 1 for batch first.
    """

    initial_h: Tensor | None
    initial_c: Tensor | None
    sequence_lens: Tensor | None

    def __init__(
        self,
        layer: type[RNN] | type[LSTM] | type[GRU],
        activation: str,
        hidden_size: int,
        direction: str,
        layout: int,
    ) -> None:
        super().__init__(None, direction == "reverse")
        form = layer._spec.onnx
        assert form is not None
        self._layer, self._form = layer, form
        self.op_type, self.activation = form.name, activation
        self.hidden_size, self.direction, self.layout = hidden_size, direction, layout
        for name in INPUTS[4:7]:
            self.register_buffer(name, None)

    @property
    def num_directions(self) -> int:
        """D, 2 if the node is bidirectional, else 1."""
        return 2 if self.direction == "bidirectional" else 1

    def run_onnx(
        self,
        X: Any,
        W: Any = None,
        R: Any = None,
        B: Any = None,
        sequence_lens: Any = None,
        initial_h: Any = None,
        initial_c: Any = None,
        P: Any = None,
    ) -> tuple[Tensor, ...]:
        """Run the operator: ONNX's inputs, in ONNX's order and layouts, to ONNX's outputs.

        Steps beyond a sequence's length give zeros and influence nothing. A sequence of length 0
        ends in its initial state. Everything is differentiable, given weights too.

        Args:
            X: (T, B, I); (B, T, I) in layout 1.
            W: (D, G*H, I). Default: the weights that were loaded; so for R and B.
            R: (D, G*H, H).
            B: (D, 2*G*H), the biases of the input, then the recurrent ones.
            sequence_lens: (B), integers from 0 to T. Default: what was loaded, or T for all.
            initial_h: (D, B, H); (B, D, H) in layout 1. Default: what was loaded, or zeros.
            initial_c: as ``initial_h``; of an LSTM only.
            P: (D, 3*H), peepholes of an LSTM, which have to be zero.

        Returns:
            Y of shape (T, D, B, H), in layout 1 (B, T, D, H); Y_h of shape (D, B, H), in layout 1
            (B, D, H); and of an LSTM Y_c, as Y_h. All of them, whichever the node names.

        Raises:
            RuntimeError: if a shape is wrong.
            ValueError: if a length is out of range.
            TypeError: if weights are neither given nor loaded, or the operator lacks an input.
            NotImplementedError: if there are peepholes.
        """
        x = self._time_first(as_tensor(X))
        if x.dim() != 3:
            raise ValueError(f"{self.op_type}: X must have 3 dimensions, got {tuple(x.shape)}")
        T, size = x.shape[:2]
        if P is not None:
            self._refuse_peepholes(as_tensor(P))
        given = [None if v is None else as_tensor(v) for v in (W, R, B)]
        lengths = self._lengths(sequence_lens, T, size)
        hx = self._states(x, initial_h, initial_c)

        lead = _steps(x, lengths) if self.reverse else None
        x = x if lead is None else x.gather(0, lead.unsqueeze(2).expand_as(x))
        y, h_n = self._recurrence(x, lengths, hx, given)
        y = y if lead is None else y.gather(0, lead.unsqueeze(2).expand_as(y))
        y = y.reshape(*y.shape[:2], self.num_directions, self.hidden_size)
        finals = h_n if isinstance(h_n, tuple) else (h_n,)
        Y = y.transpose(0, 1) if self.layout else y.transpose(1, 2)
        return (Y, *map(self._time_first, finals))

    def extra_repr(self) -> str:
        """Return the node's attributes."""
        text = f"{self.op_type}, hidden_size={self.hidden_size}, direction={self.direction!r}"
        return f"{text}, layout=1" if self.layout else text

    def _time_first(self, tensor: Tensor) -> Tensor:
        """Exchange batch and time (or direction) if the layout is not ours; its own inverse."""
        return tensor.transpose(0, 1) if self.layout else tensor

    def _refuse_peepholes(self, P: Tensor) -> None:
        if self._layer._spec.states == 1:
            raise TypeError(f"{self.op_type}: P is an input of LSTM nodes only")
        _check_shape(self.op_type, "P", "(D, 3*H)", P, (self.num_directions, 3 * self.hidden_size))
        if bool((P != 0).any()):
            raise NotImplementedError(
                f"{self.op_type}: input P must be zero or absent, got other values; fastrnn has no "
                "LSTM with peepholes"
            )

    def _lengths(self, given: Any, T: int, size: int) -> Tensor | None:
        lengths = self.sequence_lens if given is None else as_tensor(given)
        if lengths is None:
            return None
        _check_shape(self.op_type, "sequence_lens", "(B,)", lengths, (size,))
        if lengths.is_floating_point():
            raise TypeError(f"{self.op_type}: sequence_lens must be integers, got {lengths.dtype}")
        lengths = lengths.to("cpu", torch.int64)
        if bool(((lengths < 0) | (lengths > T)).any()):
            raise ValueError(
                f"{self.op_type}: sequence_lens must be from 0 to T = {T}, got {lengths.tolist()}"
            )
        return lengths

    def _states(self, x: Tensor, initial_h: Any, initial_c: Any) -> Any:
        """Return hx as fastrnn's layers take it."""
        shape = (self.num_directions, x.shape[1], self.hidden_size)
        states: list[Tensor | None] = []
        for name, given in (("initial_h", initial_h), ("initial_c", initial_c)):
            state = getattr(self, name) if given is None else self._time_first(as_tensor(given))
            if state is not None:
                _check_shape(self.op_type, name, "(D, B, H)", state, shape)
            states.append(state)
        if self._layer._spec.states == 1:
            if states[1] is not None:
                raise TypeError(f"{self.op_type}: initial_c is an input of LSTM nodes only")
            return states[0]
        if states == [None, None]:
            return None
        return tuple(x.new_zeros(shape) if state is None else state for state in states)

    def _recurrence(
        self, x: Tensor, lengths: Tensor | None, hx: Any, given: Sequence[Tensor | None]
    ) -> tuple[Tensor, Any]:
        """Run the layer, loaded or with given weights, on time-major data.

        Returns:
            y of shape (T, B, D*H), zero beyond the lengths, and the final states.
        """
        module = self.module
        if module is not None and all(weight is None for weight in given):
            if not module.batch_first:
                y, h_n = module(x, hx, lengths=lengths)
                return y, h_n
            y, h_n = module(x.transpose(0, 1), hx, lengths=lengths)
            return y.transpose(0, 1), h_n
        options: dict[str, Any] = {"bidirectional": self.num_directions == 2}
        if len(self._layer._spec.activations) > 1:
            options["nonlinearity"] = self.activation
        function = _FUNCTIONS[self._layer]
        y, h_n = function(x, hx, self._weights(given), lengths=lengths, **options)
        return y, h_n

    def _weights(self, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the weights in torch's order, those given in place of those loaded."""
        fresh = _to_torch(self, *given)
        loaded = [] if self.module is None else self.module.all_weights
        flat = []
        for d, own in enumerate(fresh):
            old: list[Tensor | None] = [*(loaded[d] if loaded else []), None, None, None, None]
            for slot, name in enumerate("WRBB"):
                weight = old[slot] if own[slot] is None else own[slot]
                if weight is not None:
                    flat.append(weight)
                elif name != "B":
                    raise TypeError(
                        f"{self.op_type}: {name} must be given, as the node was loaded without it"
                    )
        return flat


def _to_torch(
    node: OnnxNode, W: Tensor | None, R: Tensor | None, B: Tensor | None
) -> list[list[Tensor | None]]:
    """Check ONNX weights; return ``w_ih, w_hh, b_ih, b_hh`` of each direction."""
    D, H, rows = node.num_directions, node.hidden_size, node._layer._spec.gates * node.hidden_size
    if W is not None:
        _check_shape(node.op_type, "W", "(D, G*H, I)", W, (D, rows, W.shape[-1]))
    if R is not None:
        _check_shape(node.op_type, "R", "(D, G*H, H)", R, (D, rows, H))
    if B is not None:
        _check_shape(node.op_type, "B", "(D, 2*G*H)", B, (D, 2 * rows))
    to_torch = node._form.to_torch
    weights = []
    for d in range(D):
        matrices = [None if weight is None else to_torch(weight[d]) for weight in (W, R)]
        halves = [None, None] if B is None else [to_torch(half) for half in B[d].chunk(2)]
        weights.append([*matrices, *halves])
    return weights


def _check_shape(owner: str, name: str, form: str, got: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(got.shape) != expected:
        raise _errors.shape(owner, name, form, expected, got)


def _steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return (T, B): where each step of the sequences, turned round within their lengths, is."""
    T, size = x.shape[:2]
    steps = torch.arange(T, device=x.device).unsqueeze(1)
    if lengths is None:
        return steps.flip(0).expand(T, size)
    ends = lengths.to(x.device)
    return torch.where(steps < ends, ends - 1 - steps, steps)


def from_onnx_node(node: Any, initializers: Mapping[str, Any] | None = None) -> OnnxNode:
    r"""Build a layer from an RNN, LSTM or GRU node of an ONNX model.

    ::

        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes = [node for node in model.graph.node if node.op_type == "LSTM"]
        layers = [fastrnn.from_onnx_node(node, constants) for node in nodes]

    Args:
        node: an ``onnx.NodeProto``.
        initializers: tensors, arrays or ``onnx.TensorProto`` by name. Those that are the node's
            inputs are used: W, R and B become the parameters of ``module``; ``sequence_lens``,
            ``initial_h`` and ``initial_c`` the defaults of ``run_onnx``; P has to be zero. What is
            not there must be given to ``run_onnx``. Default: none.

    Returns:
        An :class:`OnnxNode`: :meth:`OnnxNode.run_onnx` has ONNX's inputs and outputs, ``module`` is
        the fastrnn layer, and a plain call runs that as torch.nn would, in the node's direction.

    Raises:
        ValueError: if the node is no RNN, LSTM or GRU, or an attribute has no meaning.
        NotImplementedError: if an attribute asks for what fastrnn does not compute: ``activations``
            other than the operator's own (and Relu of RNN), ``clip``, ``input_forget``,
            ``linear_before_reset=0`` of GRU, which is ONNX's default, or peepholes P.
        RuntimeError: if a shape is wrong.

    Source:
        The operators RNN, LSTM and GRU, https://onnx.ai/onnx/operators/.
    """
    layer = _layer_of(node)
    attributes = {a.name: _value(a) for a in node.attribute}
    known = dict(initializers or {})
    constants = {
        role: _constant(known[name])
        for role, name in zip(INPUTS, node.input, strict=False)
        if name and name in known
    }
    weights = [constants.get(name) for name in INPUTS[1:4]]
    built = _built(layer, attributes, weights[1])
    if "P" in constants:
        built._refuse_peepholes(constants["P"])
    for name in INPUTS[4:7]:
        if name in constants:
            state = constants[name]
            built._buffers[name] = state if name == INPUTS[4] else built._time_first(state).clone()
    if weights[0] is not None and weights[1] is not None:
        own = [[w for w in d if w is not None] for d in _to_torch(built, *weights)]
        built.module = load(layer, own, built.activation, bool(built.layout))
    elif any(weight is not None for weight in weights):
        missing = "R" if weights[1] is None else "W"
        raise ValueError(
            f"{built.op_type}: initializers must have W and R, or neither, got no {missing}"
        )
    return built


def _layer_of(node: Any) -> type[RNN] | type[LSTM] | type[GRU]:
    if node.domain in ("", "ai.onnx"):
        for layer in LAYERS:
            assert layer._spec.onnx is not None
            if layer._spec.onnx.name == node.op_type:
                return layer
    raise ValueError(
        "from_onnx_node: node must be an RNN, LSTM or GRU of ONNX's own domain, got "
        f"{node.op_type} of domain {node.domain!r}"
    )


def _value(attribute: Any) -> Any:
    """Return what an AttributeProto holds."""
    if attribute.type not in _VALUES:
        raise ValueError(
            f"from_onnx_node: attribute {attribute.name} must be plain numbers or text"
        )
    value = getattr(attribute, _VALUES[attribute.type])
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float):
        return value
    return [v.decode() if isinstance(v, bytes) else v for v in value]


def _constant(value: Any) -> Tensor:
    if hasattr(value, "raw_data"):  # an onnx.TensorProto, so that onnx is there
        value = importlib.import_module("onnx.numpy_helper").to_array(value)
    return as_tensor(value)


def _built(
    layer: type[RNN] | type[LSTM] | type[GRU], attributes: dict[str, Any], R: Tensor | None
) -> OnnxNode:
    """Check the attributes; return a node without weights."""
    form = layer._spec.onnx
    assert form is not None
    left = dict(attributes)
    direction = left.pop("direction", DIRECTIONS[0])
    if direction not in DIRECTIONS:
        raise ValueError(f"{form.name}: direction must be one of {DIRECTIONS}, got {direction!r}")
    layout = left.pop("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"{form.name}: layout must be 0 or 1, got {layout}")
    hidden_size = left.pop("hidden_size", None if R is None else R.shape[-1])
    if hidden_size is None:
        raise ValueError(f"{form.name}: hidden_size must be an attribute, or R an initializer")
    names = left.pop("activations", None)
    activation = _activation(layer, names, 2 if direction == "bidirectional" else 1)
    for name, value in form.options:
        _refuse(form.name, name, left.pop(name, 0), value)
    if "clip" in left:
        _refuse(form.name, "clip", left.pop("clip"), "absent")
    _refuse(form.name, "input_forget", left.pop("input_forget", 0), 0)
    # Parameters of functions that these activations are not, and a request of opset 1 for Y.
    for name in ("activation_alpha", "activation_beta", "output_sequence"):
        left.pop(name, None)
    if left:
        raise ValueError(f"{form.name}: attribute {next(iter(left))} is unknown")
    return OnnxNode(layer, activation, hidden_size, direction, layout)


def _refuse(owner: str, name: str, got: object, expected: object) -> None:
    if got != expected:
        raise NotImplementedError(
            f"{owner}: attribute {name} must be {expected}, got {got}; fastrnn does not compute it"
        )


def _activation(
    layer: type[RNN] | type[LSTM] | type[GRU], names: Sequence[str] | None, directions: int
) -> str:
    """Return the layer's activation under which its functions are the node's."""
    spec = layer._spec
    assert spec.onnx is not None
    if names is None:
        return spec.activations[0]
    lowered = [name.lower() for name in names]
    for activation in spec.activations:
        if lowered == [*spec.onnx.activations(activation)] * directions:
            return activation
    offered = " or ".join(
        str([name.title() for name in spec.onnx.activations(own)] * directions)
        for own in spec.activations
    )
    raise NotImplementedError(
        f"{spec.onnx.name}: attribute activations must be {offered}, got {list(names)}; fastrnn "
        "has no other kernels"
    )
