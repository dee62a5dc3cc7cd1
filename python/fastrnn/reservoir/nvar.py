"""Next-generation reservoirs: delayed inputs and their products instead of random units."""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn


class NVAR(nn.Module):
    """Make features of the last inputs: l_t = [u_t, u_{t-s}, ..., u_{t-(k-1)s}] and its monomials.

    The features are those of l_t itself and of all products of 2 to ``order`` of its values. It
    takes the place of a reservoir in ``ESN`` (nonlinear vector autoregression): the state is the
    window of inputs, so nothing is random and the washout is (k - 1) s steps.

    Args:
        input_size: I, at least 1.
        delays: k, inputs in l_t, at least 1. Default 2.
        skip: s, steps between them, at least 1. Default 1.
        order: highest degree of a monomial, at least 1. Default 2.
        batch_first: whether batched inputs and outputs are (B, T, features).
        dtype: default torch's.

    Shape:
        x: (T, B, I), (B, T, I) with ``batch_first``, or (T, I).
        y: the same with ``output_size`` features.
        h0, h: the window ((k - 1) s + 1, B, I) or ((k - 1) s + 1, I), the present input last.

    Raises:
        ValueError: for an argument out of range.

    Source: D. Gauthier, E. Bollt, A. Griffith and W. Barbosa, Next generation reservoir computing,
    Nature Communications 12 (2021).
    """

    monomials: Tensor

    def __init__(
        self,
        input_size: int,
        delays: int = 2,
        *,
        skip: int = 1,
        order: int = 2,
        batch_first: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given = {"input_size": input_size, "delays": delays, "skip": skip, "order": order}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"NVAR: {name} must be at least 1, got {value}")
        self.input_size, self.delays, self.skip, self.order = input_size, delays, skip, order
        self.batch_first = batch_first
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.window = (delays - 1) * skip + 1
        self.bidirectional, self.feedback_size, self.num_layers = False, 0, 1
        linear = input_size * delays
        # A monomial of a lower degree has the number of a column of ones in its last places.
        products = [
            (*places, *([linear] * (order - degree)))
            for degree in range(1, order + 1)
            for places in combinations_with_replacement(range(linear), degree)
        ]
        self.register_buffer("monomials", torch.tensor(products).T, persistent=False)
        self.output_size = self.hidden_size = len(products)

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        feedback: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the features of each step and the window after the last; see the class.

        Inputs before the first are those of ``h0``, or zeros. With ``lengths`` (B,), features
        beyond a sequence's end are zero, and its window is that of its own last step.

        Raises:
            ValueError: for a wrong shape; the message names the argument.
        """
        if feedback is not None:
            raise ValueError("NVAR: feedback must be None")
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"NVAR: x must have {self.input_size} features in 2 or 3 dimensions, got "
                f"{tuple(x.shape)}"
            )
        single, swap = x.dim() == 2, self.batch_first and x.dim() == 3
        dense = x.unsqueeze(1) if single else x.transpose(0, 1) if swap else x
        before = self._before(h0, dense, single)
        past = torch.cat([before, dense])
        T = dense.shape[0]
        lags = [past[self.window - 1 - d * self.skip :][:T] for d in range(self.delays)]
        y = self._products(torch.cat(lags, -1))
        if lengths is None:
            h = past[past.shape[0] - self.window :]
        else:
            ends = torch.as_tensor(lengths)
            y = torch.where((torch.arange(T)[:, None] < ends)[..., None], y, torch.zeros_like(y))
            rows = ends + torch.arange(self.window)[:, None] - 1
            padded = torch.cat([past.new_zeros(1, *past.shape[1:]), past])
            h = padded[rows + 1, torch.arange(dense.shape[1])]
        if single:
            return y.squeeze(1), h.squeeze(1)
        return (y.transpose(0, 1) if swap else y), h

    def states(self, h: Tensor) -> Tensor:
        """Return the features (B, output_size) of a window (.., B, I)."""
        places = [self.window - 1 - d * self.skip for d in range(self.delays)]
        return self._products(torch.cat([h[place] for place in places], -1))

    def _before(self, h0: Tensor | None, x: Tensor, single: bool) -> Tensor:
        if h0 is None:
            return x.new_zeros(self.window - 1, *x.shape[1:])
        window = h0.unsqueeze(1) if single and h0.dim() == 2 else h0
        if window.shape != (self.window, *x.shape[1:]):
            raise ValueError(
                f"NVAR: h0 must have shape ((k - 1) s + 1, B, I) = "
                f"{(self.window, *x.shape[1:])}, got {tuple(h0.shape)}"
            )
        return window[1:]

    def _products(self, linear: Tensor) -> Tensor:
        if self.order == 1:
            return linear
        table = torch.cat([linear, torch.ones_like(linear[..., :1])], -1)
        y = table[..., self.monomials[0]]
        for places in self.monomials[1:]:
            y = y * table[..., places]
        return y
