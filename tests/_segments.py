"""Lengths and resets as a Python loop over segments makes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from _support import Case, states_of

Call = Callable[[Any, Mapping[str, Tensor]], list[Tensor]]


def as_list(states: Any) -> list[Tensor]:
    return list(states) if isinstance(states, tuple) else [states]


def padded_call(
    module: Any,
    case: Case,
    tensors: Mapping[str, Tensor],
    lengths: Sequence[int],
    reset_mask: Tensor | None = None,
) -> list[Tensor]:
    """Call the module with NaN in the padding; ``reset_mask`` is (T, B)."""
    padding = torch.arange(case.T).unsqueeze(1) >= torch.tensor(lengths)
    mask = reset_mask
    if case.batch_first:
        padding = padding.T
        mask = None if mask is None else mask.T
    x = tensors["x"].masked_fill(padding.unsqueeze(-1), float("nan"))
    y, final = module(x, states_of(case, tensors), lengths=lengths, reset_mask=mask)
    return [y, *as_list(final)]


def loop(
    module: Any,
    case: Case,
    tensors: Mapping[str, Tensor],
    lengths: Sequence[int],
    reset_mask: Tensor | None = None,
) -> list[Tensor]:
    """Run each layer, direction, sequence and segment by itself."""
    x = tensors["x"].transpose(0, 1) if case.batch_first else tensors["x"]
    dtype = x.dtype
    finals: list[list[Tensor]] = []
    D = case.directions
    for layer in range(case.layers):
        outputs = []
        for d in range(D):
            single = one_direction(module, case, layer, d, x.shape[-1], dtype)
            initial = [tensors[n][layer * D + d] for n in ("h0", "c0") if n in tensors]
            if not initial:
                widths = (case.output_size, case.H) if case.is_lstm else (case.H,)
                initial = [torch.zeros(case.B, w, dtype=dtype) for w in widths]
            y, final = direction_loop(single, case, x, d, initial, lengths, reset_mask)
            outputs.append(y)
            finals.append(final)
        x = torch.cat(outputs, -1)
    states = [torch.stack(kind) for kind in zip(*finals, strict=True)]
    return [x.transpose(0, 1) if case.batch_first else x, *states]


def one_direction(
    module: Any, case: Case, layer: int, d: int, width: int, dtype: torch.dtype
) -> Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]:
    """Return a function of (t, 1, I) and states that runs one direction of one layer."""
    import dataclasses

    own = dataclasses.replace(case, I=width, layers=1, bidirectional=False, batch_first=False)
    namespace = __import__("fastrnn") if "fastrnn" in type(module).__module__ else torch.nn
    single = own.module(namespace, dtype)
    if hasattr(module, "checkpoint_every"):
        single.checkpoint_every = module.checkpoint_every
    tail = f"_l{layer}" + ("_reverse" if d else "")
    weights = {
        n: getattr(module, n.removesuffix("_l0") + tail) for n, _ in single.named_parameters()
    }

    def run(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        hx = [s.view(1, 1, -1) for s in states]
        result = torch.func.functional_call(
            single, weights, (x, tuple(hx) if case.is_lstm else hx[0])
        )
        return result[0], [s.view(-1) for s in as_list(result[1])]

    return run


def direction_loop(
    run: Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]],
    case: Case,
    x: Tensor,
    d: int,
    initial: list[Tensor],
    lengths: Sequence[int],
    reset_mask: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    columns, finals = [], []
    for b, length in enumerate(lengths):
        states = [s[b] for s in initial]
        cuts = [0, length]
        if reset_mask is not None:
            cuts = [0, *(t for t in range(1, length) if reset_mask[t, b]), length]
        spans = [(i, j) for i, j in itertools.pairwise(cuts) if j > i]
        parts = []
        for i, j in reversed(spans) if d else spans:
            crossed = bool(parts)
            at_start = d == 0 and i == 0 and reset_mask is not None and bool(reset_mask[0, b])
            if crossed or at_start:
                states = [torch.zeros_like(s) for s in states]
            part = x[i:j, b : b + 1]
            y, states = run(part.flip(0) if d else part, states)
            parts.append(y.flip(0) if d else y)
        width = case.output_size
        padding = x.new_zeros(case.T - length, 1, width)
        columns.append(torch.cat([*(reversed(parts) if d else parts), padding]))
        finals.append(states)
    return torch.cat(columns, 1), [torch.stack(s) for s in zip(*finals, strict=True)]


def gradients(
    module: Any, case: Case, tensors: Mapping[str, Tensor], call: Call
) -> dict[str, Tensor]:
    """Return the outputs of a call and the gradients of all its inputs and parameters."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    outputs = call(module, leaves)
    names = ["y", "h_n", "c_n"][: len(outputs)]
    torch.manual_seed(5)
    upstream = [torch.randn(o.shape).to(o.dtype) for o in outputs]
    sources = leaves | dict(module.named_parameters())
    # Without any step the loop's output is a constant.
    used = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
    heads, above = zip(*used, strict=True)
    found = torch.autograd.grad(
        heads, list(sources.values()), above, allow_unused=True, materialize_grads=True
    )
    results = {n: o.detach() for n, o in zip(names, outputs, strict=True)}
    return results | {f"d.{n}": g for n, g in zip(sources, found, strict=True)}
