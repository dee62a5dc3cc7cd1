"""Several networks as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .esn import ESN


class Ensemble(nn.Module):
    """Average the outputs of networks that differ in their reservoirs.

    Args:
        members: at least one ``ESN``, of the same input and output sizes.

    Shape:
        As of its members.

    Raises:
        ValueError: without members, or if sizes differ.
    """

    def __init__(self, members: Sequence[ESN]) -> None:
        super().__init__()
        if not members:
            raise ValueError("Ensemble: members must hold at least one ESN")
        sizes = {(member.input_size, member.output_size, member.pooling) for member in members}
        if len(sizes) > 1:
            raise ValueError(
                f"Ensemble: members must agree in input_size, output_size and pooling, got {sizes}"
            )
        self.members = nn.ModuleList(members)

    def fit(self, x: Any, y: Any = None, washout: int | None = None, **options: Any) -> Ensemble:
        """Fit every member; arguments are those of ``ESN.fit``, but for iterators."""
        if isinstance(x, Iterator):
            raise ValueError("Ensemble: x must be readable once for each member, got an iterator")
        for member in self._networks():
            member.fit(x, y, washout, **options)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean output, with gradients to x."""
        return torch.stack([member(x) for member in self.members]).mean(0)

    def predict(self, x: Any) -> Any:
        """Return the mean output for a tensor, or for each series of a list."""
        results = [member.predict(x) for member in self._networks()]
        if isinstance(x, list | tuple):
            return [torch.stack(parts).mean(0) for parts in zip(*results, strict=True)]
        return torch.stack(results).mean(0)

    def forecast(self, warmup: Tensor, horizon: int, drivers: Tensor | None = None) -> Tensor:
        """Return the mean of the members' own forecasts."""
        return torch.stack(
            [member.forecast(warmup, horizon, drivers) for member in self._networks()]
        ).mean(0)

    def _networks(self) -> list[ESN]:
        return [member for member in self.members if isinstance(member, ESN)]
