"""The gated recurrent unit, reset after the product: torch's GRU and GRUCell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import RNNBase, RNNCellBase
from .._errors import refuse_projection
from ._spec import CellSpec, Foreign


def _maths(wx: Tensor, rh: Tensor, states: Sequence[Tensor], activation: str) -> tuple[Tensor, ...]:
    wx_r, wx_z, wx_n = wx.chunk(3, dim=-1)
    rh_r, rh_z, rh_n = rh.chunk(3, dim=-1)
    r, z = torch.sigmoid(wx_r + rh_r), torch.sigmoid(wx_z + rh_z)
    n = torch.tanh(wx_n + r * rh_n)
    return ((1 - z) * n + z * states[0],)


SPEC = CellSpec(
    name="gru",
    gates=3,
    states=1,
    activations=("tanh",),
    modes=("GRU",),
    supports_projection=False,
    maths=_maths,
    onnx=Foreign("GRU", (1, 0, 2), ("sigmoid", ""), (("linear_before_reset", 1),)),
    keras=Foreign("GRU", (1, 0, 2), ("", "sigmoid"), (("reset_after", True),)),
)


class GRU(RNNBase):
    r"""Run a stack of GRU layers over sequences.

    A drop-in replacement for :class:`torch.nn.GRU`. For each layer and step

    .. math::
        \begin{aligned}
            r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
            z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
            n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
            h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
        \end{aligned}

    The rows of the weights are in the order r, z, n.

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, hidden units, at least 1.
        num_layers: L, layers; each reads the output of the one before. Default: 1.
        bias: whether there are biases. Default: ``True``.
        batch_first: whether input and output are (B, T, features) and not (T, B, features); states
            are the same either way. Default: ``False``.
        dropout: probability in [0, 1] with which an output of every layer but the last is zeroed
            in training. Default: 0.
        bidirectional: whether a second recurrence runs from the last step to the first (D = 2, else
            D = 1). Default: ``False``.
        device: where the parameters are made. Default: torch's.
        dtype: of the parameters: float32, float64, bfloat16 or float16. Of the last two, products
            are summed and the maths is done in float32, and h is rounded at each step. Default:
            torch's.
        checkpoint_every: K, or ``"auto"`` for about :math:`\sqrt T`: training keeps only every
            K-th state for the backward pass, which computes the others again. It takes at most
            about a third longer, memory beside input and output falls from O(T) to O(T/K + K), and
            gradients are the same bitwise. Default: ``None``, everything is kept.

    Shape:
        - input: (T, B, I), (B, T, I) if ``batch_first``, (T, I) without a batch, or a
          PackedSequence.
        - h0: (L*D, B, H), or (L*D, H) without a batch. Default: zeros.
        - output: as the input, with D*H features: the last layer's :math:`h_t`, forward direction
          first.
        - h_n: as h0; layer by layer, forward direction first.

    Returns:
        ``output, h_n``.

    Raises:
        ValueError: if an option is out of range, or the rank or dtype of the input is wrong.
        RuntimeError: if a shape, a device or the dtype of a state is wrong, or T is 0.
        NotImplementedError: if there are no kernels for the dtype.
        TypeError: if an argument is of the wrong type.

    Source:
        K. Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, arXiv:1406.1078,
        in the form of :class:`torch.nn.GRU`: the reset gate acts after the recurrent product, which
        has a bias of its own, and z weighs the old state.
    """

    _spec = SPEC
    _owner = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | str | None = None,
        **unsupported: Any,
    ) -> None:
        refuse_projection("GRU", unsupported)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            checkpoint_every=checkpoint_every,
        )


class GRUCell(RNNCellBase):
    r"""Do one step of a GRU.

    A drop-in replacement for :class:`torch.nn.GRUCell`:

    .. math::
        \begin{aligned}
            r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
            z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
            n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
            h' &= (1 - z) \odot n + z \odot h
        \end{aligned}

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, hidden units, at least 1.
        bias: whether there are biases. Default: ``True``.
        device: where the parameters are made. Default: torch's.
        dtype: of the parameters: float32, float64, bfloat16 or float16. Default: torch's.

    Shape:
        - input: (B, I), or (I) without a batch.
        - hx: (B, H), or (H) without a batch. Default: zeros.
        - output: as hx.

    Returns:
        The new state.

    Raises:
        ValueError: if the rank of the input or of the state is wrong.
        RuntimeError: if a shape, a device or a dtype is wrong.
        NotImplementedError: if there are no kernels for the dtype.
        TypeError: if an argument is of the wrong type.

    Source:
        As for :class:`fastrnn.GRU`.
    """

    _spec = SPEC
    _owner = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
