"""The chains through time of a second derivative, in one call of the engine a direction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _checks, _cuda_device, _plans
from ._chains import Change, Direction, Found
from ._problem import Layer, Ragged


def takes(layer: Layer, x: Tensor) -> bool:
    """Tell whether the engine has them; ``_chains`` has them for all layers and devices."""
    return not layer.proj_size and not _cuda_device.takes(x)


def run(
    own: Direction, ragged: Ragged | None, batch: int, reverse: bool, dgates: Tensor, change: Change
) -> Found:
    """Differentiate the forward pass, and then the backward pass, in a direction.

    Args:
        own: one direction of a layer.
        ragged: as in ``_ops.backward``.
        batch: number of sequences.
        reverse: the direction runs from the last step to the first.
        dgates: what ``_ops.backward`` left of this direction.
        change: what its inputs change by.

    Raises:
        RuntimeError, TypeError: if ``dgates`` are not what they were.
    """
    layer, like = own.layer, own.x
    n = len(own.x) if ragged is None else ragged.N
    info, H = _plans.cell_info(layer.spec.name), layer.hidden_size
    kept: list[Tensor] = []  # alive until the engine is done with their addresses

    def address(name: str, tensor: Tensor | None, *shape: int) -> int:
        if tensor is None:
            return 0
        _checks.alike(layer, name, tensor, like, shape)
        kept.append(_checks.copy_if_needed(layer, name, tensor))
        return _checks.address(layer, name, kept[-1])

    def addresses(name: str, states: Sequence[Tensor], rows: int) -> tuple[int, int]:
        first, *others = (address(name, state, rows, H) for state in states)
        return first, others[0] if others else 0

    gates = info["gates"] * H
    v_before, v_y = like.new_empty(n, H), like.new_empty(n, H)
    d = like.new_empty(n, info["gradients"], H)
    v_final, d_initial = ([like.new_empty(batch, H) for _ in own.previous] for _ in range(2))
    problem = _plans.training_problem(layer, like.dtype, len(own.spans), batch, ragged is not None)
    size = _plans.core.second_order_workspace(problem, n)
    arguments = (
        problem,
        reverse,
        0 if ragged is None else ragged.offsets.data_ptr(),
        address("weight_hh", own.weights[1], gates, H),
        address("the input product", own.wx, n, gates),
        address("the recurrent product", own.rh, n, gates),
        addresses("the saved reserve", own.previous, n),
        address("the change of the input product", change.wx, n, gates),
        address("the change of the recurrent product", change.rh, n, gates),
        addresses("the change of the initial state", change.initial, batch),
        address("the saved gradients", dgates, n, info["gradients"] + info["states"], H),
        address("the change of the output's gradient", change.through, n, H),
        v_before.data_ptr(),
        v_y.data_ptr(),
        addresses("the final state", v_final, batch),
        d.data_ptr(),
        addresses("the initial state", d_initial, batch),
    )
    workspace = _plans.scratch_memory.take(size)
    _plans.core.second_order(*arguments, workspace[0])
    _plans.scratch_memory.give_back(workspace)
    d_wx, d_rh = (gate_rows(d, info[of]) for of in ("of_input", "of_recurrent"))
    return Found(v_before, v_y, v_final, d_wx, d_rh, d_initial, None)


def gate_rows(dgates: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return the gradients of some gates, (N, G*H), of one direction's; a view where it can be."""
    first, last = numbers[0], numbers[-1]
    if list(numbers) == list(range(first, last + 1)):
        return dgates[:, first : last + 1].flatten(1)
    return dgates[:, numbers].flatten(1)
