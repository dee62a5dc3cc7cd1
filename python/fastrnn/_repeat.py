"""A call like the last one of its layer, recognized before anything else is looked at.

A call under ``no_grad`` that has the sizes, the layer and the weights of the one before it is done
by the compiled module as a whole, ``_ops.repeated``, which checks all tensors by itself. The other
way there, which looks at each argument in turn and knows what is wrong with it, takes a seventh of
a small call. Of large weights that is nothing, and to ask twice whether they have changed is much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _ops, _plans
from ._autograd import watched
from ._problem import Layer, Weights


def outputs(
    layer: Layer, input: object, hx: object, weights: Weights, cache: _plans.PackedCache
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Run one layer if that is all there is to the call.

    Args:
        layer: what to run.
        input: as the modules take it, and so is ``hx``; neither needs to have been checked.
        hx: see there.
        weights: five for each direction.
        cache: what the last call left.

    Returns:
        y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state); or ``None``,
        and nothing has been done.
    """
    last = cache.get(layer.index)
    if last is None or last.plan.packed >= _ops.LARGE_WEIGHTS:
        return None
    if torch.is_grad_enabled() or watched():
        return None
    if type(input) is not Tensor or torch.is_autocast_enabled("cpu"):
        return None
    h0: Any = hx
    c0: Any = None
    if layer.spec.states > 1 and hx is not None:
        if not isinstance(hx, tuple | list) or len(hx) != 2:
            return None
        h0, c0 = hx
        if h0 is None or c0 is None:  # which is no pair of zeros, but refused
            return None
    return _ops.repeated(layer, input, h0, c0, weights, cache, None)
