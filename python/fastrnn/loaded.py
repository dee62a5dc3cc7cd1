"""Layers loaded from other formats, which a torch-style layer alone cannot stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import _errors
from .cells.elman import RNN
from .cells.gru import GRU
from .cells.lstm import LSTM

if TYPE_CHECKING:
    from ._base import Hidden, RNNBase

LAYERS: tuple[type[RNN] | type[LSTM] | type[GRU], ...] = (RNN, LSTM, GRU)
"""What can be loaded: each class's ``_spec`` says how other formats call it."""


class Loaded(torch.nn.Module):
    """A layer of another format: a fastrnn layer, run backwards in time if that is what it was.

    ``module`` is a plain :class:`fastrnn.RNN`, ``LSTM`` or ``GRU``, whose ``state_dict`` is
    torch.nn's; if ``reverse`` is false it may take the place of this object.
    """

    def __init__(self, module: RNNBase | None, reverse: bool) -> None:
        super().__init__()
        self.module = module
        self.reverse = reverse

    def forward(self, input: Tensor, hx: Hidden | None = None) -> tuple[Tensor, Any]:
        """Run the layer as :meth:`fastrnn.LSTM.forward` does; one direction may be the reverse.

        Args:
            input: (T, B, I), or (B, T, I) if ``module.batch_first``, or (T, I) without a batch.
            hx: initial states, ``None`` for zeros.

        Returns:
            The output, whose step t belongs to step t of the input, and the final states.

        Raises:
            RuntimeError: if there are no weights; and what the layer raises.
            TypeError: if the input of a reverse layer is a PackedSequence.
        """
        if self.module is None:
            raise RuntimeError(f"{type(self).__name__}: no weights were loaded")
        if not self.reverse:
            output, h_n = self.module(input, hx)
            return output, h_n
        if not isinstance(input, Tensor):
            raise _errors.not_a_tensor(type(self).__name__, "input of a reverse layer", input)
        steps = 1 if self.module.batch_first and input.dim() == 3 else 0
        output, h_n = self.module(input.flip(steps), hx)
        return output.flip(steps), h_n

    def extra_repr(self) -> str:
        """Return what the layer inside does not say."""
        return "reverse=True" if self.reverse else ""


def load(
    layer: type[RNN] | type[LSTM] | type[GRU],
    weights: Sequence[Sequence[Tensor]],
    activation: str,
    batch_first: bool,
) -> RNNBase:
    """Build a layer that owns copies of the weights of one or both directions.

    Args:
        layer: the class.
        weights: of each direction ``w_ih, w_hh`` and, if there are biases, ``b_ih, b_hh``, as
            torch.nn has them.
        activation: one of the cell's.
        batch_first: of the layer.
    """
    w_ih, w_hh = weights[0][:2]
    options: dict[str, Any] = {"bias": len(weights[0]) > 2, "bidirectional": len(weights) == 2}
    if len(layer._spec.activations) > 1:
        options["nonlinearity"] = activation
    # Not on the CPU at first, so that no random number is drawn for weights that are replaced.
    module: RNNBase = layer(
        w_ih.shape[1],
        w_hh.shape[1],
        batch_first=batch_first,
        device="meta",
        dtype=w_ih.dtype,
        **options,
    ).to_empty(device=w_ih.device)
    names = [name for name in module._stack().time_major[0].names if name is not None]
    flat = [weight for own in weights for weight in own]
    module.load_state_dict(dict(zip(names, flat, strict=True)))
    return module


def as_tensor(value: Any) -> Tensor:
    """Return a tensor, an array or what numpy takes for one as a tensor; memory may be shared."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which torch does not know
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
