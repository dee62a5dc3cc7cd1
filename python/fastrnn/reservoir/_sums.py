"""The rows of an unfinished ridge fit: which sums hold them, and in which fold they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._moments import Gram, Moments, Triangle
from ._rows import Rows


class Sums:
    """The sums of one fit, in folds, and the solver that reads them.

    Args:
        features: columns of the states.
        outputs: columns of the targets.
        folds: folds that the rows are dealt to.
        length: consecutive rows of a fold before the next one's turn.
        few: whether rows may be kept, while they are fewer than features, in place of a scatter.
    """

    def __init__(self, features: int, outputs: int, folds: int, length: int, few: bool) -> None:
        self.features, self.outputs = features, outputs
        self.folds, self.length, self.few = folds, length, few
        self.answer: Any = None
        self.path: tuple[Tensor, Tensor] | None = None
        self.whole = True

    def start(self, solver: str) -> None:
        """Begin a pass for a solver."""
        self.solver = solver
        self.row = 0
        self._make(Triangle if solver == "tsqr" else Rows if self.few else Gram)

    @property
    def kept(self) -> bool:
        """Whether the rows themselves are there."""
        return isinstance(self.parts[0], Rows)

    def replay(self, solver: str) -> None:
        """Turn kept rows into the sums of a solver, without another pass."""
        self.solver, before = solver, self.parts
        self._make(Triangle if solver == "tsqr" else Gram)
        for rows, part in zip(before, self.parts, strict=True):
            rows.replay(part)

    def update(self, states: Tensor, targets: Tensor, weights: Tensor | None) -> None:
        """Deal rows to the folds, a run of ``length`` rows to each in turn.

        Raises:
            ValueError: if an earlier update was interrupted.
        """
        self.check()
        rows = states.shape[0]
        self.whole = False
        if self.kept and self.row + rows >= self.features:
            self.replay(self.solver)
        at = 0
        while at < rows:
            fold = self.parts[self.row // self.length % self.folds]
            left = self.length - self.row % self.length
            count = min(rows - at, left) if self.folds > 1 else rows
            part = slice(at, at + count)
            fold.update(states[part], targets[part], None if weights is None else weights[part])
            at += count
            self.row += count
        self.whole = True

    def check(self) -> None:
        """Refuse sums that an exception, as that of Ctrl-C, left half done."""
        if not self.whole:
            raise ValueError(
                "Ridge: an interrupted update left the sums incomplete; call reset() and give the "
                "rows again"
            )

    def closed(self, intercept: bool, group: Any) -> list[Any]:
        """Return the folds, of all ranks and uncentred where need be; the sums stay as they are."""
        if intercept and group is None:
            return self.parts
        parts = [part.copy() for part in self.parts]
        for part in parts:
            if group is not None:
                part.reduce(None if group == "world" else group)
            if not intercept:
                part.uncentre()
        return parts

    def _make(self, kind: type[Moments]) -> None:
        self.parts: list[Any] = [kind(self.features, self.outputs) for _ in range(self.folds)]
