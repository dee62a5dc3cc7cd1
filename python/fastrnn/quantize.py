"""8-bit weights for inference."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _plans
from ._base import Hidden, run
from ._problem import Stack, Weights, make_stack
from ._variable_length import Lengths
from .cells import CELLS
from .streaming import Stream

if TYPE_CHECKING:
    from typing_extensions import Self


def quantize_dynamic(module: torch.nn.Module) -> Any:
    """Copy a model with its recurrent layers replaced by ones with 8-bit weights.

    Every :class:`fastrnn.RNN`, ``LSTM`` and ``GRU`` in it, and every one of ``torch.nn``, becomes a
    :class:`fastrnn.Quantized`; all else is copied as it is, single-step cells included.

    Args:
        module: a model, or such a layer itself, with float32 weights on the CPU. It is not changed.

    Returns:
        The copy, in ``eval()`` mode.

    Raises:
        ValueError: if there is no such layer.
        TypeError: if the weights of one are not float32 on the CPU.
    """
    if isinstance(module, torch.nn.RNNBase):
        return Quantized(module)
    replaced: dict[int, Any] = {
        id(m): Quantized(m) for m in module.modules() if isinstance(m, torch.nn.RNNBase)
    }
    if not replaced:
        raise ValueError(
            "quantize_dynamic: module must have an RNN, LSTM or GRU in it, got "
            f"{type(module).__name__} without one"
        )
    return copy.deepcopy(module, replaced).eval()


class Quantized(torch.nn.Module):
    r"""A stack of RNN, LSTM or GRU layers with 8-bit weights, for inference.

    Made by :func:`fastrnn.quantize_dynamic`. Each row :math:`j` of a weight matrix is kept as

    .. math::
        W_{jk} \approx s_j Q_{jk}, \quad s_j = \max_k |W_{jk}| / 127, \quad Q_{jk} \in [-127, 127]

    and each row of an operand, :math:`x_t` or :math:`h_{t-1}` of one sequence, is rounded in the
    same way just before its product. Products of 8-bit numbers are summed exactly; states, biases
    and the cell's maths are float32. Called like the layer it was made from, it gives the same kind
    of output, without gradients and without dropout.

    The weights are a snapshot: buffers named as the layer's parameters, int8, with ``scale_ih_l0``
    and so on; :meth:`refresh` takes new ones. ``state_dict`` has them, the packed copy that the
    kernels read is made at the first call.

    Args:
        module: the layer to copy, of fastrnn or of ``torch.nn``, with float32 weights on the CPU.

    Raises:
        TypeError: if it is no such layer or its weights are not float32 on the CPU.

    Source:
        The scheme is that of ``torch.ao.quantization.quantize_dynamic`` with a scale for each row
        in place of one for each tensor.
    """

    def __init__(self, module: torch.nn.RNNBase) -> None:
        super().__init__()
        if not isinstance(module, torch.nn.RNNBase):
            raise TypeError(
                "Quantized: module must be an RNN, LSTM or GRU of fastrnn or torch.nn, got "
                f"{type(module).__name__}"
            )
        self.mode, self.bias = module.mode, bool(module.bias)
        self._owner = f"Quantized {self.mode.split('_')[0]}"
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.proj_size, self.num_layers = module.proj_size, module.num_layers
        self.bidirectional, self.batch_first = module.bidirectional, module.batch_first
        self._cache: _plans.PackedCache = {}
        for layer in self._stack().time_major:
            for slot in layer.names:
                if slot is not None:
                    self.register_buffer(slot, None)
        self.refresh(module)
        self.eval()

    def refresh(self, module: torch.nn.RNNBase) -> None:
        """Take the present weights of a layer of the same sizes and options.

        Raises:
            TypeError: if they are not float32 on the CPU.
            ValueError: if the layer has others.
        """
        fresh: dict[str, Tensor] = {}
        for name, weight in module.named_parameters():
            if weight.dtype is not torch.float32 or not weight.is_cpu:
                raise TypeError(
                    f"{self._owner}: {name} must be torch.float32 on the CPU, got {weight.dtype} "
                    f"on {weight.device}; convert the module with .float().cpu()"
                )
            if name.startswith("weight"):
                fresh[name], fresh[f"scale_{name[7:]}"] = _rounded(weight.detach())
            else:
                fresh[name] = weight.detach().clone()
        unknown = sorted(fresh.keys() - self._buffers.keys())
        if unknown:
            raise ValueError(
                f"{self._owner}: module must have the same weights, got {unknown[0]} too"
            )
        for layer in self._stack().time_major:
            for slot, shape in zip(layer.names, layer.shapes, strict=True):
                if slot is None:
                    continue
                got = tuple(fresh[slot].shape) if slot in fresh else None
                if got != shape:
                    raise ValueError(f"{self._owner}: {slot} must have shape {shape}, got {got}")
        self._buffers.update(fresh)
        self._cache = {}

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None = None,
        lengths: Lengths | None = None,
        reset_mask: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the layers over a batch of sequences, as :meth:`fastrnn.LSTM.forward` does.

        Raises:
            RuntimeError: if input or states require gradients and gradients are enabled; and what
                the layer raises.
        """
        return run(
            self._stack(),
            input,
            hx,
            self._weights(),
            self.batch_first,
            0.0,
            self._cache,
            lengths,
            reset_mask,
        )

    def stream(self, batch_size: int = 1) -> Stream:
        """Return an object that does one time step a call; see :class:`fastrnn.Stream`.

        Args:
            batch_size: sequences that are stepped together. Default: 1.
        """
        return Stream(self, batch_size)

    def extra_repr(self) -> str:
        """Return what kind of layer this is."""
        text = f"{self.mode}, {self.input_size}, {self.hidden_size}"
        for name, default in (("num_layers", 1), ("proj_size", 0), ("bias", True)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        for name in ("batch_first", "bidirectional"):
            if getattr(self, name):
                text += f", {name}=True"
        return text

    def _stack(self) -> Stack:
        spec = next(spec for spec in CELLS.values() if self.mode in spec.modes)
        return make_stack(
            self._owner,
            spec,
            spec.activations[spec.modes.index(self.mode)],
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.bias,
            quantized=True,
        )

    def _weights(self) -> list[Weights]:
        buffers = self._buffers
        return [
            [None if name is None else buffers[name] for name in layer.names]
            for layer in self._stack().time_major
        ]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._cache = {}
        kept = {n: b for n, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Numbers keep their dtypes: .half() and its like mean floating-point parameters.
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype is not before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kw: Any) -> None:
        self._cache = {}
        super()._load_from_state_dict(*args, **kw)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 8-bit numbers of a matrix and the scale of each row."""
    scale = weight.abs().amax(1) / 127 if weight.shape[1] else weight.new_zeros(weight.shape[0])
    tiny = scale < torch.finfo(scale.dtype).tiny
    scale = scale.masked_fill(tiny, 0.0)
    inverse = (1 / scale).masked_fill(tiny, 0.0)
    return (weight * inverse[:, None]).round().clamp(-127, 127).to(torch.int8), scale
