"""Sequences longer than one backward pass: truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Loss = Callable[[Tensor, Tensor], Tensor]


class Truncated(NamedTuple):
    """What :func:`tbptt` returns.

    Args:
        loss: the mean loss of all rows (or their sum), without a graph; with a step after each
            chunk, of the parameters that each chunk met.
        hx: the final states, detached, as the module returns them.
        chunks: how many backward passes there were.
    """

    loss: Tensor
    hx: Any
    chunks: int


def tbptt(
    module: Callable[..., tuple[Any, Any]],
    input: Tensor,
    target: Tensor,
    loss: Loss,
    *,
    chunk_size: int,
    hx: Any = None,
    lengths: Tensor | None = None,
    batch_first: bool | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    reduction: str = "mean",
    optimizer: torch.optim.Optimizer | None = None,
    step: str = "chunk",
    before_step: Callable[[], object] | None = None,
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> Truncated:
    r"""Train on a long sequence by truncated backpropagation through time.

    The T steps are cut into chunks of K = ``chunk_size``; the last one may be shorter. Each starts
    from the states in which the one before ended, and gradients end at its border:

    .. math::
        \begin{aligned}
            (o_c, s_c) &= f_\theta(x_c, \operatorname{detach}(s_{c-1})) \\
            L &= \sum_c \frac{N_c}{N} L_c, \qquad
            L_c = \frac{1}{N_c} \sum_{(t, b) \in c} \ell(o_{tb}, y_{tb})
        \end{aligned}

    where chunk c has :math:`N_c` of the N rows (t, b). Without an optimizer, or with
    ``step="sequence"``, the gradients of all chunks add up to that of the mean loss L, cut at the
    borders: chunks are weighted with :math:`N_c / N`, so that neither their number nor a short last
    one changes the scale. With ``step="chunk"`` the optimizer steps after each, on :math:`L_c`
    itself. Memory is that of a single chunk.

    Args:
        module: called as ``module(chunk, hx)``, returns ``output, hx``: a layer of fastrnn or
            ``torch.nn``, or a model with the same interface. What must be trained through, an
            embedding for example, belongs into it, or into ``head``.
        input: the whole sequence, a leaf of autograd or without gradients.
        target: what ``loss`` compares with, with the same first two dimensions (one without a
            batch).
        loss: ``loss(rows, target_rows)``, from (N, F) and (N, ...) to a scalar, such as
            ``torch.nn.functional.cross_entropy``.
        chunk_size: K, at least 1.
        hx: initial states. Gradients of the first chunk reach them. Default: the module's zeros.
        lengths: (B), from 0 to T, in any order: steps beyond them take part in nothing, and the
            final states are those at the ends. The module is then called with a PackedSequence of
            those sequences that are still alive. Default: all are T long.
        batch_first: whether input and target are (B, T, ...). Default: the module's own, else
            ``False``.
        head: applied to the rows of the output before ``loss``. Default: nothing.
        reduction: what ``loss`` does with rows, ``"mean"`` or ``"sum"``; with ``"sum"`` chunks have
            no weights. Default: ``"mean"``.
        optimizer: it is zeroed and steps. Default: none; gradients are added to ``grad``.
        step: when it does, ``"chunk"`` or ``"sequence"``. Default: ``"chunk"``.
        before_step: called before each step, to clip gradients for example.
        backward: called with each loss, for a scaler or a framework that wraps ``backward``.

    Shape:
        - input: (T, B, I), (B, T, I) if ``batch_first``, or (T, I) without a batch.
        - target: (T, B, ...), (B, T, ...) or (T, ...).

    Returns:
        ``loss, hx, chunks``, a :class:`Truncated`.

    Raises:
        ValueError: if an argument is out of range, or input and target do not go together.
        RuntimeError: if the input is the result of a recorded computation, which the first backward
            pass would free.

    Source:
        R. J. Williams and J. Peng, An Efficient Gradient-Based Algorithm for On-Line Training of
        Recurrent Network Trajectories, Neural Computation 2 (1990): BPTT(h; h') with h = h' = K.
    """
    _check(input, target, chunk_size, reduction, step)
    if batch_first is None:
        batch_first = bool(getattr(module, "batch_first", False))
    batch_first = batch_first and input.dim() == 3
    if batch_first:
        input, target = input.transpose(0, 1), target.transpose(0, 1)
    lengths = _checked_lengths(input, lengths)
    T = input.shape[0] if lengths is None else int(lengths.max())
    rows = input.shape[:-1].numel() if lengths is None else int(lengths.sum())
    per_chunk = optimizer is not None and step == "chunk"
    total = torch.zeros((), device=input.device)
    starts = range(0, T, chunk_size)
    for start in starts:
        if optimizer is not None and (per_chunk or start == 0):
            optimizer.zero_grad()
        x, y = (data[start : min(start + chunk_size, T)] for data in (input, target))
        if lengths is None:
            output, y, hx = _whole_chunk(module, x, y, hx, batch_first)
        else:
            output, y, hx = _ragged_chunk(module, x, y, hx, (lengths - start).clamp(0, len(x)))
        value = loss(output if head is None else head(output), y)
        share = 1.0 if reduction == "sum" else len(y) / rows
        backward(value if per_chunk else value * share)
        total = total + value.detach() * share
        hx = detached(hx)
        if optimizer is not None and (per_chunk or start == starts[-1]):
            if before_step is not None:
                before_step()
            optimizer.step()
    return Truncated(total, hx, len(starts))


def _check(input: Tensor, target: Tensor, chunk_size: int, reduction: str, step: str) -> None:
    if chunk_size < 1:
        raise ValueError(f"tbptt: chunk_size must be at least 1, got {chunk_size}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"tbptt: reduction must be 'mean' or 'sum', got {reduction!r}")
    if step not in ("chunk", "sequence"):
        raise ValueError(f"tbptt: step must be 'chunk' or 'sequence', got {step!r}")
    lead = input.shape[:-1]
    if input.dim() not in (2, 3) or 0 in lead or target.shape[: len(lead)] != lead:
        raise ValueError(
            "tbptt: input must be (T, B, I) or (T, I), not empty, and target begin as it does, got "
            f"{tuple(input.shape)} and {tuple(target.shape)}"
        )
    if input.grad_fn is not None:
        raise RuntimeError(
            "tbptt: input must not be the result of a recorded computation, which the first "
            "chunk's backward pass would free; put that computation into module, or detach it"
        )


def _checked_lengths(input: Tensor, lengths: Tensor | None) -> Tensor | None:
    if lengths is None:
        return None
    T = input.shape[0]
    if input.dim() != 3 or lengths.shape != input.shape[1:2]:
        form = tuple(input.shape[1:2]) if input.dim() == 3 else "of a batch"
        raise ValueError(
            f"tbptt: lengths must have shape (B,) = {form}, got {tuple(lengths.shape)}"
        )
    lengths = lengths.to("cpu", torch.int64)
    if bool(((lengths < 0) | (lengths > T)).any()) or not bool(lengths.any()):
        raise ValueError(
            f"tbptt: lengths must be from 0 to T = {T}, not all 0, got {lengths.tolist()}"
        )
    return lengths


def _whole_chunk(
    module: Callable[..., tuple[Any, Any]], x: Tensor, y: Tensor, hx: Any, batch_first: bool
) -> tuple[Tensor, Tensor, Any]:
    """Run the module on time-major data; return the rows of output and target, and the states."""
    output, hx = module(x.transpose(0, 1) if batch_first else x, hx)
    if x.dim() == 2:
        return output, y, hx
    if batch_first:
        output = output.transpose(0, 1)
    return output.flatten(0, 1), y.flatten(0, 1), hx


def _ragged_chunk(
    module: Callable[..., tuple[Any, Any]], x: Tensor, y: Tensor, hx: Any, lengths: Tensor
) -> tuple[Tensor, Tensor, Any]:
    """Run the module on the sequences that have steps in this chunk; the others keep their states.

    Args and result are those of ``_whole_chunk``, with the lengths within the chunk.
    """
    order = lengths.argsort(descending=True, stable=True)
    alive = order[: int(torch.count_nonzero(lengths))]
    ends, at = lengths[alive], alive.to(x.device)
    packed, targets = (pack_padded_sequence(data.index_select(1, at), ends) for data in (x, y))
    before = None if hx is None else mapped(lambda state: state.index_select(1, at), hx)
    output, after = module(packed, before)
    output = output.data if isinstance(output, PackedSequence) else output
    if hx is None:
        hx = mapped(lambda state: state.new_zeros(len(state), x.shape[1], *state.shape[2:]), after)
    kept = [
        old.detach().index_copy(1, at, new.detach())
        for old, new in zip(_leaves(hx), _leaves(after), strict=True)
    ]
    return output, targets.data, tuple(kept) if isinstance(after, tuple) else kept[0]


def _leaves(hx: Any) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def mapped(function: Callable[[Tensor], Tensor], hx: Any) -> Any:
    """Apply a function to the tensors of a state: one, or tuples of them, however deep."""
    if hx is None:
        return None
    if isinstance(hx, Tensor):
        return function(hx)
    return tuple(mapped(function, state) for state in hx)


def detached(hx: Any) -> Any:
    """Return states without their history."""
    return mapped(Tensor.detach, hx)
