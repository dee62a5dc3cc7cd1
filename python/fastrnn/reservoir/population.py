"""Many reservoirs in one call: for tuning, ensembles, and spatial systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _inputs
from ._layer import ReservoirLayer
from ._run import run_layers
from .reservoir import Reservoir


class Population(nn.Module):
    """Run M reservoirs of the same sizes, which may differ in everything else, in one call.

    Weights are copied when the population is made. Members run side by side on all threads, each as
    it would alone, bit by bit.

    Args:
        reservoirs: at least one ``Reservoir``; sizes, activation, directions, dtype, ``es2n``,
            ``noise`` and ``batch_first`` must agree, while radius, leak, scalings, topology and
            seed may not.

    Shape:
        x: (T, B, I), (B, T, I) with ``batch_first``, or (T, I), for all members alike; or
            (M, T, B, I), (M, B, T, I) with ``batch_first``, one for each.
        y: (M, T, B, output_size), (M, B, T, output_size) or (M, T, output_size).
        h0, h: (M, L*D, B, N) or (M, L*D, N).

    Raises:
        ValueError: if the reservoirs do not fit together.
    """

    def __init__(self, reservoirs: Sequence[Reservoir]) -> None:
        super().__init__()
        members = list(reservoirs)
        if not members:
            raise ValueError("Population: reservoirs must have at least one member")
        first = members[0]
        for name in (*_SHARED, "dtype"):
            for index, member in enumerate(members):
                if getattr(member, name) != getattr(first, name):
                    raise ValueError(
                        f"Population: reservoirs must agree in {name}: {getattr(first, name)} and, "
                        f"of number {index}, {getattr(member, name)}"
                    )
        self.members = len(members)
        for name in _SHARED:
            setattr(self, name, getattr(first, name))
        self.directions, self.output_size = first.directions, first.output_size
        self.layers = nn.ModuleList(
            _stacked([member._layer(index) for member in members])
            for index in range(len(first.layers))
        )

    input_size: int
    hidden_size: int
    num_layers: int
    feedback_size: int
    activation: str
    es2n: bool
    noise: float
    bidirectional: bool
    batch_first: bool

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        layer = self.layers[0]
        assert isinstance(layer, ReservoirLayer)
        return layer.bias.dtype

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        feedback: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all members; arguments and results are a Reservoir's with M in front (see above).

        An x of two or three dimensions is for all members alike, one of four for each its own.

        Raises:
            ValueError: for a wrong shape or dtype; the message names the argument.
        """
        dense, batched = self._dense("x", x, self.input_size)
        T, B = dense.shape[1:3]
        checked = None if lengths is None else _inputs.check_lengths("Population", lengths, T, B)
        if (self.feedback_size == 0) != (feedback is None):
            raise ValueError(
                f"Population: feedback must be {'given' if self.feedback_size else 'None'}, since "
                f"feedback_size is {self.feedback_size}"
            )
        fed_back = None
        if feedback is not None:
            fed_back, _ = self._dense("feedback", feedback, self.feedback_size)
            if fed_back.shape[1:3] != dense.shape[1:3]:
                raise ValueError(
                    f"Population: feedback must have as many steps and sequences as x, {(T, B)}, "
                    f"got {tuple(fed_back.shape[1:3])}"
                )
        y, h = run_layers(
            self.layers,
            self.directions,
            dense,
            self._state(h0, B, batched),
            fed_back,
            checked,
            self.noise if self.training else 0.0,
            self.batch_first and batched,
        )
        if not batched:
            return y.squeeze(2), h.squeeze(2)
        return y.transpose(1, 2) if self.batch_first else y, h

    def _dense(self, name: str, x: Tensor, size: int) -> tuple[Tensor, bool]:
        """Return x as (M, T, B, features), and whether it had a batch."""
        _inputs.check_tensor("Population", name, x, self.dtype)
        if x.dim() == 4:
            shape = (self.members, -1, -1, size)
            _inputs.check_shape("Population", name, "(M, T, B, features)", shape, x)
            return x.transpose(1, 2) if self.batch_first else x, True
        batch = _inputs.read("Population", x, None, size, self.batch_first, self.dtype)
        return batch.x.expand(self.members, *batch.x.shape), batch.batched

    def _state(self, h0: Tensor | None, B: int, batched: bool) -> Tensor | None:
        if h0 is None:
            return None
        _inputs.check_tensor("Population", "h0", h0, self.dtype)
        state = h0 if batched else h0.unsqueeze(-2)
        shape = (self.members, len(self.layers), B, self.hidden_size)
        _inputs.check_shape("Population", "h0", "(M, L*D, B, N)", shape, state)
        return state


