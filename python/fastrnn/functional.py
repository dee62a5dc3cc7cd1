r"""The stateless forms of the modules: weights are arguments.

The sequence functions take the weights of all layers as one flat sequence in torch's order, that of
``module.parameters()``: for each layer and within it each direction ``w_ih``, ``w_hh``, then
``b_ih``, ``b_hh`` if there are biases, then ``w_hr`` if there is a projection. Sizes, biases and
projection follow from them. Weights are packed at each call; in inference the modules, which keep a
packed copy as long as it is true, are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _errors
from ._base import run, run_step
from ._problem import (
    Stack,
    Weights,
    check_checkpoint_every,
    checkpoint_steps,
    make_stack,
    make_step,
)
from ._variable_length import Lengths
from .cells import CellSpec
from .cells.elman import SPEC as ELMAN
from .cells.gru import SPEC as GRU
from .cells.lstm import SPEC as LSTM


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    dropout: float = 0.0,
    training: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    checkpoint_every: int | str | None = None,
    lengths: Lengths | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Any, Tensor]:
    r"""Run a stack of Elman layers over sequences.

    .. math::
        h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Args:
        input: as :class:`fastrnn.RNN` takes it.
        hx: h0, or ``None`` for zeros.
        weights: 2 tensors, or 4 with biases, for each layer and direction.
        num_layers: L. Default: 1.
        nonlinearity: f, ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
        dropout: probability with which an output of every layer but the last is zeroed. Default: 0.
        training: whether ``dropout`` applies. Default: ``True``.
        bidirectional: D = 2, else D = 1. Default: ``False``.
        batch_first: whether input and output are (B, T, features). Default: ``False``.
        checkpoint_every: K or ``"auto"``, as the class describes it. Default: ``None``.
        lengths: steps of each sequence of a padded batch, as the class's ``forward`` describes
            them. Default: ``None``, T each.
        reset_mask: where segments start, as described there. Default: ``None``, no resets.

    Shape:
        That of :class:`fastrnn.RNN`; ``w_ih`` (H, I) in the first layer, (H, D*H) in the others,
        ``w_hh`` (H, H), biases (H).

    Returns:
        ``output, h_n``.

    Raises:
        ValueError: if the nonlinearity is unknown or the number of weights wrong; and what
            :class:`fastrnn.RNN` raises.

    Source:
        See :class:`fastrnn.RNN`.
    """
    _check_nonlinearity("RNN", nonlinearity)
    stack, layers = _stack(
        "RNN", ELMAN, nonlinearity, weights, num_layers, bidirectional, checkpoint_every
    )
    rate = dropout if training else 0.0
    return run(stack, input, hx, layers, batch_first, rate, None, lengths, reset_mask)


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    checkpoint_every: int | str | None = None,
    lengths: Lengths | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Any, tuple[Tensor, Tensor]]:
    r"""Run a stack of LSTM layers over sequences.

    .. math::
        \begin{aligned}
            i_t, f_t, o_t &= \sigma(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})_{i, f, o} \\
            g_t &= \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})_g \\
            c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
            h_t &= o_t \odot \tanh(c_t), \quad \text{projected } W_{hr} (o_t \odot \tanh(c_t))
        \end{aligned}

    Args:
        input: as :class:`fastrnn.LSTM` takes it.
        hx: (h0, c0), or ``None`` for zeros.
        weights: 2 tensors, or 4 with biases, and one more with a projection, for each layer and
            direction.
        num_layers: L. Default: 1.
        dropout: probability with which an output of every layer but the last is zeroed. Default: 0.
        training: whether ``dropout`` applies. Default: ``True``.
        bidirectional: D = 2, else D = 1. Default: ``False``.
        batch_first: whether input and output are (B, T, features). Default: ``False``.
        checkpoint_every: K or ``"auto"``, as the class describes it. Default: ``None``.
        lengths: steps of each sequence of a padded batch, as the class's ``forward`` describes
            them. Default: ``None``, T each.
        reset_mask: where segments start, as described there. Default: ``None``, no resets.

    Shape:
        That of :class:`fastrnn.LSTM`; ``w_ih`` (4*H, I) in the first layer, (4*H, D*O) in the
        others, ``w_hh`` (4*H, O), biases (4*H), ``w_hr`` (P, H); gates in the order i, f, g, o.

    Returns:
        ``output, (h_n, c_n)``.

    Raises:
        ValueError: if the number of weights is wrong; and what :class:`fastrnn.LSTM` raises.

    Source:
        See :class:`fastrnn.LSTM`.
    """
    stack, layers = _stack(
        "LSTM", LSTM, "tanh", weights, num_layers, bidirectional, checkpoint_every
    )
    rate = dropout if training else 0.0
    return run(stack, input, hx, layers, batch_first, rate, None, lengths, reset_mask)


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    checkpoint_every: int | str | None = None,
    lengths: Lengths | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Any, Tensor]:
    r"""Run a stack of GRU layers over sequences.

    .. math::
        \begin{aligned}
            r_t, z_t &= \sigma(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})_{r, z} \\
            n_t &= \tanh((W_{ih} x_t + b_{ih})_n + r_t \odot (W_{hh} h_{t-1} + b_{hh})_n) \\
            h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
        \end{aligned}

    Args:
        input: as :class:`fastrnn.GRU` takes it.
        hx: h0, or ``None`` for zeros.
        weights: 2 tensors, or 4 with biases, for each layer and direction.
        num_layers: L. Default: 1.
        dropout: probability with which an output of every layer but the last is zeroed. Default: 0.
        training: whether ``dropout`` applies. Default: ``True``.
        bidirectional: D = 2, else D = 1. Default: ``False``.
        batch_first: whether input and output are (B, T, features). Default: ``False``.
        checkpoint_every: K or ``"auto"``, as the class describes it. Default: ``None``.
        lengths: steps of each sequence of a padded batch, as the class's ``forward`` describes
            them. Default: ``None``, T each.
        reset_mask: where segments start, as described there. Default: ``None``, no resets.

    Shape:
        That of :class:`fastrnn.GRU`; ``w_ih`` (3*H, I) in the first layer, (3*H, D*H) in the
        others, ``w_hh`` (3*H, H), biases (3*H); gates in the order r, z, n.

    Returns:
        ``output, h_n``.

    Raises:
        ValueError: if the number of weights is wrong; and what :class:`fastrnn.GRU` raises.

    Source:
        See :class:`fastrnn.GRU`.
    """
    stack, layers = _stack("GRU", GRU, "tanh", weights, num_layers, bidirectional, checkpoint_every)
    rate = dropout if training else 0.0
    return run(stack, input, hx, layers, batch_first, rate, None, lengths, reset_mask)


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    r"""Do one step of an Elman recurrence.

    .. math::
        h' = f(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input: (B, I), or (I) without a batch.
        hx: (B, H), or (H) without a batch, or ``None`` for zeros.
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H). Default: no biases.
        b_hh: (H). Default: no biases.
        nonlinearity: f, ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.

    Returns:
        The new state, shaped as ``hx``.

    Raises:
        ValueError: if the nonlinearity is unknown or only one bias given; and what
            :class:`fastrnn.RNNCell` raises.

    Source:
        See :class:`fastrnn.RNN`.
    """
    _check_nonlinearity("RNNCell", nonlinearity)
    result: Tensor = _step("RNNCell", ELMAN, nonlinearity, input, hx, w_ih, w_hh, b_ih, b_hh)
    return result


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Do one step of an LSTM.

    .. math::
        \begin{aligned}
            i, f, o &= \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})_{i, f, o} \\
            g &= \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})_g \\
            c' &= f \odot c + i \odot g \\
            h' &= o \odot \tanh(c')
        \end{aligned}

    Args:
        input: (B, I), or (I) without a batch.
        hx: (h, c), each (B, H), or (H) without a batch, or ``None`` for zeros.
        w_ih: (4*H, I), gates in the order i, f, g, o.
        w_hh: (4*H, H).
        b_ih: (4*H). Default: no biases.
        b_hh: (4*H). Default: no biases.

    Returns:
        The new states (h, c), shaped as those of ``hx``.

    Raises:
        ValueError: if only one bias is given; and what :class:`fastrnn.LSTMCell` raises.

    Source:
        See :class:`fastrnn.LSTM`.
    """
    h, c = _step("LSTMCell", LSTM, "tanh", input, hx, w_ih, w_hh, b_ih, b_hh)
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    r"""Do one step of a GRU.

    .. math::
        \begin{aligned}
            r, z &= \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})_{r, z} \\
            n &= \tanh((W_{ih} x + b_{ih})_n + r \odot (W_{hh} h + b_{hh})_n) \\
            h' &= (1 - z) \odot n + z \odot h
        \end{aligned}

    Args:
        input: (B, I), or (I) without a batch.
        hx: (B, H), or (H) without a batch, or ``None`` for zeros.
        w_ih: (3*H, I), gates in the order r, z, n.
        w_hh: (3*H, H).
        b_ih: (3*H). Default: no biases.
        b_hh: (3*H). Default: no biases.

    Returns:
        The new state, shaped as ``hx``.

    Raises:
        ValueError: if only one bias is given; and what :class:`fastrnn.GRUCell` raises.

    Source:
        See :class:`fastrnn.GRU`.
    """
    result: Tensor = _step("GRUCell", GRU, "tanh", input, hx, w_ih, w_hh, b_ih, b_hh)
    return result


