"""One time step at a time, for serving: the state stays with the weights in the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _checks, _errors, _stream_ops

if TYPE_CHECKING:
    from ._base import Hidden, RNNBase
    from .quantize import Quantized


class Stream:
    r"""Step through a module's layers, one time step a call.

    Made by :meth:`fastrnn.LSTM.stream` and its like. After steps :math:`x_1 \dots x_t` the outputs
    are those of the module in ``eval()`` mode on the whole sequence: on the CPU bitwise, on a GPU
    but for rounding, for there the products with the input are part of a step. On a GPU a step is
    one launch through all layers, which can be captured into a CUDA graph.

    The weights are a snapshot, copied once; :meth:`refresh` takes the module's present ones. No
    gradients are recorded. A stream must not be used by two threads at once; make one for each.

    Args:
        module: a :class:`fastrnn.RNN`, ``LSTM`` or ``GRU`` in one direction, or on the CPU a
            ``Quantized``.
        batch_size: B, sequences that are stepped together, at least 1. Default: 1.

    Raises:
        ValueError: if the module is bidirectional or ``batch_size`` is less than 1.
        TypeError: if ``batch_size`` is no int.
        RuntimeError, NotImplementedError: if the weights are where no engine runs, or of a dtype
            without kernels.
    """

    def __init__(self, module: RNNBase | Quantized, batch_size: int = 1) -> None:
        if module.bidirectional:
            raise ValueError(
                f"{module._owner}: bidirectional must be False to stream, got True; the second "
                "direction would need the future"
            )
        if not isinstance(batch_size, int):
            raise TypeError(f"{module._owner}: batch_size must be an int, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"{module._owner}: batch_size must be at least 1, got {batch_size}")
        self._module = module
        self.batch_size = batch_size
        stack = module._stack()
        weight = module._weights()[0][0]
        assert weight is not None
        self.dtype = torch.float32 if stack.time_major[0].quantized else weight.dtype
        self._layers = stack.time_major
        self.device = _stream_ops.stream_device(weight)
        self._engine = _stream_ops.open_stream(self._layers, self.dtype, batch_size, weight)
        self._step = self._engine.step
        self._step_tensor = _stream_ops.tensor_step(self._engine)
        self._input_shape = (batch_size, module.input_size)
        self._output_shape = (batch_size, self._layers[-1].output_size)
        self._has_cell = stack.spec.states > 1
        self.refresh()

    def refresh(self) -> None:
        """Take the module's present weights; the state stays."""
        _stream_ops.load_stream(self._engine, self._layers, self._module._weights(), self)

    def step(self, x: Tensor) -> Tensor:
        """Do one time step.

        Args:
            x: input of shape (B, I), or (I) if B is 1.

        Returns:
            The last layer's output, (B, O), or (O) for an input without a batch.

        Raises:
            RuntimeError: if shape, dtype or device are wrong, or new tensors have no memory here.
            TypeError: if it is no tensor.
        """
        if self._step_tensor is not None and not torch._C._len_torch_dispatch_stack():
            y = self._step_tensor(x)
            if y is not None:
                return y
        if (
            type(x) is not Tensor
            or x.shape != self._input_shape
            or x.dtype is not self.dtype
            or x.device != self.device
            or not x.is_contiguous()
            or x.is_neg()
        ):
            return self._step_checked(x)
        y = torch.empty(self._output_shape, dtype=self.dtype, device=self.device)
        owner = self._layers[0].owner
        # A mode, or a transform, may make tensors without memory.
        if type(y) is not Tensor and _checks.is_fake(owner, "output", y):
            raise _errors.stream_without_memory(owner)
        to = y.data_ptr()
        if not to:
            raise _errors.stream_without_memory(owner)
        at = x.data_ptr() or _checks.address(self._layers[0], "input", x)
        self._step(at, self._input_shape[1], to, self._output_shape[1])
        return y

    def _step_checked(self, x: object) -> Tensor:
        single = self.batch_size == 1 and isinstance(x, Tensor) and x.dim() == 1
        shape = self._input_shape[1:] if single else self._input_shape
        like = torch.empty(shape, dtype=self.dtype, device=self.device)
        plain = _checks.stream_input(self._layers[0], x, like)
        return self.step(plain[None]).squeeze(0) if single else self.step(plain)

    @property
    def cell_dtype(self) -> torch.dtype:
        """The dtype of c, which is kept in float32 where h is bfloat16 or float16."""
        return _checks.value_dtype(self.dtype)

    @property
    def state(self) -> Hidden:
        """The state: a copy of h, (L, B, O), or of (h, c) with c (L, B, H); may be assigned."""
        count, last = len(self._layers), self._layers[-1]
        h = torch.empty(
            count, self.batch_size, last.output_size, dtype=self.dtype, device=self.device
        )
        if not self._has_cell:
            self._engine.get_state(h.data_ptr(), 0)
            return h
        c = torch.empty(
            count, self.batch_size, last.hidden_size, dtype=self.cell_dtype, device=self.device
        )
        self._engine.get_state(h.data_ptr(), c.data_ptr())
        return h, c

    @state.setter
    def state(self, value: Hidden) -> None:
        _stream_ops.set_stream_state(self._engine, self._layers, value, self)

    def reset(self) -> None:
        """Set the state to zeros."""
        self._engine.set_state(0, 0)
