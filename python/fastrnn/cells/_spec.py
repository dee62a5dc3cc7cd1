"""What a cell is, in Python: its counts and one time step in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

Maths = Callable[[Tensor, Tensor, Sequence[Tensor], str], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Foreign:
    """Say what another format calls a cell, and how it lays out the same numbers.

    Args:
        name: the operator or layer.
        order: its gates, as numbers of ours: its k-th gate is our gate ``order[k]``.
        functions: its activations; an empty name is the one the cell was built with.
        options: what its options have to be for the maths to be ours.
    """

    name: str
    order: tuple[int, ...]
    functions: tuple[str, ...]
    options: tuple[tuple[str, int], ...] = ()

    def from_torch(self, weight: Tensor) -> Tensor:
        """Return a weight (G*H, ...) or bias (G*H) with its gates in the other format's order."""
        return _reordered(weight, self.order)

    def to_torch(self, weight: Tensor) -> Tensor:
        """Return a weight (G*H, ...) or bias (G*H) of the other format with its gates in ours."""
        return _reordered(weight, [self.order.index(k) for k in range(len(self.order))])

    def activations(self, own: str) -> tuple[str, ...]:
        """Return the activations, given that of the cell."""
        return tuple(function or own for function in self.functions)


def _reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    if len(order) == 1:
        return weight
    # Slices, which exporters fold into constants as they do not fold a split.
    size = weight.shape[0] // len(order)
    return torch.cat([weight.narrow(0, k * size, size) for k in order])


SPECS: dict[str, CellSpec] = {}
"""Every spec by its name, for code that the cells are built on; ``cells.CELLS`` is for all else."""


@dataclass(frozen=True)
class CellSpec:
    r"""Describe a recurrent cell.

    The compiled engine has the same cell under the same ``name``; the step here is the reference it
    is tested against. It is differentiable any number of times.

    Args:
        name: key of the cell in the registries of Python and of the engine.
        gates: products per hidden unit, in the order of the rows of the weights.
        states: tensors carried from step to step; the first one is the output.
        activations: the functions the cell can be built with, its default first.
        modes: what ``torch.nn`` calls the layers with these activations, in the same order.
        supports_projection: whether the output may be projected to fewer units.
        maths: ``maths(wx, rh, states, activation)``, the pointwise part of a step. ``wx`` is the
            input part and ``rh`` the recurrent part of the gates, each of shape :math:`(B, G H)`
            with its own bias added; the result is the new states, not yet projected.
        onnx: the operator of ONNX that does the same; ``None`` if there is none.
        keras: the layer of Keras that does the same; ``None`` if there is none.
        carries: whether a new state is a sum with the old one, beside all products; under
            ``torch.autocast`` it then keeps the precision of the initial state.
    """

    name: str
    gates: int
    states: int
    activations: tuple[str, ...]
    modes: tuple[str, ...]
    supports_projection: bool
    maths: Maths
    onnx: Foreign | None = None
    keras: Foreign | None = None
    carries: bool = True

    def __post_init__(self) -> None:
        SPECS[self.name] = self

    def step(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        activation: str | None = None,
    ) -> tuple[Tensor, ...]:
        r"""Do one time step in plain torch.

        .. math::
            \begin{aligned}
                s_t &= \mathrm{maths}(W_{ih} x_t + b_{ih},\; W_{hh} h_{t-1} + b_{hh},\; s_{t-1}) \\
                h_t &= W_{hr} s_t^{(0)} \quad \text{if there is a projection}
            \end{aligned}

        Args:
            x: input of the step, of shape :math:`(B, I)`.
            states: the previous states, :math:`(B, O)` for the first one, :math:`(B, H)` for the
                others; :math:`O` is the projected size if there is a projection, else :math:`H`.
            weights: ``(w_ih, w_hh, b_ih, b_hh, w_hr)``, ``None`` for what is absent.
            activation: one of ``activations``, default: the first.

        Returns:
            The new states, shaped as the previous ones.
        """
        w_ih, w_hh, b_ih, b_hh, w_hr = weights
        assert w_ih is not None
        assert w_hh is not None
        wx, rh = linear(x, w_ih, b_ih), linear(states[0], w_hh, b_hh)
        output, *others = self.maths(wx, rh, states, activation or self.activations[0])
        return (output if w_hr is None else linear(output, w_hr), *others)