def _check_nonlinearity(owner: str, nonlinearity: str) -> None:
    if nonlinearity not in ELMAN.activations:
        raise ValueError(f"{owner}: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")


def _check_matrices(owner: str, spec: CellSpec, w_ih: Tensor, w_hh: Tensor) -> None:
    for name, weight in (("w_ih", w_ih), ("w_hh", w_hh)):
        if not isinstance(weight, Tensor):
            raise _errors.not_a_tensor(owner, name, weight)
        if weight.dim() != 2 or weight.shape[0] < spec.gates or weight.shape[1] == 0:
            raise _errors.shape(owner, name, "(G*H, ...)", ["*", "*"], weight)


def _stack(
    owner: str,
    spec: CellSpec,
    activation: str,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    checkpoint_every: int | str | None,
) -> tuple[Stack, list[Weights]]:
    """Describe the layers that flat weights are of, and return the weights of each of them."""
    check_checkpoint_every(owner, checkpoint_every)
    directions = 2 if bidirectional else 1
    places = num_layers * directions
    each, rest = divmod(len(weights), places) if places > 0 else (0, 0)
    bias, projected = each in (4, 5), each in (3, 5)
    if rest or not 2 <= each <= 5 or (projected and not spec.supports_projection):
        choices = "2, 3, 4 or 5" if spec.supports_projection else "2 or 4"
        raise ValueError(
            f"{owner}: weights must be {choices} tensors for each of {num_layers} layers and "
            f"{directions} directions, got {len(weights)} tensors"
        )
    _check_matrices(owner, spec, weights[0], weights[1])
    slots: Weights = []
    for first in range(0, len(weights), each):
        own = weights[first : first + each]
        slots += [*own[:2], *(own[2:4] if bias else (None, None)), own[-1] if projected else None]
    stack = make_stack(
        owner,
        spec,
        activation,
        weights[0].shape[1],
        weights[0].shape[0] // spec.gates,
        weights[1].shape[1] if projected else 0,
        num_layers,
        directions,
        bias,
        checkpoint_every=checkpoint_steps(checkpoint_every),
    )
    width = 5 * directions
    return stack, [slots[at : at + width] for at in range(0, len(slots), width)]


def _step(
    owner: str,
    spec: CellSpec,
    activation: str,
    input: Tensor,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Any:
    if (b_ih is None) != (b_hh is None):
        raise ValueError(f"{owner}: b_ih and b_hh must both be given or both be None, got one")
    _check_matrices(owner, spec, w_ih, w_hh)
    size = w_ih.shape[0] // spec.gates
    layer = make_step(owner, spec, activation, w_ih.shape[1], size, b_ih is not None)
    return run_step(layer, input, hx, [w_ih, w_hh, b_ih, b_hh, None])
