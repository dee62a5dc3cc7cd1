"""Echo state networks: a reservoir and the readout that is fitted to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import _closed_loop, _open_loop, _ops
from ._series import Reader, check_finite
from ._session import Session, check_washout, run_pass, too_long
from .readout import Readout
from .reservoir import Reservoir
from .ridge import Ridge

POOLINGS = (None, "last", "mean")


class ESN(nn.Module):
    """Predict from the states of a reservoir with a fitted readout.

    With s_t the reservoir's states (every second one squared with ``square``), followed by the
    input u_t with ``input_to_readout``, y_t = readout(s_t), plus u_t with ``increments``.

    Nothing is carried from one call to the next unless ``continued`` or ``h0`` says so.

    Args:
        input_size: I, features of x.
        output_size: O, features of y, or number of classes.
        hidden_size: N of the reservoir that is made if none is given. Default 500.
        reservoir: what makes states: a ``Reservoir``, ``RingReservoirs`` or ``NVAR``. Default
            ``Reservoir(input_size, hidden_size, **options)``.
        readout: a ``Readout``. Default ``Ridge()``.
        washout: steps at the start of each series that are not fitted, >= 0. Default 0.
        input_to_readout: whether the readout sees the input too. Default ``False``.
        square: whether every second state of each layer is squared. Default ``False``.
        increments: whether the readout is fitted to y_t - u_t; needs O = I or, with drivers, the
            first O inputs. Default ``False``.
        pooling: ``None`` for an output at each step; ``"last"`` or ``"mean"`` for one a series,
            from its last or its mean states after the washout.
        feedback_map: what turns an output (B, O) into the next input (B, I) in ``forecast``, where
            that is not the output itself.
        options: further arguments of ``Reservoir``. ``feedback_size=output_size`` feeds outputs
            back: ``fit`` forces the targets (teacher forcing), ``predict`` its own outputs.

    Shape:
        x: (T, I), (T, B, I), or (B, T, I) if the reservoir has ``batch_first``.
        y: the same with O features; with ``pooling`` (B, O), or (O,) for (T, I).

    Raises:
        ValueError: for an argument out of range; the message names it.

    Source: H. Jaeger, The "echo state" approach to analysing and training recurrent neural
    networks, GMD report 148 (2001).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 500,
        *,
        reservoir: Any = None,
        readout: Readout | None = None,
        washout: int = 0,
        input_to_readout: bool = False,
        square: bool = False,
        increments: bool = False,
        pooling: str | None = None,
        feedback_map: Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if output_size < 1:
            raise ValueError(f"ESN: output_size must be at least 1, got {output_size}")
        if reservoir is None:
            reservoir = Reservoir(input_size, hidden_size, **options)
        elif options:
            raise ValueError(f"ESN: {', '.join(options)} must be given to reservoir, which is made")
        if reservoir.input_size != input_size:
            raise ValueError(
                f"ESN: reservoir must have input_size = {input_size}, got {reservoir.input_size}"
            )
        if reservoir.feedback_size not in (0, output_size):
            raise ValueError(
                f"ESN: reservoir must have feedback_size 0 or output_size = {output_size}, got "
                f"{reservoir.feedback_size}"
            )
        if pooling not in POOLINGS:
            raise ValueError(f"ESN: pooling must be None, 'last' or 'mean', got {pooling!r}")
        if increments and (output_size > input_size or pooling):
            raise ValueError(
                f"ESN: increments needs output_size <= input_size = {input_size} and no pooling, "
                f"got {output_size}"
            )
        self.input_size, self.output_size = input_size, output_size
        self.reservoir = reservoir
        self.readout = Ridge() if readout is None else readout
        self.washout = check_washout(washout)
        self.input_to_readout, self.square = input_to_readout, square
        self.increments, self.pooling, self.feedback_map = increments, pooling, feedback_map
        self._session: Session | None = None

    @property
    def feature_size(self) -> int:
        """Features that the readout sees."""
        return int(self.reservoir.output_size) + self.input_size * self.input_to_readout

    def fit(
        self,
        x: Any,
        y: Any = None,
        washout: int | None = None,
        *,
        sample_weight: Any = None,
        continued: bool = False,
        progress: bool = False,
    ) -> ESN:
        """Fit the readout; the states are used block by block and never kept.

        Args:
            x: a tensor of one of the shapes above; a list of series (T_i, I) of any lengths; or a
                ``DataLoader`` or other iterable of pairs (x, y) or triples (x, y, sample_weight),
                which streams. It is read again if the solver needs it, unless it is an iterator.
            y: targets like x; whole numbers are classes if O > 1. ``None`` for a loader.
            washout: steps at the start of each series that are not fitted; default the module's.
            sample_weight: weights of the steps like y without its last dimension, or of the series.
            continued: whether the batches of a loader are consecutive pieces of the same series,
                so that the state goes on and the washout is at the start of the first only.
            progress: whether to show a bar (tqdm).

        Returns:
            The module itself.

        Raises:
            ValueError: for wrong shapes or values, a washout that leaves nothing of a series,
                constant columns, or a problem that the solver refuses; the message names the
                argument. The last fit stays in force then.
        """
        once = isinstance(x, Iterator)
        steady = isinstance(x, Tensor | list | tuple) and not self._noisy
        repeat = "never" if once else "exact" if steady else "varied"
        rows = self._count(x, washout) if isinstance(x, Tensor | list | tuple) else None
        self._session = None
        self.readout.begin(self.feature_size, self.output_size, rows, repeat)
        try:
            session = Session(self)
            while True:
                run_pass(session, x, y, sample_weight, washout, continued, progress)
                session.check()
                if not self.readout.advance():
                    break
                session = Session(self)
            self.readout.finalize()
        finally:
            self.readout.reset()
        return self

    def partial_fit(
        self,
        x: Any,
        y: Any = None,
        washout: int | None = None,
        *,
        sample_weight: Any = None,
        continued: bool = False,
    ) -> ESN:
        """Add series to a fit that ``finalize`` ends; their order matters by rounding only.

        Args:
            x: as for ``fit``.
            y: as for ``fit``.
            washout: as for ``fit``.
            sample_weight: as for ``fit``.
            continued: whether x goes on where the last call ended, with its state and no washout.

        Returns:
            The module itself.

        Raises:
            ValueError: as for ``fit``.
        """
        if self._session is None:
            if continued:
                raise ValueError("ESN: continued must be False in the first call of partial_fit")
            self.readout.begin(self.feature_size, self.output_size, None, "never")
            self._session = Session(self)
        if not continued:
            self._session.restart()
        run_pass(self._session, x, y, sample_weight, washout, True, False)
        return self

    def finalize(self) -> ESN:
        """Make the sums of ``partial_fit`` the fit in force; more may be added afterwards.

        Raises:
            ValueError: without any rows, for constant columns, or if the solver refuses.
        """
        if self._session is None:
            raise ValueError("ESN: finalize needs data, and none came; call partial_fit() first")
        self._session.check()
        self.readout.finalize()
        return self

    def forward(self, x: Tensor, h0: Tensor | None = None) -> Tensor:
        """Return the outputs for x, with gradients to x and h0.

        Args:
            x: of one of the shapes above.
            h0: the reservoir's state before the first step; default zeros.

        Returns:
            y, of the shapes above.

        Raises:
            ValueError: before the first fit, or for a wrong shape.
        """
        self._require_fit("forward")
        if self.reservoir.feedback_size:
            raise ValueError(
                "ESN: reservoir must have no feedback for forward; predict() feeds outputs back"
            )
        states, _ = self.reservoir(x, h0)
        features = self._features(states, x)
        time = 1 if self.reservoir.batch_first and x.dim() == 3 else 0
        if self.pooling == "mean":
            left = x.shape[time] - self.washout
            if left < 1:
                raise too_long(self.washout, x.shape[time])
            features = features.narrow(time, self.washout, left).mean(time)
        elif self.pooling == "last":
            features = features.select(time, -1)
        output: Tensor = self.readout(features)
        return output + x[..., : self.output_size] if self.increments else output

    @torch.no_grad()
    def predict(
        self,
        x: Any,
        h0: Tensor | None = None,
        *,
        feedback: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Return the outputs for x from the zero state or ``h0``, without noise, block by block.

        Args:
            x: a tensor of one of the shapes above, or a list of series (T_i, I).
            h0: the reservoir's state before the first step, as ``return_state`` gives it.
            feedback: for a reservoir with feedback, the targets y to force instead of its own
                outputs: y_{t-1} enters step t.
            return_state: whether to return the state after the last step too.

        Returns:
            Outputs like x with O features, a list for a list; with ``return_state`` (outputs, h).

        Raises:
            ValueError: before the first fit, or for a wrong shape or value.
        """
        self._require_fit("predict")
        if isinstance(x, list | tuple):
            if h0 is not None or return_state or feedback is not None:
                raise ValueError("ESN: h0, feedback and return_state need x to be one tensor")
            return _open_loop.predict_list(self, list(x))
        dense = self.reader().input(x)
        check_finite("x", dense)
        with self._mode(False):
            if self.reservoir.feedback_size and feedback is None:
                output, h = _closed_loop.own_feedback(self, dense, h0)
            else:
                output, h = _open_loop.run(self, dense, self._state_in(h0, x), x.dim(), feedback)
        if self.pooling:
            output = output[0] if x.dim() == 2 else output
        elif x.dim() == 2:
            output = output.squeeze(1)
        elif self.reservoir.batch_first:
            output = output.transpose(0, 1)
        return (output, h.squeeze(-2) if x.dim() == 2 else h) if return_state else output

    @torch.no_grad()
    def forecast(
        self,
        warmup: Tensor,
        horizon: int,
        drivers: Tensor | None = None,
        *,
        h0: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> Tensor:
        """Run on alone: each output is the next input.

        After x[0..T-1], ``traj[i]`` predicts x[T + i] if the network was fitted to predict the next
        input. The closed loop is one kernel call for a ``Reservoir`` with a linear readout.

        Args:
            warmup: x, of one of the shapes above, T >= 1.
            horizon: steps, >= 0.
            drivers: known inputs beside the fed-back ones, (horizon, I - O) like x: the inputs are
                then [output, driver]. All I inputs for a reservoir with feedback.
            h0: the state before the warm-up; default zeros.
            outputs: for a reservoir with feedback, the known outputs of the warm-up, like y.

        Returns:
            (horizon, O), (horizon, B, O) or (B, horizon, O), as x.

        Raises:
            ValueError: before the first fit; if I is not O plus the drivers' and there is neither
                feedback nor ``feedback_map``; or for a wrong shape or value.
        """
        self._require_fit("forecast")
        return _closed_loop.forecast(self, warmup, horizon, drivers, h0, outputs)

    def reader(self) -> Reader:
        """Return what checks this network's data."""
        res = self.reservoir
        pooled = self.pooling is not None
        return Reader(self.input_size, self.output_size, res.batch_first, pooled, res.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the configuration that ``state_dict`` holds beside weights and readout."""
        names = "input_size output_size washout input_to_readout square increments pooling".split()
        return {name: getattr(self, name) for name in names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the configuration; refuse other sizes."""
        for name in ("input_size", "output_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"load_state_dict: ESN has {name} = {getattr(self, name)}, the state that is "
                    f"loaded has {state[name]}"
                )
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def _noisy(self) -> bool:
        return getattr(self.reservoir, "noise", 0.0) > 0

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:
        before = self.reservoir.training
        self.reservoir.train(training)
        try:
            yield
        finally:
            self.reservoir.train(before)

    def _require_fit(self, name: str) -> None:
        if not self.readout.fitted:
            raise ValueError(f"ESN: {name} needs a fit, and there is none; call fit() first")

    def _count(self, x: Any, washout: int | None) -> int:
        washed = 0 if self.pooling else self.washout if washout is None else washout
        if isinstance(x, Tensor):
            first = self.reservoir.batch_first and x.dim() == 3
            T, B = (x.shape[1], x.shape[0]) if first else (x.shape[0], x.shape[1])
            series = [T] * (B if x.dim() == 3 else 1)
        else:
            series = [len(part) for part in x]
        return len(series) if self.pooling else sum(max(T - washed, 0) for T in series)

    def _state_in(self, h0: Tensor | None, x: Tensor) -> Tensor | None:
        return h0.unsqueeze(-2) if h0 is not None and x.dim() == 2 else h0

    def _features(self, states: Tensor, x: Tensor) -> Tensor:
        """Return what the readout sees of states and inputs of any leading dimensions."""
        if self.square:
            odd = torch.arange(states.shape[-1]) % self.reservoir.hidden_size % 2 == 1
            states = torch.where(odd, states * states, states)
        return torch.cat([states, x], -1) if self.input_to_readout else states

    def blocks(
        self, x: Tensor, h: Tensor | None, lengths: Tensor | None, feedback: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield steps, features (t, B, F) and state of a run over x (T, B, I)."""
        res = self.reservoir
        swap = res.batch_first

        def lay(values: Tensor) -> Tensor:
            return values.transpose(0, 1) if swap else values

        if lengths is not None:
            fed = None if feedback is None else lay(feedback)
            states, h = res(lay(x), h, lengths, fed)
            yield slice(0, x.shape[0]), self._features(lay(states), x), h
            return
        fed = None if feedback is None else lay(feedback)
        for steps, states, state in _ops.run_blocks(res, lay(x), h, fed):
            yield steps, self._features(lay(states), x[steps]), state
