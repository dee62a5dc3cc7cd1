"""Long short-term memory: torch's LSTM and LSTMCell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._base import RNNBase, RNNCellBase
from ._spec import CellSpec, Foreign


def _maths(wx: Tensor, rh: Tensor, states: Sequence[Tensor], activation: str) -> tuple[Tensor, ...]:
    i, f, g, o = (wx + rh).chunk(4, dim=-1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


SPEC = CellSpec(
    name="lstm",
    gates=4,
    states=2,
    activations=("tanh",),
    modes=("LSTM",),
    supports_projection=True,
    maths=_maths,
    onnx=Foreign("LSTM", (0, 3, 1, 2), ("sigmoid", "", "")),
    keras=Foreign("LSTM", (0, 1, 2, 3), ("", "sigmoid")),
)


class LSTM(RNNBase):
    r"""Run a stack of LSTM layers over sequences.

    A drop-in replacement for :class:`torch.nn.LSTM`. For each layer and step

    .. math::
        \begin{aligned}
            i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
            f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
            g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
            o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
            c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
            h_t &= o_t \odot \tanh(c_t)
        \end{aligned}

    and with a projection :math:`h_t = W_{hr} (o_t \odot \tanh(c_t))`. The rows of the weights are
    in the order i, f, g, o.

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
        proj_size: P, width that h is projected to, less than H; 0 for no projection. Default: 0.
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
        - hx: the pair (h0, c0), h0 of shape (L*D, B, O) and c0 of shape (L*D, B, H), where O is P
          if there is a projection, else H; without a batch there is no B. Default: zeros.
        - output: as the input, with D*O features: the last layer's :math:`h_t`, forward direction
          first.
        - h_n, c_n: as h0 and c0; layer by layer, forward direction first.

    Returns:
        ``output, (h_n, c_n)``.

    Raises:
        ValueError: if an option is out of range, or the rank or dtype of the input is wrong.
        RuntimeError: if a shape, a device or the dtype of a state is wrong, a state is missing, or
            T is 0.
        NotImplementedError: if there are no kernels for the dtype.
        TypeError: if an argument is of the wrong type.

    Source:
        S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 9 (1997), with
        the forget gate of F. Gers et al., Learning to Forget, Neural Computation 12 (2000), in the
        form of :class:`torch.nn.LSTM`: two biases, no peepholes. The projection is the recurrent
        one of H. Sak et al., arXiv:1402.1128, equation 6.
    """

    _spec = SPEC
    _owner = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | str | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
            checkpoint_every=checkpoint_every,
        )


class LSTMCell(RNNCellBase):
    r"""Do one step of an LSTM.

    A drop-in replacement for :class:`torch.nn.LSTMCell`:

    .. math::
        \begin{aligned}
            i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi}) \\
            f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
            g &= \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
            o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho}) \\
            c' &= f \odot c + i \odot g \\
            h' &= o \odot \tanh(c')
        \end{aligned}

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, hidden units, at least 1.
        bias: whether there are biases. Default: ``True``.
        device: where the parameters are made. Default: torch's.
        dtype: of the parameters: float32, float64, bfloat16 or float16. Default: torch's.

    Shape:
        - input: (B, I), or (I) without a batch.
        - hx: the pair (h, c), each (B, H), or (H) without a batch. Default: zeros.
        - output: as hx.

    Returns:
        The new states, ``(h, c)``.

    Raises:
        ValueError: if the rank of the input or of a state is wrong.
        RuntimeError: if a shape, a device or a dtype is wrong, or a state is missing.
        NotImplementedError: if there are no kernels for the dtype.
        TypeError: if an argument is of the wrong type.

    Source:
        As for :class:`fastrnn.LSTM`.
    """

    _spec = SPEC
    _owner = "LSTMCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
