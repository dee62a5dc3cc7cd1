"""The Elman network: torch's RNN and RNNCell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import RNNBase, RNNCellBase
from .._errors import refuse_projection
from ._spec import CellSpec, Foreign


def _maths(wx: Tensor, rh: Tensor, states: Sequence[Tensor], activation: str) -> tuple[Tensor, ...]:
    pre = wx + rh
    return (torch.relu(pre) if activation == "relu" else torch.tanh(pre),)


SPEC = CellSpec(
    name="elman",
    gates=1,
    states=1,
    activations=("tanh", "relu"),
    modes=("RNN_TANH", "RNN_RELU"),
    supports_projection=False,
    maths=_maths,
    onnx=Foreign("RNN", (0,), ("",)),
    keras=Foreign("SimpleRNN", (0,), ("",)),
    carries=False,
)


class RNN(RNNBase):
    r"""Run a stack of Elman layers over sequences.

    A drop-in replacement for :class:`torch.nn.RNN`. For each layer and step

    .. math::
        h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    where :math:`f` is tanh or relu.

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, hidden units, at least 1.
        num_layers: L, layers; each reads the output of the one before. Default: 1.
        nonlinearity: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
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
        J. L. Elman, Finding Structure in Time, Cognitive Science 14 (1990), in the form of
        :class:`torch.nn.RNN`: with two biases, and relu as an option.
    """

    _spec = SPEC
    _owner = "RNN"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
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
        refuse_projection("RNN", unsupported)
        if nonlinearity not in SPEC.activations:
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
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
        self.nonlinearity = nonlinearity


class RNNCell(RNNCellBase):
    r"""Do one step of an Elman recurrence.

    A drop-in replacement for :class:`torch.nn.RNNCell`:

    .. math::
        h' = f(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    where :math:`f` is tanh or relu.

    Args:
        input_size: I, features of the input, at least 1.
        hidden_size: H, hidden units, at least 1.
        bias: whether there are biases. Default: ``True``.
        nonlinearity: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
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
        RuntimeError: if a shape, a device or a dtype is wrong, or the nonlinearity unknown.
        NotImplementedError: if there are no kernels for the dtype.
        TypeError: if an argument is of the wrong type.

    Source:
        As for :class:`fastrnn.RNN`.
    """

    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]  # noqa: RUF012

    _spec = SPEC
    _owner = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nonlinearity":
            self.__dict__.pop("_runtime", None)
        super().__setattr__(name, value)

    def _activation(self) -> str:
        if self.nonlinearity not in SPEC.activations:
            raise RuntimeError(
                f"RNNCell: nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}"
            )
        return self.nonlinearity
