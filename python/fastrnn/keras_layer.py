"""Layers of Keras on fastrnn's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .cells.elman import RNN
from .cells.gru import GRU
from .cells.lstm import LSTM
from .loaded import LAYERS, Loaded, as_tensor, load

MERGE_MODES = ("concat", "sum", "ave", "mul", None)
_OPTIONS = frozenset(
    "units use_bias activation recurrent_activation reset_after go_backwards return_sequences "
    "return_state stateful dropout recurrent_dropout time_major".split()
)
"""Options of Keras's layers that matter to one that is already trained."""


class KerasLayer(Loaded):
    r"""A SimpleRNN, LSTM or GRU of Keras, or a Bidirectional one.

    Made by :func:`fastrnn.from_keras`. :meth:`run_keras` returns what the Keras layer returns in
    inference; a plain call takes and returns what the fastrnn layer inside, ``module``, does.
    """

    def __init__(self, module: Any, options: Mapping[str, Any], merge_mode: str | None) -> None:
        super().__init__(module, bool(options.get("go_backwards")) and not module.bidirectional)
        self.return_sequences = bool(options.get("return_sequences", False))
        self.return_state = bool(options.get("return_state", False))
        self.merge_mode = merge_mode
        self.dropout = max(options.get("dropout", 0.0), options.get("recurrent_dropout", 0.0))

    def run_keras(self, sequences: Any, initial_state: Any = None) -> Any:
        """Run the layer as Keras does.

        Args:
            sequences: (B, T, I).
            initial_state: a state (B, H), or a sequence of states: h, and c of an LSTM, of the
                forward direction and then of the backward one. Default: zeros.

        Returns:
            The output, (B, T, F) if ``return_sequences``, else (B, F), where F is H, or 2*H of a
            Bidirectional layer that concatenates; of a layer with ``go_backwards`` it starts at the
            last step. A Bidirectional layer with ``merge_mode=None`` has two outputs. If
            ``return_state``, a list: the outputs, then the final states in the order of
            ``initial_state``.

        Raises:
            NotImplementedError: in training mode, if the layer has dropout.
            ValueError: if there are too many or too few states.
        """
        if self.training and self.dropout:
            raise NotImplementedError(
                f"from_keras: dropout must be 0 in training, got {self.dropout}; call eval() to "
                "run the layer as it was trained"
            )
        y, h_n = self(as_tensor(sequences), self._states(initial_state))
        finals = h_n if isinstance(h_n, tuple) else (h_n,)
        D = finals[0].shape[0]
        if not self.return_sequences:
            outputs = list(finals[0])
        else:
            outputs = list(y.chunk(D, 2))
            outputs = [output.flip(1) for output in outputs] if self.reverse else outputs
        merged = _merged(outputs, self.merge_mode)
        if not self.return_state:
            return merged[0] if len(merged) == 1 else merged
        return [*merged, *(state[d] for d in range(D) for state in finals)]

    def _states(self, given: Any) -> Any:
        """Return hx as fastrnn's layers take it."""
        if given is None:
            return None
        states = [given] if hasattr(given, "shape") else list(given)
        assert self.module is not None
        count = self.module._spec.states
        D = 2 if self.module.bidirectional else 1
        if len(states) != D * count:
            raise ValueError(
                f"from_keras: initial_state must have {D * count} states, got {len(states)}"
            )
        tensors = [as_tensor(state) for state in states]
        hx = tuple(torch.stack(tensors[k::count]) for k in range(count))
        return hx if count > 1 else hx[0]

    def extra_repr(self) -> str:
        """Return the options of Keras."""
        text = f"return_sequences={self.return_sequences}, return_state={self.return_state}"
        if self.module is not None and self.module.bidirectional:
            return f"{text}, merge_mode={self.merge_mode!r}"
        return f"{text}, go_backwards=True" if self.reverse else text


def _merged(outputs: list[Tensor], mode: str | None) -> list[Tensor]:
    if len(outputs) == 1 or mode is None:
        return outputs
    forward, backward = outputs
    if mode == "concat":
        return [torch.cat(outputs, -1)]
    if mode == "mul":
        return [forward * backward]
    return [(forward + backward) / (2 if mode == "ave" else 1)]