_SHARED = (
    "input_size",
    "hidden_size",
    "num_layers",
    "feedback_size",
    "activation",
    "es2n",
    "noise",
    "bidirectional",
    "batch_first",
)


def _stacked(layers: Sequence[ReservoirLayer]) -> ReservoirLayer:
    carries = [layer.carry.entries() for layer in layers if layer.carry is not None]
    return ReservoirLayer(
        torch.cat([layer.weight_ih for layer in layers]),
        torch.cat([layer.weight_fb for layer in layers]),
        torch.cat([layer.bias for layer in layers]),
        torch.cat([layer.leak for layer in layers]),
        [layer.recurrent.entries() for layer in layers],
        carries or None,
        layers[0].activation,
        layers[0].bias.dtype,
    )


class RingReservoirs(nn.Module):
    """Run G reservoirs on neighbouring patches of a ring: for spatially extended systems.

    Of Q inputs on a ring, group g reads its own Q / G and ``overlap`` more on either side. All
    groups run as one population. Each has its own weights, or with ``shared_weights`` all the same
    (a system that looks the same everywhere).

    Args:
        input_size: Q, a multiple of ``groups``.
        groups: G, >= 1.
        overlap: inputs read on either side of a group's own, in [0, (Q - Q / G) / 2].
        hidden_size: N, of each group.
        shared_weights: whether all groups have the seed of the first. Default ``False``.
        seed: of the first group; the others count on from it.
        options: further arguments of ``Reservoir`` (one direction, without feedback).

    Shape:
        x: (T, B, Q), (B, T, Q) with ``batch_first``, or (T, Q).
        y: the same with ``output_size = G * num_layers * N`` features, group after group.
        h0, h: (G, L, B, N) or (G, L, N).

    Raises:
        ValueError: for an argument out of range; the message names it.

    Source: Pathak et al., Model-free prediction of large spatiotemporally chaotic systems, 2018.
    """

    def __init__(
        self,
        input_size: int,
        groups: int,
        overlap: int,
        hidden_size: int,
        *,
        shared_weights: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if groups < 1 or input_size % groups:
            raise ValueError(
                f"RingReservoirs: input_size must be a multiple of groups = {groups}, "
                f"got {input_size}"
            )
        own = input_size // groups
        if not 0 <= 2 * overlap <= input_size - own:
            raise ValueError(
                f"RingReservoirs: overlap must be in [0, {(input_size - own) // 2}], got {overlap}"
            )
        if options.get("bidirectional") or options.get("feedback_size"):
            raise ValueError("RingReservoirs: bidirectional and feedback_size are not supported")
        self.input_size, self.groups, self.overlap = input_size, groups, overlap
        self.hidden_size = hidden_size
        self.group_input_size = own + 2 * overlap
        self.population = Population(
            [
                Reservoir(
                    self.group_input_size,
                    hidden_size,
                    seed=seed + (0 if shared_weights else group),
                    **options,
                )
                for group in range(groups)
            ]
        )
        self.batch_first = self.population.batch_first
        self.num_layers, self.bidirectional, self.feedback_size = (
            self.population.num_layers,
            False,
            0,
        )
        self.output_size = groups * self.population.output_size
        first = torch.arange(groups)[:, None] * own - overlap
        reads = (first + torch.arange(self.group_input_size)) % input_size
        self.register_buffer("reads", reads, persistent=False)

    reads: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.population.dtype

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        feedback: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all groups; see the class for the shapes.

        Raises:
            ValueError: for a wrong shape or dtype; the message names the argument.
        """
        if feedback is not None:
            raise ValueError("RingReservoirs: feedback must be None")
        batch = _inputs.read(
            "RingReservoirs", x, None, self.input_size, self.batch_first, self.dtype
        )
        patches = batch.x[..., self.reads].permute(2, 0, 1, 3)  # (G, T, B, reads)
        if self.batch_first:
            patches = patches.transpose(1, 2)
        state = h0 if h0 is None or batch.batched else h0.unsqueeze(-2)
        y, h = self.population(patches, state, lengths)
        side_by_side = y.permute(1, 2, 0, 3).flatten(2)
        return (
            (side_by_side, h)
            if batch.batched
            else (
                side_by_side.squeeze(0 if self.batch_first else 1),
                h.squeeze(-2),
            )
        )
