"""Reservoirs: recurrent layers whose weights are drawn once and stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from . import _arguments, _inputs, matrices, plasticity, spectrum
from ._inputs import Batch, Sequences
from ._layer import ReservoirLayer
from ._run import run_layers
from .matrices import Entries

ACTIVATIONS = ("tanh", "relu", "identity", "sigmoid")


@dataclass(frozen=True)
class _Recipe:
    """What the weights of one layer are drawn from."""

    hidden_size: int
    spectral_radius: float | None
    density: float
    topology: Any
    activation: str
    bias: float | Tensor
    es2n: bool
    dtype: torch.dtype

    def draw(
        self,
        generator: Generator,
        input_size: int,
        input_scaling: Tensor,
        input_density: float,
        feedback_size: int,
        feedback_scaling: float,
        leak: Tensor,
    ) -> ReservoirLayer:
        """Draw, in this order: W, W_ih, which of it is kept, W_fb, the bias, O."""
        N = self.hidden_size
        recurrent = spectrum.with_spectral_radius(
            matrices.make(self.topology, N, self.density, generator), self.spectral_radius
        )
        w_ih = matrices.uniform(N, input_size, generator=generator) * input_scaling
        kept = torch.rand(N, input_size, dtype=torch.float64, generator=generator) < input_density
        w_fb = matrices.uniform(N, feedback_size, generator=generator) * feedback_scaling
        drawn = matrices.uniform(N, generator=generator)
        bias = self.bias.double() if isinstance(self.bias, Tensor) else drawn * float(self.bias)
        carry: list[Entries] | None = None
        if self.es2n:
            carry = [matrices.orthogonal(N, 1.0, generator)]
        return ReservoirLayer(
            (w_ih * kept)[None],
            w_fb[None],
            bias[None],
            leak.double()[None],
            [recurrent],
            carry,
            self.activation,
            self.dtype,
        )


class Reservoir(nn.Module):
    """Run a recurrent network with fixed random weights: the hidden part of an echo state network.

    For each layer, with a the leak, f the activation and v what is fed back:

        x_t = (1 - a) x_{t-1} + a f(W x_{t-1} + W_ih u_t + W_fb v_t + bias + noise),

    or with ``es2n``, O a random orthogonal matrix:

        x_t = (1 - a) O x_{t-1} + a f(W x_{t-1} + W_ih u_t + W_fb v_t + bias + noise).

    Weights are buffers: they are in ``state_dict``, and no optimizer moves them. Gradients flow to
    ``x``, ``h0`` and ``feedback``. A state is never kept between calls.

    Args:
        input_size: I, number of inputs, >= 0.
        hidden_size: N, number of units of each layer and direction, >= 1.
        num_layers: layers; each further one reads the states of the one below. Default 1.
        spectral_radius: largest modulus of an eigenvalue of W, >= 0; ``None`` leaves the drawn or
            given matrix as it is. Default 0.9.
        leak: a, in (0, 1]: a number, a tensor (N,), or (num_layers, N). Default 0.3.
        density: share of units that a unit is connected from, in (0, 1]. Default 0.01.
        topology: "sparse" (16 neighbours draw their connections together, which is fastest),
            "independent" (each unit by itself), "dense", "orthogonal", "cycle",
            "cycle_with_jumps", "delay_line", "small_world", or a matrix (N, N): a tensor, dense or
            sparse, an array, a SciPy sparse matrix, or what ``reservoir.matrices`` makes.
        activation: "tanh", "relu", "identity" or "sigmoid".
        bias: half-width of the uniform distribution that biases are drawn from, or a tensor (N,).
            Default 0.1.
        input_scaling: half-width of that of the input weights: a number or a tensor (I,) with one
            for each input. Default 1.
        input_density: share of input weights that are not zero, in (0, 1]. Default 1.
        layer_scaling: of the weights between layers, which are uniform in +- layer_scaling
            / sqrt(number of states read). Default 1.
        feedback_size: F, number of fed-back values, which the first layer reads. Default 0.
        feedback_scaling: half-width of the feedback weights' distribution. Default 1.
        noise: standard deviation of the normal noise within f, in training mode only (as dropout;
            from torch's global generator). Default 0.
        es2n: whether the state is rotated at each step. Default ``False``.
        bidirectional: whether a second reservoir runs from the end of each sequence to its start.
        batch_first: whether batched inputs and outputs are (B, T, features).
        seed: of all weights; the same seed gives the same weights on every machine.
        dtype: float32 or float64; default torch's.
        device: "cpu", or "meta" for shapes only.

    Shape:
        x: (T, B, I), (B, T, I) with ``batch_first``, (T, I), or a ``PackedSequence``.
        y: the same with ``output_size = num_layers * D * N`` features, the states of all layers
            and, within a layer, of its D directions side by side.
        h0, h: (num_layers * D, B, N), or (num_layers * D, N) for unbatched x.

    Raises:
        ValueError: for an argument out of range; the message names it.

    Source: Jaeger, The "echo state" approach, GMD report 148, 2001; leaky units: Jaeger et al.,
    2007; ES2N: Ceni and Gallicchio, Edge of stability echo state network, 2023.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        spectral_radius: float | None = 0.9,
        leak: float | Tensor = 0.3,
        density: float = 0.01,
        topology: Any = "sparse",
        activation: str = "tanh",
        bias: float | Tensor = 0.1,
        input_scaling: float | Tensor = 1.0,
        input_density: float = 1.0,
        layer_scaling: float = 1.0,
        feedback_size: int = 0,
        feedback_scaling: float = 1.0,
        noise: float = 0.0,
        es2n: bool = False,
        bidirectional: bool = False,
        batch_first: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.input_size = _arguments.count("input_size", input_size, 0)
        self.hidden_size = _arguments.count("hidden_size", hidden_size, 1)
        self.num_layers = _arguments.count("num_layers", num_layers, 1)
        self.feedback_size = _arguments.count("feedback_size", feedback_size, 0)
        self.bidirectional, self.batch_first = bidirectional, batch_first
        self.noise = _arguments.in_range("noise", noise, 0, math.inf)
        self.es2n = es2n
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Reservoir: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        self.activation = activation
        if spectral_radius is not None:
            _arguments.in_range("spectral_radius", spectral_radius, 0, math.inf)
        _arguments.in_range("density", density, 0, 1, open_below=True)
        _arguments.in_range("input_density", input_density, 0, 1, open_below=True)
        recipe = _Recipe(
            hidden_size,
            spectral_radius,
            density,
            topology,
            activation,
            _arguments.bias(bias, hidden_size),
            es2n,
            _arguments.dtype(dtype),
        )
        leaks = _arguments.leaks(leak, num_layers, hidden_size)
        scaling = _arguments.scaling(input_scaling, input_size)
        between = hidden_size * self.directions
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for layer in range(num_layers):
            for _ in range(self.directions):
                reads = between if layer else input_size
                upper = torch.tensor(
                    _arguments.number("layer_scaling", layer_scaling) / between**0.5
                )
                self.layers.append(
                    recipe.draw(
                        generator,
                        reads,
                        upper if layer else scaling,
                        1.0 if layer else input_density,
                        0 if layer else feedback_size,
                        _arguments.number("feedback_scaling", feedback_scaling),
                        leaks[layer],
                    )
                )
        if device is not None:
            self.to(device)

    @property
    def directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of y: the states of all layers and directions."""
        return self.num_layers * self.directions * self.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self._layer(0).bias.dtype

    @property
    def weight_hh(self) -> Tensor:
        """W of the first layer as a dense matrix (N, N): a copy."""
        return self._layer(0).recurrent.entries().dense().to(self.dtype)

    @property
    def weight_ih(self) -> Tensor:
        """W_ih of the first layer (N, I), to be read or written in place."""
        return self._layer(0).weight_ih[0]

    @property
    def weight_fb(self) -> Tensor:
        """W_fb of the first layer (N, F), to be read or written in place."""
        return self._layer(0).weight_fb[0]

    @property
    def bias(self) -> Tensor:
        """The bias of the first layer (N,), to be read or written in place."""
        return self._layer(0).bias[0]

    @property
    def leak(self) -> Tensor:
        """The leak of the first layer (N,), to be read or written in place."""
        return self._layer(0).leak[0]

    def forward(
        self,
        x: Sequences,
        h0: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        feedback: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run over a batch of sequences.

        Args:
            x: the input, of one of the shapes above.
            h0: the state before the first step; default zeros.
            lengths: (B,), steps of each sequence, in [0, T]; later outputs are zero, and h is the
                state after the last step of each. Default: all have T.
            feedback: as x with F features: v_t enters step t, so for teacher forcing it is the
                target of step t - 1. Needed if and only if ``feedback_size > 0``.

        Returns:
            y and h, as above.

        Raises:
            ValueError: for a wrong shape, dtype or device; the message names the argument.
        """
        batch = _inputs.read("Reservoir", x, lengths, self.input_size, self.batch_first, self.dtype)
        fed_back = self._feedback(feedback, batch)
        state = self._state(h0, batch)
        y, h = run_layers(
            self.layers,
            self.directions,
            batch.x[None],
            state[None] if state is not None else None,
            None if fed_back is None else fed_back[None],
            batch.lengths,
            self.noise if self.training else 0.0,
            batch.batch_first,
        )
        return batch.output(y[0]), batch.state(h[0])

    def fit_intrinsic_plasticity(
        self,
        x: Tensor,
        mean: float = 0.0,
        std: float = 0.2,
        learning_rate: float = 1e-3,
        epochs: int = 1,
    ) -> Reservoir:
        """Adapt gains and biases so that activations become normally distributed.

        Online over the steps of x, in order, for each layer and direction:
        ``db = -eta (-mu / s^2 + y / s^2 (2 s^2 + 1 - y^2 + mu y))``, ``da = eta / a + db net`` with
        ``y = tanh(a net + b)``, averaged over the batch. The gains are then multiplied into W,
        W_ih, W_fb and the bias.

        Args:
            x: (T, B, I), (B, T, I) with ``batch_first``, or (T, I).
            mean: mu, in (-1, 1). Default 0.
            std: s, > 0. Default 0.2.
            learning_rate: eta, > 0. Default 1e-3.
            epochs: passes over x, >= 1. Default 1.

        Returns:
            this reservoir.

        Raises:
            ValueError: for other activations than tanh, for feedback, or for an argument out of
                range; nothing is changed then.

        Source: Schrauwen et al., Improving reservoirs using intrinsic plasticity, 2008, eq. for
        tanh units.
        """
        plasticity.fit_intrinsic_plasticity(self, x, mean, std, learning_rate, epochs)
        return self

    def echo_state_index(
        self, x: Tensor, washout: int = 100, trials: int = 10, seed: int = 0
    ) -> float:
        """Return how far trajectories from different states stay apart: 0 for echo states.

        The reservoir runs on x from the zero state and from ``trials`` states drawn uniformly from
        [-1, 1]; the result is the mean distance (Euclidean, over all layers) from the first
        trajectory, over the trials and the steps after the washout.

        Args:
            x: (T, I), or (T, B, I), (B, T, I) with ``batch_first``: the mean over the batch.
            washout: steps that are left out at the start, and at the end too if bidirectional, in
                [0, T). Default 100.
            trials: number of random states, >= 1. Default 10.
            seed: of the states.

        Raises:
            ValueError: for an argument out of range, or with feedback.

        Source: Gallicchio, Chasing the echo state property, 2019.
        """
        return plasticity.echo_state_index(self, x, washout, trials, seed)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the configuration that ``state_dict`` holds beside the weights."""
        return {name: getattr(self, name) for name in (*_SIZES, "activation", "noise")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over activation and noise; refuse other sizes."""
        for name in _SIZES:
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"load_state_dict: Reservoir has {name} = {getattr(self, name)}, the state "
                    f"that is loaded has {state[name]}"
                )
        self.noise, self.activation = state["noise"], state["activation"]
        for index in range(len(self.layers)):
            self._layer(index).activation = self.activation

    def extra_repr(self) -> str:
        """Describe the module for ``print``."""
        layer = self._layer(0)
        text = f"{self.input_size}, {self.hidden_size}, layout={layer.recurrent.layout}"
        for name in ("num_layers", "feedback_size", "noise", "es2n", "bidirectional"):
            if getattr(self, name) not in (0, 1) or getattr(self, name) is True:
                text += f", {name}={getattr(self, name)}"
        return f"{text}, activation={self.activation}"

    def _layer(self, index: int) -> ReservoirLayer:
        layer = self.layers[index]
        assert isinstance(layer, ReservoirLayer)
        return layer

    def _feedback(self, feedback: Tensor | None, batch: Batch) -> Tensor | None:
        if self.feedback_size == 0 or feedback is None:
            if (self.feedback_size == 0) != (feedback is None):
                needed = "given" if feedback is None else "None"
                raise ValueError(
                    f"Reservoir: feedback must be {needed}, since feedback_size is "
                    f"{self.feedback_size}"
                )
            return None
        read = _inputs.read(
            "Reservoir.feedback", feedback, None, self.feedback_size, self.batch_first, self.dtype
        )
        if read.x.shape[:2] != batch.x.shape[:2]:
            raise ValueError(
                f"Reservoir: feedback must have as many steps and sequences as x, "
                f"{tuple(batch.x.shape[:2])}, got {tuple(read.x.shape[:2])}"
            )
        return read.x

    def _state(self, h0: Tensor | None, batch: Batch) -> Tensor | None:
        if h0 is None:
            return None
        _inputs.check_tensor("Reservoir", "h0", h0, self.dtype)
        slots, N = self.num_layers * self.directions, self.hidden_size
        if batch.batched:
            shape = (slots, batch.x.shape[1], N)
            _inputs.check_shape("Reservoir", "h0", "(L*D, B, N)", shape, h0)
            return h0
        _inputs.check_shape("Reservoir", "h0", "(L*D, N)", (slots, N), h0)
        return h0.unsqueeze(1)


_SIZES = ("input_size", "hidden_size", "num_layers", "feedback_size", "bidirectional", "es2n")
