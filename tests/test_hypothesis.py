"""Random configurations against torch.nn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from _support import CELLS, DTYPES, Case, assert_accurate, assert_bitwise, run, truth, twin

LAYOUTS = ("dense", "unbatched", "packed", "unsorted")
RANDOM = settings(
    deadline=None,
    derandomize=True,  # the same examples on every machine, so a red run can be repeated
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def random_cases(draw: st.DrawFn) -> Case:
    cell = draw(st.sampled_from(CELLS))
    layout = draw(st.sampled_from(LAYOUTS))
    least = 1 if layout in ("packed", "unsorted") else 0
    batch = st.integers(least, 20) | st.sampled_from([33, 64, 300])
    return Case(
        cell,
        T=draw(st.integers(1, 15)),
        B=1 if layout == "unbatched" else draw(batch),
        I=draw(st.integers(1, 40)),
        H=draw(st.integers(2 if cell == "proj" else 1, 40)),
        layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        layout=layout,
        states=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))
@settings(RANDOM, max_examples=250)
@given(case=random_cases())
def test_any_configuration(case: Case, dtype: torch.dtype) -> None:
    ours = twin(case, dtype)[0]
    assert_accurate(run(ours, case), dtype, truth(case))


@settings(RANDOM, max_examples=150)
@given(case=random_cases(), data=st.data())
def test_any_subset_of_gradients(case: Case, data: st.DataObject) -> None:
    """What is asked for does not depend on what else is asked for."""
    ours = twin(case)[0]
    everything = run(ours, case)
    names = [n.removeprefix("d.") for n in everything if n.startswith("d.")]
    wants = data.draw(st.sets(st.sampled_from(names)))
    assert_bitwise(some := run(ours, case, wants=wants), everything, some)


@settings(RANDOM, max_examples=150)
@given(case=random_cases(), data=st.data())
def test_any_strides(case: Case, data: st.DataObject) -> None:
    """A tensor's strides do not change a bit of the result."""
    ours = twin(case)[0]
    tensors = case.inputs()
    expected = run(ours, case, tensors)
    strided = {}
    for name, tensor in tensors.items():
        order = data.draw(st.permutations(range(tensor.dim())))
        step = data.draw(st.integers(1, 3))
        wide = tensor.permute(order).repeat_interleave(step, -1).contiguous()[..., ::step]
        strided[name] = wide.permute([order.index(d) for d in range(tensor.dim())])
        assert torch.equal(strided[name], tensor)
    assert_bitwise(run(ours, case, strided), expected)
