"""Readouts that learn row by row: recursive least squares, FORCE, and least mean squares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .readout import LinearReadout, check_finite

if TYPE_CHECKING:
    from .esn import ESN


class _Learner:
    """W (outputs, features + 1), the intercept last, and what the rule keeps beside it."""

    def __init__(self, features: int, outputs: int) -> None:
        self.features, self.outputs = features, outputs
        self.weight = torch.zeros(outputs, features + 1, dtype=torch.float64)
        self.inverse: Tensor | None = None


class Online(LinearReadout):
    """What online readouts share: one pass, in the order in which rows come.

    ``partial_fit`` goes on from where it was; ``finalize`` makes the present weights those of
    ``forward``. Zero rows in ``sample_weight`` are passed over; other weights scale the error.
    """

    def begin(
        self, features: int, outputs: int, rows: int | None = None, repeat: str = "exact"
    ) -> None:
        """Start from zero weights; see ``Readout.begin``."""
        self._pending = self._start(_Learner(features, outputs))

    def update(self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> None:
        """Learn from rows one after the other."""
        learner: _Learner = self._require_pending()
        owner = type(self).__name__
        check_finite(owner, "states", states)
        ones = torch.ones(states.shape[0], 1, dtype=torch.float64)
        rows = torch.cat([states.double(), ones], 1)
        wanted = targets.double()
        for t in range(rows.shape[0]):
            weight = 1.0 if sample_weight is None else float(sample_weight[t])
            if weight > 0:
                self._learn(learner, rows[t], wanted[t], weight)

    def finalize(self) -> None:
        """Make the weights learnt those of ``forward``."""
        learner: _Learner = self._require_pending()
        self._commit(learner.weight[:, :-1].clone(), learner.weight[:, -1].clone())

    def _start(self, learner: _Learner) -> _Learner:
        return learner

    def _learn(self, learner: _Learner, row: Tensor, target: Tensor, weight: float) -> None:
        raise NotImplementedError


class RLS(Online):
    """Recursive least squares: at each row the minimum of a discounted ridge loss.

    k = P s / (lambda / w + s^T P s);  W += (y - W s) k^T;  P = (P - k s^T P) / lambda;
    P_0 = I / alpha

    minimises sum_t lambda^(T - t) w_t |y_t - W s_t|^2 + lambda^T alpha |W|^2, the intercept being
    one of the weights.

    Args:
        alpha: the penalty, > 0. Default 1e-6.
        forgetting: lambda, in (0, 1]. Default 1: no row is forgotten.

    Raises:
        ValueError: if an argument is out of range.

    Source: S. Haykin, Adaptive filter theory, chapter on recursive least squares.
    """

    def __init__(self, alpha: float = 1e-6, forgetting: float = 1.0) -> None:
        super().__init__()
        owner = type(self).__name__
        if not 0 < alpha < float("inf"):
            raise ValueError(f"{owner}: alpha must be finite and above 0, got {alpha}")
        if not 0 < forgetting <= 1:
            raise ValueError(f"{owner}: forgetting must be in (0, 1], got {forgetting}")
        self.alpha, self.forgetting = alpha, forgetting

    def _start(self, learner: _Learner) -> _Learner:
        learner.inverse = torch.eye(learner.features + 1, dtype=torch.float64) / self.alpha
        return learner

    def _learn(self, learner: _Learner, row: Tensor, target: Tensor, weight: float) -> None:
        inverse = learner.inverse
        assert inverse is not None
        spread = inverse @ row
        gain = spread / (self.forgetting / weight + float(row @ spread))
        learner.weight.addr_(target - learner.weight @ row, gain)
        inverse.addr_(gain, spread, alpha=-1)
        if self.forgetting != 1:
            inverse /= self.forgetting


class LMS(Online):
    """Least mean squares: W += rate w (y - W s) s^T, over |s|^2 + eps if normalised.

    Args:
        rate: learning rate, > 0; with ``normalised`` below 2. Default 0.5.
        normalised: whether the step is divided by |s|^2 + eps. Default ``True``.
        eps: > 0. Default 1e-8.

    Raises:
        ValueError: if an argument is out of range.

    Source: B. Widrow and M. Hoff, Adaptive switching circuits (1960).
    """

    def __init__(self, rate: float = 0.5, normalised: bool = True, eps: float = 1e-8) -> None:
        super().__init__()
        if not 0 < rate < (2 if normalised else float("inf")):
            raise ValueError(f"LMS: rate must be above 0, and below 2 if normalised, got {rate}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"LMS: eps must be finite and above 0, got {eps}")
        self.rate, self.normalised, self.eps = rate, normalised, eps

    def _learn(self, learner: _Learner, row: Tensor, target: Tensor, weight: float) -> None:
        step = self.rate * weight
        if self.normalised:
            step /= float(row @ row) + self.eps
        learner.weight.addr_(target - learner.weight @ row, row, alpha=step)


class FORCE(RLS):
    """First-order reduced and controlled error: RLS within the running loop.

    The network runs on its own output while it learns, and RLS keeps that output near the target,
    so that it meets, and learns to undo, its own errors. As an ordinary readout it is RLS;
    ``train_loop`` runs the loop of an ``ESN`` whose reservoir has ``feedback_size=output_size``.

    Args:
        alpha: the penalty, > 0. Default 1.
        every: steps from one update to the next, >= 1. Default 1.

    Raises:
        ValueError: if an argument is out of range.

    Source: D. Sussillo and L. Abbott, Generating coherent patterns of activity from chaotic neural
    networks, Neuron 63 (2009).
    """

    def __init__(self, alpha: float = 1.0, every: int = 1) -> None:
        super().__init__(alpha)
        if every < 1:
            raise ValueError(f"FORCE: every must be at least 1, got {every}")
        self.every = every

    @torch.no_grad()
    def train_loop(self, esn: ESN, x: Tensor, y: Tensor, washout: int = 0) -> Tensor:
        """Learn while the network runs on its own output.

        Args:
            esn: the network that this readout belongs to, with feedback of its output.
            x: (T, I), the inputs.
            y: (T, O), the wanted outputs.
            washout: steps before learning starts, >= 0, in which the targets are fed back.

        Returns:
            The outputs while learning, (T, O).

        Raises:
            ValueError: if shapes do not fit or the reservoir has no feedback.
        """
        res: Any = esn.reservoir
        if esn.readout is not self or res.feedback_size != esn.output_size:
            raise ValueError(
                "FORCE: esn must have this readout and a reservoir with feedback_size = output_size"
            )
        piece = esn.reader().piece(x, y, None)
        if piece.x.shape[1] != 1 or not 0 <= washout < piece.x.shape[0]:
            raise ValueError("FORCE: x must be one series (T, I), longer than washout")
        learner = self._start(_Learner(esn.feature_size, esn.output_size))
        outputs = torch.zeros_like(piece.y)
        fed = piece.y.new_zeros(1, 1, esn.output_size).to(piece.x.dtype)
        time, h = 1 if res.batch_first else 0, None
        for t in range(piece.x.shape[0]):
            states, h = res(piece.x[t].unsqueeze(time), h, feedback=fed)
            features = esn._features(states.reshape(1, -1), piece.x[t]).double()[0]
            row = torch.cat([features, features.new_ones(1)])
            output = learner.weight @ row
            outputs[t, 0] = output
            learns = t >= washout
            if learns and (t - washout) % self.every == 0:
                self._learn(learner, row, piece.y[t, 0].double(), 1.0)
            fed = (output if learns else piece.y[t, 0]).to(piece.x.dtype).view(1, 1, -1)
        self._commit(learner.weight[:, :-1].clone(), learner.weight[:, -1].clone())
        return outputs.squeeze(1)
