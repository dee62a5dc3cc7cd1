"""One pass of a fit: what is carried from block to block, and rows on their way to the readout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._series import Piece, Ranges

if TYPE_CHECKING:
    from .esn import ESN


class Session:
    """One pass of a fit: the state that a stream carries, and the ranges of the columns."""

    def __init__(self, esn: ESN) -> None:
        self.esn = esn
        self.x, self.y = Ranges("x", esn.input_size), Ranges("y", esn.output_size)
        self.washout = self.rows = 0
        self.restart()

    def restart(self) -> None:
        """Forget the state: another series follows."""
        self.h: Tensor | None = None
        self.last: Tensor | None = None
        self.steps = 0

    def add(self, piece: Piece, washout: int, streams: bool) -> None:
        """Run a piece and hand its rows to the readout; a stream's series may go on later."""
        esn = self.esn
        shortest = int(piece.steps().min())
        left = max(washout - self.steps, 0)
        if left >= shortest and not streams:
            raise too_long(washout, shortest)
        self.washout = washout
        self._range(piece)
        feedback = shifted(piece.y.to(piece.x.dtype), self.last) if self._feeds else None
        pool = Pool(esn.pooling, left, piece.lengths)
        lengths = piece.steps()
        for steps, features, h in esn.blocks(piece.x, self.h, piece.lengths, feedback):
            self.h = h
            if esn.pooling:
                pool.add(steps, features)
            else:
                self._rows(piece, steps, features, left, lengths)
        if esn.pooling:
            self.rows += piece.y.shape[0]
            esn.readout.update(pool.result(), piece.y, piece.weights)
        elif self._feeds:
            self.last = piece.y[-1:].to(piece.x.dtype)
        self.steps += shortest

    @property
    def _feeds(self) -> bool:
        return bool(self.esn.reservoir.feedback_size)

    def _range(self, piece: Piece) -> None:
        alive = torch.arange(piece.x.shape[0])[:, None] < piece.steps()
        whole = bool(alive.all())
        self.x.update(piece.x.flatten(0, 1) if whole else piece.x[alive])
        if self.esn.pooling:
            self.y.update(piece.y)
        else:
            self.y.update(piece.y.flatten(0, 1) if whole else piece.y[alive])

    def _rows(
        self, piece: Piece, steps: slice, features: Tensor, left: int, lengths: Tensor
    ) -> None:
        targets = piece.y[steps]
        if self.esn.increments:
            targets = targets - piece.x[steps, :, : self.esn.output_size]
        weights = None if piece.weights is None else piece.weights[steps]
        skip = min(max(left - steps.start, 0), features.shape[0])
        if piece.lengths is None:
            features, targets = features[skip:].flatten(0, 1), targets[skip:].flatten(0, 1)
            weights = None if weights is None else weights[skip:].flatten()
        else:
            time = torch.arange(steps.start, steps.stop)[:, None]
            alive = (time < lengths) & (time >= left)
            features, targets = features[alive], targets[alive]
            weights = None if weights is None else weights[alive]
        if features.shape[0]:
            self.rows += features.shape[0]
            self.esn.readout.update(features, targets, weights)

    def check(self) -> None:
        """Refuse a stream that ends within the washout, and columns that never change."""
        if not self.rows:
            if not self.steps:
                raise ValueError("ESN: x must yield at least one pair (x, y), got none")
            raise too_long(self.washout, self.steps)
        group = getattr(self.esn.readout, "process_group", None)
        if not self._feeds:
            self.x.check(group)
        self.y.check(group)


class Pool:
    """One row of features for each series: its last, or the mean after the washout."""

    def __init__(self, kind: str | None, washout: int, lengths: Tensor | None) -> None:
        self.kind, self.washout, self.lengths = kind, washout, lengths
        self.sum: Tensor | None = None
        self.count: Tensor | float = 0.0

    def add(self, steps: slice, features: Tensor) -> None:
        """Take features (t, B, F) of these steps."""
        time = torch.arange(steps.start, steps.stop)[:, None]
        if self.lengths is None:
            alive = torch.ones(features.shape[:2], dtype=torch.bool)
            last = features[-1]
        else:
            alive = time < self.lengths
            last = features[self.lengths - 1, torch.arange(features.shape[1])]
        if self.kind == "last":
            self.sum, self.count = last, 1.0
            return
        kept = (alive & (time >= self.washout)).unsqueeze(-1)
        part = torch.where(kept, features, torch.zeros_like(features)).sum(0, dtype=torch.float64)
        self.sum = part if self.sum is None else self.sum + part
        self.count = self.count + kept.sum(0)

    def result(self) -> Tensor:
        """Return (B, F).

        Raises:
            ValueError: if nothing is left of a series after the washout.
        """
        assert self.sum is not None
        if isinstance(self.count, Tensor) and int(self.count.min()) == 0:
            raise ValueError(
                f"ESN: washout must be shorter than every series, got {self.washout} with "
                "pooling='mean' for one that is no longer"
            )
        return self.sum / self.count


def shifted(y: Tensor, last: Tensor | None) -> Tensor:
    """Return the targets of the step before each, (T, B, O), zeros or ``last`` first."""
    first = torch.zeros_like(y[:1]) if last is None else last
    return torch.cat([first, y[:-1]])


def too_long(washout: int, steps: int) -> ValueError:
    return ValueError(
        f"ESN: washout must be shorter than every series, got {washout} for a series of {steps} "
        "steps"
    )


def run_pass(
    session: Session,
    x: Any,
    y: Any,
    weights: Any,
    washout: int | None,
    continued: bool,
    progress: bool,
) -> None:
    """Hand all rows of a caller's data to the readout, once."""
    esn = session.esn
    washed = esn.washout if washout is None else check_washout(washout)
    if esn.pooling == "mean" and washed != esn.washout:
        raise ValueError(
            "ESN: washout must be given to the constructor with pooling='mean', as predict leaves "
            f"out the same steps: {esn.washout} there, got {washed}"
        )
    pieces = esn.reader().pieces(x, y, weights)
    if progress:
        from tqdm.auto import tqdm

        pieces = tqdm(pieces, desc="ESN.fit", unit="batch")
    streams = continued and not isinstance(x, list | tuple)
    with torch.no_grad(), esn._mode(True):
        for piece in pieces:
            if not streams:
                session.restart()
            session.add(piece, washed, streams)


def check_washout(washout: object) -> int:
    """Refuse what is no number of steps."""
    if isinstance(washout, bool) or not isinstance(washout, int) or washout < 0:
        raise ValueError(f"ESN: washout must be an integer >= 0, got {washout!r}")
    return washout