def from_keras(
    layer: Any,
    kind: str | None = None,
    *,
    bidirectional: bool = False,
    merge_mode: str | None = "concat",
    **config: Any,
) -> KerasLayer:
    r"""Build a layer from a SimpleRNN, LSTM, GRU or Bidirectional layer of Keras, or its weights.

    ::

        layer = fastrnn.from_keras(keras_model.layers[1])
        layer = fastrnn.from_keras([kernel, recurrent_kernel, bias], "GRU", return_sequences=True)

    Keras itself is not imported. Masks are not known; stateful layers are loaded as stateless ones
    and put in :class:`fastrnn.Stateful`.

    Args:
        layer: a built layer, or a list of arrays as its ``get_weights()`` returns them: kernel
            (I, G*H), recurrent kernel (H, G*H) and, if there are biases, those, (G*H) or of a GRU
            (2, 3*H); of both directions one after the other if ``bidirectional``.
        kind: ``"SimpleRNN"``, ``"LSTM"`` or ``"GRU"`` if ``layer`` is a list; a layer knows it.
        bidirectional: whether a list has the weights of two directions. Default: ``False``.
        merge_mode: of a list of two directions: ``"concat"``, ``"sum"``, ``"ave"``, ``"mul"`` or
            ``None``. Default: ``"concat"``.
        config: options of the Keras layer with a list, such as ``activation``, ``go_backwards`` and
            ``return_sequences``; their defaults are those of Keras.

    Returns:
        A :class:`KerasLayer`: ``run_keras`` has Keras's inputs and outputs, ``module`` is the
        fastrnn layer, ``batch_first``.

    Raises:
        NotImplementedError: if the layer computes what fastrnn does not: activations other than
            tanh (and relu of SimpleRNN), recurrent activations other than sigmoid, ``hard_sigmoid``
            among them, ``reset_after=False`` of GRU, or ``stateful``.
        TypeError: if it is no such layer, or options are given with a layer.
        ValueError: if a shape or an option is wrong, or the layer is not built yet.

    Source:
        The layers of Keras, https://keras.io/api/layers/recurrent_layers/.
    """
    if isinstance(layer, list | tuple):
        weights = [as_tensor(weight) for weight in layer]
        half = len(weights) // 2 if bidirectional else len(weights)
        parts = [weights[:half], weights[half:]] if bidirectional else [weights]
        unknown = sorted(config.keys() - _OPTIONS)
        if unknown:
            raise TypeError(f"from_keras: {unknown[0]} is no option that matters to weights")
        if bidirectional and config.get("go_backwards"):
            raise NotImplementedError("from_keras: go_backwards must be False if bidirectional")
        return _loaded(kind, parts, config, merge_mode)
    if kind is not None or config or bidirectional:
        raise TypeError("from_keras: options must be absent with a layer, which knows its own")
    if type(layer).__name__ != "Bidirectional":
        return _loaded(type(layer).__name__, [_weights(layer)], layer.get_config(), None)
    both = (layer.forward_layer, layer.backward_layer)
    kinds = [type(one).__name__ for one in both]
    forward, backward = (one.get_config() for one in both)
    own = [
        _compared(kind, options) for kind, options in zip(kinds, (forward, backward), strict=True)
    ]
    if own[0] != own[1] or forward.get("go_backwards") or not backward.get("go_backwards"):
        raise NotImplementedError(
            "from_keras: forward_layer and backward_layer must be of one kind, with the same "
            f"activations, and run forward and backward, got {forward} and {backward}"
        )
    parts = [_weights(one) for one in both]
    return _loaded(kinds[0], parts, forward, layer.merge_mode)


