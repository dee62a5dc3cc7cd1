"""The reservoir's gate to the compiled module: checks, allocation, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _plans

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
LAYOUTS = ("none", "strips", "rows", "panels", "windows")
MAX_THREADS = 64
THREADED_WORK = 1 << 20
"""Multiply-adds from which a call is worth more than one thread."""


@dataclass(frozen=True)
class Matrix:
    """A matrix as the engine stores it: csrc/include/fastrnn/reservoir.h says how."""

    layout: str
    weights: Tensor
    columns: Tensor
    rows: Tensor
    strips: int

    def addresses(self) -> list[int]:
        """Return what the compiled module takes."""
        return [
            LAYOUTS.index(self.layout),
            self.weights.data_ptr(),
            self.columns.data_ptr(),
            self.rows.data_ptr(),
            self.strips,
            int(self.columns.dtype == torch.int32),
        ]


NO_MATRIX = [0] * 6


@dataclass(frozen=True)
class Weights:
    """The weights of M members, and what the step does with them."""

    w_ih: Tensor  # (M, N, I)
    w_fb: Tensor  # (M, N, F)
    bias: Tensor  # (M, N)
    leak: Tensor  # (M, N)
    recurrent: Matrix
    carry: Matrix | None
    activation: str

    @property
    def members(self) -> int:
        """M."""
        return self.w_ih.shape[0]

    @property
    def hidden_size(self) -> int:
        """N."""
        return self.w_ih.shape[1]

    def addresses(self) -> list[int]:
        """Return what the compiled module takes; the tensors must outlive the call."""
        owned = (self.w_ih, self.w_fb, self.bias, self.leak)
        carry = NO_MATRIX if self.carry is None else self.carry.addresses()
        return [*(t.data_ptr() for t in owned), *self.recurrent.addresses(), *carry]

    @property
    def stored(self) -> int:
        """Weights of all members."""
        return self.w_ih.numel() + self.w_fb.numel() + self.recurrent.weights.numel()

    def problem(self, T: int, B: int, reverse: bool = False, worth: int | None = None) -> Any:
        """Return the compiled module's problem, its threads those that so much work is worth."""
        return _plans.core.ReservoirProblem(
            DTYPES[self.w_ih.dtype],
            self.activation,
            self.members,
            T,
            B,
            self.w_ih.shape[2],
            self.w_fb.shape[2],
            self.hidden_size,
            reverse,
            threads(T * B * self.stored if worth is None else worth),
        )


def threads(work: int) -> int:
    """Return how many threads may work on a call of so many multiply-adds."""
    return min(torch.get_num_threads(), MAX_THREADS) if work >= THREADED_WORK else 1


def _features_adjacent(x: Tensor) -> Tensor:
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None) -> list[int]:
    return [0, 0, 0] if x is None else list(x.stride()[:3])


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _outputs(weights: Weights, x: Tensor, batch_first: bool) -> Tensor:
    M, T, B, _ = x.shape
    if batch_first:
        return _plans.large_pages(x.new_empty(M, B, T, weights.hidden_size)).transpose(1, 2)
    return _plans.large_pages(x.new_empty(M, T, B, weights.hidden_size))


@dataclass(frozen=True)
class Run:
    """Everything of a call that is no input of autograd."""

    weights: Weights
    lengths: Tensor | None  # (B,), int64
    noise: Tensor | None  # (M, T, B, N)
    reverse: bool
    batch_first: bool  # of y in memory

    def forward(
        self, x: Tensor, feedback: Tensor | None, h0: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return y (M, T, B, N), h_n (M, B, N) and, in training, the activations."""
        M, T, B, _ = x.shape
        weights = self.weights
        x = _features_adjacent(x)
        feedback = None if feedback is None else _features_adjacent(feedback)
        h0 = None if h0 is None else h0.contiguous()
        y = _outputs(weights, x, self.batch_first)
        h_n = x.new_empty(M, B, weights.hidden_size)
        activated = (
            _plans.large_pages(x.new_empty(M, T, B, weights.hidden_size)) if training else None
        )
        problem = weights.problem(T, B, self.reverse)
        taken = _plans.scratch_memory.take(problem.workspace_bytes)
        _plans.core.reservoir_forward(
            problem,
            weights.addresses(),
            _address(x),
            _strides(x),
            _address(feedback),
            _strides(feedback),
            _address(self.noise),
            _address(self.lengths),
            _address(h0),
            _address(y),
            _strides(y),
            _address(h_n),
            _address(activated),
            taken[0],
        )
        _plans.scratch_memory.give_back(taken)
        return y, h_n, activated

    def backward(
        self,
        activated: Tensor,
        dy: Tensor,
        dh_n: Tensor,
        sizes: tuple[int, int],
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return dx, dfeedback (if ``wanted``) and dh0; ``sizes`` are I and F."""
        M, T, B, _ = activated.shape
        weights = self.weights
        dy, dh_n = _features_adjacent(dy), dh_n.contiguous()
        dx, dfeedback = (
            activated.new_empty(M, T, B, size) if want else None
            for size, want in zip(sizes, wanted, strict=True)
        )
        dh0 = activated.new_empty(M, B, weights.hidden_size)
        problem = weights.problem(T, B, self.reverse)
        taken = _plans.scratch_memory.take(problem.workspace_bytes)
        _plans.core.reservoir_backward(
            problem,
            weights.addresses(),
            _address(self.lengths),
            _address(activated),
            _address(dy),
            _strides(dy),
            _address(dh_n),
            _address(dx),
            _strides(dx),
            _address(dfeedback),
            _strides(dfeedback),
            _address(dh0),
            taken[0],
        )
        _plans.scratch_memory.give_back(taken)
        return dx, dfeedback, dh0


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, feedback: Tensor | None, h0: Tensor | None, run: Run
    ) -> tuple[Tensor, Tensor]:
        y, h_n, activated = run.forward(x, feedback, h0, True)
        ctx.run = run
        ctx.sizes = (x.shape[-1], 0 if feedback is None else feedback.shape[-1])
        # The weights only so that autograd notices when they are changed before backward.
        w = run.weights
        carry = () if w.carry is None else (w.carry.weights,)
        ctx.save_for_backward(activated, w.w_ih, w.w_fb, w.leak, w.recurrent.weights, *carry)
        return y, h_n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_n: Tensor) -> tuple[Any, ...]:
        activated, *_ = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        dx, dfeedback, dh0 = ctx.run.backward(activated, dy, dh_n, ctx.sizes, wanted)
        return dx, dfeedback, dh0 if ctx.needs_input_grad[2] else None, None


