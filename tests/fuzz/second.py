"""Random second backward passes, most of them made wrong in some way.

What autograd hands to ``double_backward`` passes through hooks of the user's: saved tensors and
incoming gradients may be anything. Each call is refused with an exception of the documented kinds
or gives what differentiating the reference in plain torch twice gives. A call follows from its
number alone: ``python -m fuzz.second --first N --calls 1`` repeats call N.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import torch
from torch import Tensor

from fastrnn import _ops
from fastrnn._problem import Layer
from fastrnn._second_order import double_backward, new_dgates
from fastrnn._transforms import gradients_of_gradients
from fuzz import gate

SAME = {f.__name__ for f in gate.SAME_VALUES}


def draw_like(t: Any, rng: random.Random, likely: float) -> Any:
    """Return random numbers in a tensor's place, or now and then ``None``."""
    if t is None or rng.random() > likely:
        return None
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t.dtype)


def compare(layer: Layer, found: Any, true: Any, dtype: torch.dtype) -> None:
    """Fail unless all that the reference has is what was found."""
    for i, (mine, exact) in enumerate(zip(found, true, strict=True)):
        if exact is not None and exact.numel():
            assert mine is not None, f"result {i} of {layer.owner} is missing"
            gate.compare(f"d.{i}", mine.detach(), exact.detach(), dtype)


def fuzz(number: int) -> str:
    """Make call ``number``; return what became of it."""
    rng = random.Random(number)
    call = gate.valid_call(rng)
    while (
        call.tensors["x"].dtype not in (torch.float32, torch.float64)
        or not call.tensors["x"].numel()
    ):
        call = gate.valid_call(rng)
    layer, ragged, dtype = call.layer, call.ragged, call.tensors["x"].dtype
    inputs = list(call.tensors.values())
    y, h_n, c_n, reserve = _ops.forward(layer, inputs[0], ragged, *inputs[1:3], inputs[3:], True)
    tensors = {
        **{n: draw_like(t, rng, 0.8) for n, t in (("dy", y), ("dh_n", h_n), ("dc_n", c_n))},
        **{f"v {n}": draw_like(t, rng, 0.7) for n, t in call.tensors.items()},
        "y": y,
        "reserve": reserve,
        "dgates": None,
    }
    if all(tensors[n] is None for n in ("dy", "dh_n", "dc_n")):
        tensors["dy"] = torch.ones_like(y)
    wanted = [t is not None for t in inputs]
    if rng.random() < 0.7:
        tensors["dgates"] = new_dgates(layer, inputs[0], ragged)
        given = tuple(tensors[n] for n in ("dy", "dh_n", "dc_n"))
        kept = tensors["dgates"]
        _ops.backward(layer, ragged, wanted, given, (y, reserve), *inputs, dgates=kept)
    changed = gate.change(tensors, rng) if rng.random() < 0.7 else []
    try:
        return _outcome(layer, call, tensors, wanted, changed, dtype)
    except gate.REFUSALS as error:
        if all(c.split()[-1] in SAME for c in changed):
            raise AssertionError(f"call {number} ({', '.join(changed)}): {error!r}") from error
        return "refused"
    except Exception as error:
        raise AssertionError(f"call {number} ({', '.join(changed)}): {error!r}") from error


def _outcome(
    layer: Layer,
    call: gate.Call,
    tensors: dict[str, Any],
    wanted: list[bool],
    changed: list[str],
    dtype: torch.dtype,
) -> str:
    inputs = list(call.tensors.values())
    gradients = tensors["dy"], tensors["dh_n"], tensors["dc_n"]
    directions = [t for n, t in tensors.items() if n.startswith("v ")]
    outputs = tensors["y"], tensors["reserve"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = double_backward(
            layer, call.ragged, gradients, outputs, inputs, directions, tensors["dgates"]
        )
    if any(type(t) is not Tensor or t.is_meta for t in found if t is not None):
        return "answered without memory"
    # From other values than were saved, or than the saved gradients come from: any results.
    saved = ("y", "reserve", *(("d",) if tensors["dgates"] is not None else ()))
    if any(c.startswith(saved) and c.split()[-1] not in SAME for c in changed):
        return "answered"
    if all(v is None for v in directions):
        return "answered"
    # The maths of the reference is the same for numbers that are as wide as they can be.
    exact = [
        None if t is None else t.detach().resolve_neg().double()
        for t in (*gradients, *inputs, *directions)
    ]
    count = len(inputs)
    true = gradients_of_gradients(
        layer, call.ragged, wanted, exact[:3], exact[3 : 3 + count], exact[3 + count :]
    )
    compare(layer, found, true, dtype)
    return "answered"


if __name__ == "__main__":
    gate.main(fuzz)
