"""Predictions from given inputs, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._series import Piece, check_finite, padded
from ._session import Pool, shifted

if TYPE_CHECKING:
    from .esn import ESN


def run(
    esn: ESN, x: Tensor, h: Tensor | None, dims: int, feedback: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs for x (T, B, I), or one a series with pooling, and the last state."""
    fed = None
    if feedback is not None:
        if not esn.reservoir.feedback_size:
            raise ValueError("ESN: feedback must be None, as the reservoir takes none")
        fed = feedback.unsqueeze(1) if dims == 2 else feedback
        fed = fed.transpose(0, 1) if dims == 3 and esn.reservoir.batch_first else fed
        fed = shifted(fed.to(x.dtype), None)
    pool = Pool(esn.pooling, esn.washout, None)
    parts: list[Tensor] = []
    end = h
    for steps, features, state in esn.blocks(x, h, None, fed):
        end = state
        if esn.pooling:
            pool.add(steps, features)
        else:
            output = esn.readout(features)
            if esn.increments:
                output = output + x[steps, :, : esn.output_size]
            parts.append(output)
    assert end is not None
    return (esn.readout(pool.result()) if esn.pooling else torch.cat(parts)), end


def predict_list(esn: ESN, x: list[Any]) -> list[Tensor]:
    """Predict series of any lengths, many side by side."""
    reader = esn.reader()
    series = []
    for i, part in enumerate(x):
        if not isinstance(part, Tensor) or part.dim() != 2:
            raise ValueError(f"ESN: x must be a list of tensors (T, I); number {i} is not")
        dense = reader.input(part)
        check_finite("x", dense)
        series.append(dense)
    if esn.reservoir.feedback_size:
        return [esn.predict(part) for part in x]
    results: list[Tensor] = [torch.empty(0)] * len(x)
    order = sorted(range(len(x)), key=lambda i: series[i].shape[0])
    with esn._mode(False):
        for at in range(0, len(order), 64):
            chosen = order[at : at + 64]
            _predict_group(esn, [series[i] for i in chosen], chosen, results)
    return results


def _predict_group(esn: ESN, group: list[Tensor], places: list[int], results: list[Tensor]) -> None:
    batch = padded([Piece(x, x) for x in group], False)
    pool = Pool(esn.pooling, esn.washout, batch.lengths)
    for steps, features, _ in esn.blocks(batch.x, None, batch.lengths, None):
        if esn.pooling:
            pool.add(steps, features)
            continue
        output = esn.readout(features)
        if esn.increments:
            output = output + batch.x[steps, :, : esn.output_size]
        for b, place in enumerate(places):
            part = output[: group[b].shape[0] - steps.start, b]
            results[place] = torch.cat([results[place], part]) if steps.start else part
    if esn.pooling:
        for place, row in zip(places, esn.readout(pool.result()), strict=True):
            results[place] = row