def run(
    x: Tensor, feedback: Tensor | None, h0: Tensor | None, settings: Run
) -> tuple[Tensor, Tensor]:
    """Return y (M, T, B, N) and h_n (M, B, N); differentiable in x, feedback and h0."""
    given = [t for t in (x, feedback, h0) if t is not None]
    if x.device.type == "meta":
        M, _, B, _ = x.shape
        h_n = x.new_empty(M, B, settings.weights.hidden_size)
        return _outputs(settings.weights, x, settings.batch_first), h_n
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        result: tuple[Tensor, Tensor] = _Recurrence.apply(x, feedback, h0, settings)  # type: ignore[no-untyped-call]
        return result
    y, h_n, _ = settings.forward(x, feedback, h0, False)
    return y, h_n


def forecast(
    layers: Sequence[Weights],
    w_out: Tensor,
    b_out: Tensor | None,
    drivers: Tensor | None,
    u: Tensor,
    state: Tensor,
    out: Tensor,
    square: bool,
    reads: Tensor | None = None,
) -> None:
    """Run the closed loop; ``u``, ``state`` (M, L, B, N) and ``out`` (M, T, B, O) are overwritten.

    With ``reads`` (M, I) the members are one ring: ``u`` is (B, O), ``out`` (1, T, B, O), and W_out
    reads the states of all members. All tensors are contiguous but ``drivers`` and ``out``, whose
    features are adjacent; ``w_out``, ``b_out`` and ``out`` are float64.
    """
    _, T, B, O = out.shape
    first = layers[0]
    units = len(layers) * first.hidden_size * (1 if reads is None else first.members)
    # The threads of a ring meet at each step.
    work = T if reads is None else 1
    problem = first.problem(T, B, worth=work * B * (first.stored + O * units))
    sized = _plans.core.ReservoirForecast(
        problem, len(layers), O, square, w_out.shape[-1] > units, reads is not None
    )
    taken = _plans.scratch_memory.take(sized.workspace_bytes)
    _plans.core.reservoir_forecast(
        sized,
        [w.addresses() for w in layers],
        _address(w_out),
        _address(b_out),
        _address(reads),
        _address(drivers),
        _strides(drivers),
        _address(u),
        _address(state),
        _address(out),
        _strides(out),
        taken[0],
    )
    _plans.scratch_memory.give_back(taken)


def polynomial_forecast(
    monomials: Tensor,
    delays: int,
    skip: int,
    w_out: Tensor,
    b_out: Tensor | None,
    drivers: Tensor | None,
    window: Tensor,
    out: Tensor,
    square: bool,
) -> None:
    """Run the closed loop of an NVAR; ``window`` (w, B, I) and ``out`` (T, B, O) are overwritten.

    Tensors are as for ``forecast``; ``monomials`` (order, features) are places among the delayed
    inputs, one more for a factor of 1.
    """
    T, B, O = out.shape
    order, features = monomials.shape
    sized = _plans.core.Polynomial(
        DTYPES[window.dtype],
        T,
        B,
        window.shape[2],
        O,
        delays,
        skip,
        order,
        features,
        square,
        w_out.shape[-1] > features,
        threads(T * B * features * (order + O)),
    )
    taken = _plans.scratch_memory.take(sized.workspace_bytes)
    _plans.core.polynomial_forecast(
        sized,
        _address(monomials),
        _address(w_out),
        _address(b_out),
        _address(drivers),
        [0, 0, 0] if drivers is None else [0, *drivers.stride()[:2]],
        _address(window),
        _address(out),
        [0, *out.stride()[:2]],
        taken[0],
    )
    _plans.scratch_memory.give_back(taken)


def accumulate(
    states: Tensor,
    targets: Tensor,
    gram: Tensor,
    cross: Tensor,
    sums: Tensor,
    shift: Tensor | None,
    target_shift: Tensor | None,
    sample_weight: Tensor | None,
) -> None:
    """Add the sums over a block of rows; ``gram_update`` says which."""
    n, N = states.shape
    sized = _plans.core.Gram(
        DTYPES[states.dtype],
        DTYPES[targets.dtype],
        n,
        N,
        targets.shape[1],
        threads(n * N * (N // 2 + targets.shape[1])),
    )
    taken = _plans.scratch_memory.take(sized.workspace_bytes)
    _plans.core.gram_accumulate(
        sized,
        _address(states),
        states.stride(0),
        _address(targets),
        targets.stride(0),
        _address(shift),
        _address(target_shift),
        _address(sample_weight),
        _address(gram),
        _address(cross),
        _address(sums),
        taken[0],
    )
    _plans.scratch_memory.give_back(taken)
