"""Ridge regression as a readout: which solver, which alpha, from sums of bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ._moments import CholeskyQR3, Gram, merged
from ._rows import Rows
from ._solve import Solution, Spectrum, by_cholesky, by_factor, fold_errors, intercept
from ._sums import Sums
from .readout import LinearReadout

SOLVERS = ("auto", "cholesky", "tsqr", "cholqr3")


class RidgeReport(NamedTuple):
    """How a fit of ``Ridge`` was found."""

    solver: str
    """``cholesky``, ``tsqr`` or ``cholqr3``."""
    alpha: float | list[float]
    """The penalty, or one for each output."""
    condition: float
    """Condition of S + alpha I for ``cholesky``, of [R; sqrt(alpha) I] for the QR solvers."""
    rank: int
    """Directions of the states that the answer uses."""
    rows: int
    """Rows fitted."""
    score: float | None
    """Mean over the outputs of the (generalised) cross-validation error over the variance."""
    form: str = "primal"
    """``dual`` where ``cholesky`` factored X X^T + alpha I, of rows fewer than features."""


class Ridge(LinearReadout):
    """Ridge regression: minimise sum_t w_t |y_t - W s_t - b|^2 + alpha |W|^2.

    The loss is a sum over rows, not a mean: twice the rows need twice the alpha. The intercept b is
    not penalised. Sums are float64 whatever the states are, centred by running means, and of fixed
    size. Rows X are kept only while they are fewer than features: then X X^T + alpha I, the dual
    form, gives the same W for less, and the rows take less memory than S.

    Args:
        alpha: the penalty, at least 0; ``"gcv"`` or ``"kfold"`` to choose it by generalised or by
            blocked cross-validation from the largest eigenvalue of S times 10^-28 to 1 in half
            decades; or a sequence to choose from, whose coefficients ``path`` keeps.
        solver: ``"cholesky"`` factors the scatter S + alpha I and refuses where its condition times
            2^-53 exceeds 1e-2; ``"tsqr"`` keeps a triangular factor of the rows in one pass;
            ``"cholqr3"`` gets it in three passes. ``"auto"`` takes Cholesky where that is safe,
            else TSQR, which it also takes for rows that come only once.
        criterion: ``"gcv"`` or ``"kfold"``: what chooses from a sequence.
        folds: number of folds, at least 2.
        fold_length: consecutive rows of a fold before the next fold's turn; default: one run for
            each fold where the number of rows is known, else 1,000.
        intercept: whether to fit b.
        per_output: whether each output has an alpha of its own.
        process_group: a ``torch.distributed`` group, or ``"world"``, over whose ranks the sums are
            added: each rank then has the fit of all rows.

    Attributes:
        weight: (outputs, features), float64.
        bias: (outputs,), float64.
        report: a ``RidgeReport``: solver, alpha, condition, rank, rows, score.
        path: for a sequence of A alphas, their weights (A, outputs, features)
            and biases (A, outputs).

    Shape:
        Input (..., features), output (..., outputs).

    Raises:
        ValueError: if an argument is out of range.

    Source:
        A. Hoerl and R. Kennard, Ridge regression, Technometrics 12 (1970); blocked folds from one
        pass: M. Lukosevicius and A. Uselis, Efficient implementations of echo state network
        cross-validation, Cognitive Computation 13 (2021).
    """

    def __init__(
        self,
        alpha: float | str | Sequence[float] = 1e-8,
        solver: str = "auto",
        *,
        criterion: str = "gcv",
        folds: int = 5,
        fold_length: int | None = None,
        intercept: bool = True,
        per_output: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.alpha = _check_alpha(alpha)
        if solver not in SOLVERS:
            raise ValueError(f"Ridge: solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        if criterion not in ("gcv", "kfold"):
            raise ValueError(f"Ridge: criterion must be 'gcv' or 'kfold', got {criterion!r}")
        if folds < 2:
            raise ValueError(f"Ridge: folds must be at least 2, got {folds}")
        if fold_length is not None and fold_length < 1:
            raise ValueError(f"Ridge: fold_length must be at least 1, got {fold_length}")
        self.solver, self.folds, self.fold_length = solver, folds, fold_length
        self.criterion = alpha if isinstance(alpha, str) else criterion
        self.intercept, self.per_output = intercept, per_output
        self.process_group = process_group
        self.report: RidgeReport | None = None
        self.path: tuple[Tensor, Tensor] | None = None

    @property
    def alpha_(self) -> float | list[float] | None:
        """The alpha of the last fit, or one for each output."""
        return self.report.alpha if self.report else None

    @property
    def solver_(self) -> str | None:
        """The solver of the last fit."""
        return self.report.solver if self.report else None

    @property
    def condition_(self) -> float | None:
        """The condition that the last fit was solved at."""
        return self.report.condition if self.report else None

    @property
    def _searches(self) -> bool:
        return not isinstance(self.alpha, float)

    def begin(
        self, features: int, outputs: int, rows: int | None = None, repeat: str = "exact"
    ) -> None:
        """Start a fit; see ``Readout.begin``."""
        folds = self.folds if self._searches and self.criterion == "kfold" else 1
        length = self.fold_length or (-(-rows // folds) if rows else 1000)
        few = self.process_group is None and self.solver != "cholqr3"
        few = few and (rows is None or rows < features)
        sums = Sums(features, outputs, folds, length, few)
        if self.solver == "cholqr3" and (repeat == "never" or folds > 1):
            raise ValueError(
                "Ridge: solver 'cholqr3' needs three passes over the same rows and no folds; use "
                "solver='tsqr' here"
            )
        one_pass = self.solver == "tsqr" or (self.solver == "auto" and repeat == "never")
        sums.start("tsqr" if one_pass else "cholesky")
        self._pending = sums

    def update(self, states: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> None:
        """Add a block of rows to the sums."""
        sums = self._pending
        if states.shape[1] != sums.features or targets.shape[1] != sums.outputs:
            raise ValueError(
                f"Ridge: states and targets must have {sums.features} and {sums.outputs} columns, "
                f"as before, got {tuple(states.shape)} and {tuple(targets.shape)}"
            )
        sums.update(states, targets, sample_weight)

    def advance(self) -> bool:
        """End a pass: solve, or choose the solver of the next pass."""
        sums: Sums = self._pending
        sums.check()
        if sums.solver == "cholqr3":
            return self._advance_qr(sums)
        parts = sums.closed(self.intercept, self.process_group)
        if self.solver == "cholqr3" or not self._solve(sums, parts):
            if self.solver == "cholesky":
                raise ValueError(
                    "Ridge: solver 'cholesky' is not safe here: the condition of S + alpha I times "
                    f"2^-53 exceeds 1e-2 at alpha={self.alpha!r}; use a larger alpha, or "
                    "solver='auto'"
                )
            return self._next_solver(sums, parts)
        return False

    def _next_solver(self, sums: Sums, parts: list[Any]) -> bool:
        """Start the second pass of what Cholesky could not solve, or do without one."""
        if sums.kept:
            sums.replay("tsqr")
            return not self._solve(sums, sums.closed(self.intercept, self.process_group))
        if self.solver == "cholqr3":
            try:
                sums.parts = [CholeskyQR3(parts[0], self.intercept)]
            except LinAlgError as error:
                raise _singular() from error
            sums.solver = "cholqr3"
        else:
            sums.start("tsqr")
        return True

    def _advance_qr(self, sums: Sums) -> bool:
        [factor] = sums.parts
        if self.process_group is not None:
            factor.reduce(None if self.process_group == "world" else self.process_group)
        try:
            more = bool(factor.advance())
        except LinAlgError as error:
            raise _singular() from error
        return more or not self._solve(sums, sums.parts)

    def finalize(self) -> None:
        """Solve, and make the answer the fit that ``forward`` uses.

        Raises:
            ValueError: if no rows came, or the chosen solver is not safe.
        """
        sums: Sums = self._require_pending()
        if sums.answer is None and self.advance():
            raise ValueError(
                "Ridge: finalize needs another pass over the rows for this solver; use "
                "solver='tsqr' with partial_fit()"
            )
        assert sums.answer is not None
        weight, bias, report = sums.answer
        self._commit(weight, bias)
        self.report, self.path = report, sums.path
        sums.answer = None

    def _solve(self, sums: Sums, parts: list[Any]) -> bool:
        """Solve from closed sums; return whether that was safe."""
        total: Any = parts[0] if len(parts) == 1 else merged(parts)
        if total.rows < 2 and self.intercept:
            raise ValueError(
                f"Ridge: states must have at least 2 rows, got {total.rows}; with one row the "
                "intercept is the whole fit"
            )
        if self._searches:
            return self._search(sums, parts, total)
        assert isinstance(self.alpha, float)
        solution: Solution | None
        if isinstance(total, Gram | Rows):
            solution = by_cholesky(total, self.alpha)
        else:
            solution = by_factor(total, self.alpha)
        if solution is None:
            return False
        self._answer(sums, total, solution, self.alpha, None)
        return True

    def _search(self, sums: Sums, parts: list[Any], total: Any) -> bool:
        spectrum = Spectrum(total)
        alphas = self._candidates(spectrum.largest)
        usable = [alpha for alpha in alphas if spectrum.resolves(alpha)]
        if not usable or (isinstance(self.alpha, list) and len(usable) < len(alphas)):
            return False
        if self.criterion == "gcv":
            errors = torch.stack([spectrum.gcv(alpha) for alpha in usable])
        else:
            errors = fold_errors(parts, usable)
        scores = errors / spectrum.variance.clamp_min(1e-300)
        if not self.per_output:
            scores = scores.mean(1, keepdim=True)
        best = scores.argmin(0)
        smallest = usable.index(min(usable))
        if len(usable) < len(alphas) and bool((best == smallest).any()):
            return False
        chosen = [usable[int(i)] for i in best]
        weights = [spectrum.coefficients(alpha) for alpha in chosen]
        weight = torch.stack(
            [weights[k if self.per_output else 0][k] for k in range(total.outputs)]
        )
        alpha = min(chosen)
        solution = Solution(weight, spectrum.condition(alpha), spectrum.directions)
        if spectrum.exact:
            solution.rank = spectrum.rank(alpha)
        score = float(scores.min(0).values.mean())
        self._answer(sums, total, solution, chosen if self.per_output else alpha, score)
        if isinstance(self.alpha, list):
            path = torch.stack([spectrum.coefficients(alpha) for alpha in alphas])
            sums.path = (path, intercept(total, path))
        return True

    def _candidates(self, largest: float) -> list[float]:
        if isinstance(self.alpha, list):
            return self.alpha
        scale = largest if largest > 0 else 1.0
        return [scale * 10.0 ** (-0.5 * i) for i in range(57)]

    def _answer(
        self,
        sums: Sums,
        total: Any,
        solution: Solution,
        alpha: float | list[float],
        score: float | None,
    ) -> None:
        bias = intercept(total, solution.weight)
        form = "dual" if isinstance(total, Rows) else "primal"
        report = RidgeReport(
            sums.solver, alpha, solution.condition, solution.rank, total.rows, score, form
        )
        sums.answer = (solution.weight, bias, report)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the configuration and the report, for ``state_dict``."""
        report = None if self.report is None else self.report._asdict()
        return {"config": self.config(), "report": report}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take configuration and report from a ``state_dict``."""
        for name, value in state["config"].items():
            setattr(self, name, value)
        self.report = None if state["report"] is None else RidgeReport(**state["report"])

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments but for the process group."""
        names = "alpha solver criterion folds fold_length intercept per_output".split()
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"alpha={self.alpha!r}, solver={self.solver!r}"


def _check_alpha(alpha: object) -> float | str | list[float]:
    if isinstance(alpha, str):
        if alpha not in ("gcv", "kfold"):
            raise ValueError(f"Ridge: alpha must be a number, 'gcv' or 'kfold', got {alpha!r}")
        return alpha
    values: list[Any] = list(alpha) if isinstance(alpha, Sequence | Tensor) else [alpha]
    if not values:
        raise ValueError("Ridge: alpha must hold at least one number, got an empty sequence")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            raise ValueError(
                f"Ridge: alpha must be a number or a sequence of numbers, got {value!r}"
            )
    numbers = [float(value) for value in values]
    for number in numbers:
        if not 0 <= number < float("inf"):
            raise ValueError(f"Ridge: alpha must be finite and at least 0, got {number}")
    return numbers if isinstance(alpha, Sequence | Tensor) else numbers[0]


def _singular() -> ValueError:
    return ValueError(
        "Ridge: solver 'cholqr3' cannot factor states that are singular to working precision; use "
        "solver='tsqr' or 'auto'"
    )