def _compared(kind: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("activation", "recurrent_activation", "reset_after", "stateful", "use_bias")
    return (kind, *(options.get(name) for name in names))


def _weights(layer: Any) -> list[Tensor]:
    weights = [as_tensor(weight) for weight in layer.get_weights()]
    if not weights:
        raise ValueError(f"from_keras: layer {layer.name} must be built, call it on an input first")
    return weights


def _loaded(
    kind: object, parts: Sequence[list[Tensor]], options: Mapping[str, Any], merge_mode: str | None
) -> KerasLayer:
    """Check the options and build the layer; ``parts`` are the weights of each direction."""
    if merge_mode not in MERGE_MODES:
        raise ValueError(f"from_keras: merge_mode must be one of {MERGE_MODES}, got {merge_mode!r}")
    layer = _layer_of(kind)
    form = layer._spec.keras
    assert form is not None
    for name, needed in (*form.options, ("stateful", False), ("time_major", False)):
        got = options.get(name, needed)
        if got != bool(needed):
            raise NotImplementedError(
                f"from_keras: {name} must be {bool(needed)} in {kind}, got {got}"
                + ("; put the layer in fastrnn.Stateful" if name == "stateful" else "")
            )
    activation = _activation(layer, options)
    weights = [_to_torch(layer, own, options) for own in parts]
    return KerasLayer(load(layer, weights, activation, True), options, merge_mode)


def _layer_of(kind: object) -> type[RNN] | type[LSTM] | type[GRU]:
    names = []
    for layer in LAYERS:
        assert layer._spec.keras is not None
        names.append(layer._spec.keras.name)
        if names[-1] == kind:
            return layer
    raise TypeError(f"from_keras: layer must be one of {names} or Bidirectional, got {kind}")


def _activation(layer: type[RNN] | type[LSTM] | type[GRU], options: Mapping[str, Any]) -> str:
    """Return the activation of the fastrnn layer, or say which one of Keras it does not have."""
    spec = layer._spec
    assert spec.keras is not None
    offered = [spec.keras.activations(own) for own in spec.activations]
    names = ("activation", "recurrent_activation")[: len(offered[0])]
    got = tuple(options.get(name, offered[0][k]) for k, name in enumerate(names))
    for own, functions in zip(spec.activations, offered, strict=True):
        if got == functions:
            return own
    allowed = [sorted({functions[k] for functions in offered}) for k in range(len(names))]
    k = next(k for k in range(len(names)) if got[k] not in allowed[k])
    raise NotImplementedError(
        f"from_keras: {names[k]} must be {' or '.join(allowed[k])} in {spec.keras.name}, got "
        f"{got[k]!r}"
    )


def _to_torch(
    layer: type[RNN] | type[LSTM] | type[GRU], weights: list[Tensor], options: Mapping[str, Any]
) -> list[Tensor]:
    """Return ``w_ih, w_hh`` and, if there is a bias, ``b_ih, b_hh``."""
    form = layer._spec.keras
    assert form is not None
    if len(weights) not in (2, 3):
        raise ValueError(
            f"from_keras: a direction must have 2 weights, or 3 with a bias, got {len(weights)}"
        )
    kernel, recurrent = weights[:2]
    H = recurrent.shape[0]
    rows = layer._spec.gates * H
    _check(form.name, "recurrent_kernel", recurrent, (H, rows))
    _check(form.name, "kernel", kernel, (kernel.shape[0], rows))
    matrices = [form.to_torch(matrix.t()) for matrix in (kernel, recurrent)]
    if options.get("use_bias", len(weights) == 3) != (len(weights) == 3):
        raise ValueError(f"from_keras: use_bias must be {len(weights) == 3}, as the weights are")
    if len(weights) == 2:
        return matrices
    bias = weights[2]
    if form.options:  # a bias of its own for each product
        if bias.dim() == 1:
            name = form.options[0][0]
            raise NotImplementedError(
                f"from_keras: {name} must be True in {form.name}, got the bias of a layer without"
            )
        _check(form.name, "bias", bias, (2, rows))
        return [*matrices, form.to_torch(bias[0]), form.to_torch(bias[1])]
    _check(form.name, "bias", bias, (rows,))
    return [*matrices, form.to_torch(bias), torch.zeros_like(bias)]


def _check(owner: str, name: str, got: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(got.shape) != expected:
        raise ValueError(
            f"from_keras: {name} of {owner} must have shape {expected}, got {tuple(got.shape)}"
        )
