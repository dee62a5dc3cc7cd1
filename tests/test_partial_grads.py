"""What autograd asks for is computed, no more; what it saved is guarded."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from _support import CELLS, NUMBERS, Case, assert_bitwise, call, run, twin
from fastrnn import _ops, _plans

CASES = [
    Case(cell, 6, 5, 7, 9, 2, True, layout=lay) for cell in CELLS for lay in ("dense", "unsorted")
]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Record what crosses the one gate to the compiled module, as all calls can."""
    monkeypatch.setattr(_ops, "_ordinary_backward", lambda *_: None)
    core = _plans.core
    record: list[tuple[str, dict[str, Any]]] = []
    names = {
        "forward": (
            "problem inputs offsets table y y_step y_row h_n c_n reserve packed repack workspace"
        ).split(),
        "backward": (
            "problem inputs offsets table y y_step y_row reserve dy dy_step dy_row dh_n dc_n "
            "dx dx_step dx_row dh0 dc0 dweights dgates workspace"
        ).split(),
    }

    def recording(name: str, function: Any) -> Any:
        def spied(*args: Any, **kwargs: Any) -> Any:
            record.append((name, dict(zip(names[name], args, strict=False)) | kwargs))
            return function(*args, **kwargs)

        return spied

    for name in names:
        monkeypatch.setattr(core, name, recording(name, getattr(core, name)))
    return record


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("wants", [("x",), ("h0",), ("c0",), NUMBERS, ("weight_ih_l0",), ()])
def test_one_gradient_alone(case: Case, wants: tuple[str, ...]) -> None:
    """It equals, bit for bit, the same gradient among all of them."""
    ours = twin(case)[0]
    expected = run(ours, case)
    alone = run(ours, case, wants=wants)
    assert_bitwise(alone, expected, alone)
    assert {n for n in alone if n.startswith("d.")} == {
        f"d.{n}" for n in wants if n != "c0" or case.is_lstm
    }


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("index", range(5))
def test_each_parameter_alone(case: Case, index: int) -> None:
    ours = twin(case)[0]
    expected = run(ours, case)
    for name, _ in itertools.islice(ours.named_parameters(), index, None, 5):
        alone = run(ours, case, wants=[name])
        assert_bitwise(alone, expected, [f"d.{name}"])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("heads", [["y"], ["h_n"], ["c_n"], ["h_n", "c_n"], ["y", "c_n"]])
def test_gradients_of_some_outputs(case: Case, heads: list[str]) -> None:
    """An output nobody uses has a zero gradient."""
    if heads == ["c_n"] and not case.is_lstm:
        heads = ["h_n"]
    ours, theirs = twin(case, torch.float64)
    mine, reference = run(ours, case, heads=heads), run(theirs, case, heads=heads)
    for name, value in reference.items():
        torch.testing.assert_close(mine[name], value, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_follow_requires_grad(cell: str) -> None:
    case = Case(cell, layers=2)
    for module in twin(case):
        frozen = module.requires_grad_(False)
        outputs = call(frozen, case, case.inputs())
        assert not any(t.requires_grad for t in outputs.values())
        tensors = case.inputs()
        tensors["h0"].requires_grad_()
        outputs = call(frozen, case, tensors)
        assert all(t.requires_grad for t in outputs.values())
        module.requires_grad_(True)
        with torch.no_grad():
            assert not call(module, case, tensors)["y"].requires_grad


@pytest.mark.cpu_engine  # looks into its module
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("cheap", [False, True])
def test_only_what_is_wanted_is_computed(
    cell: str, cheap: bool, spy: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that cost less than to find out who wants them may be computed too."""
    if not cheap:
        monkeypatch.setattr("fastrnn._autograd.CHEAP", 0)
    case = Case(cell, 6, 5, 7, 9, bidirectional=True)
    ours = twin(case)[0]
    for wants in (["x"], ["h0"], ["weight_hh_l0"], ["bias_ih_l0_reverse"], ["x", "weight_ih_l0"]):
        spy.clear()
        run(ours, case, wants=wants)
        [backward] = [arguments for name, arguments in spy if name == "backward"]
        pointers = [backward["dx"], backward["dh0"], *backward["dweights"]]
        computed = {
            n for n, pointer in zip(["x", "h0", *slots()], pointers, strict=True) if pointer
        }
        assert computed >= set(wants) if cheap else computed == set(wants)
        assert cheap or backward["dc0"] == 0


def slots() -> list[str]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0")
    return [name + suffix for suffix in ("", "_reverse") for name in names]


@pytest.mark.cpu_engine  # looks into its module
@pytest.mark.parametrize("cell", CELLS)
def test_backward_stops_at_a_frozen_layer(cell: str, spy: list[tuple[str, dict[str, Any]]]) -> None:
    case = Case(cell, layers=3, states=False)
    ours = twin(case)[0]
    run(ours, case, wants=["weight_hh_l2"])
    assert [name for name, _ in spy].count("backward") == 1


@pytest.mark.cpu_engine  # looks into its module
@pytest.mark.parametrize("cell", CELLS)
def test_inference_saves_nothing(cell: str, spy: list[tuple[str, dict[str, Any]]]) -> None:
    case = Case(cell)
    run(twin(case)[0], case, wants=())
    assert [(name, arguments["reserve"]) for name, arguments in spy] == [("forward", 0)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_twice(case: Case) -> None:
    """The reserve is read-only: a retained graph gives the same gradients again."""
    ours = twin(case)[0]
    y = call(ours, case, case.inputs())["y"]
    parameters = list(ours.parameters())
    first = torch.autograd.grad(y.square().sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), parameters, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.grad(y.sum(), parameters)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), parameters)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_accumulate(cell: str) -> None:
    case = Case(cell)
    ours = twin(case)[0]
    once = torch.autograd.grad(call(ours, case, case.inputs())["y"].sum(), [*ours.parameters()])
    for _ in range(2):
        call(ours, case, case.inputs())["y"].sum().backward()
    assert all(torch.equal(p.grad, g + g) for p, g in zip(ours.parameters(), once, strict=True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("target", ["y", "x", "h0", "weight_hh_l0", "weight_ih_l0", "h_n"])
def test_change_in_place_before_backward(cell: str, target: str) -> None:
    """Refused, or harmless: never a wrong gradient. A changed recurrent weight always raises."""
    case = Case(cell, 6, 5, 7, 9)
    ours = twin(case)[0]
    expected = run(ours, case)
    ours.requires_grad_(True)
    tensors = case.inputs()
    outputs = call(ours, case, tensors)
    torch.manual_seed(8)
    upstream = [torch.randn(t.shape) for t in outputs.values()]
    everything = tensors | outputs | dict(ours.named_parameters())
    loss = sum((t * u).sum() for t, u in zip(outputs.values(), upstream, strict=True))
    with torch.no_grad():
        everything[target].add_(1)
    sources = dict(ours.named_parameters())
    try:
        gradients = torch.autograd.grad(loss, list(sources.values()))
    except RuntimeError as caught:
        assert "modified by an inplace operation" in str(caught)  # noqa: PT017
        return
    assert target != "weight_hh_l0"
    assert_bitwise(
        {f"d.{n}": g for n, g in zip(sources, gradients, strict=True)},
        expected,
        [f"d.{n}" for n in sources],
    )


@pytest.mark.parametrize("cell", CELLS)
def test_second_order_is_right_or_refused(cell: str) -> None:
    case = Case(cell, states=False)
    results = []
    for module in twin(case, torch.float64):
        x = case.inputs(torch.float64)["x"].requires_grad_()
        try:
            [first] = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(first.square().sum(), x)[0])
        except RuntimeError as refusal:
            assert module is not None and str(refusal)  # noqa: PT017, PT018
            results.append(None)
    if results[0] is not None and results[1] is not None:
        torch.testing.assert_close(results[0], results[1])


# torch's own forward-mode rules load by way of it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("transform", ["jvp", "vmap", "grad", "forward_ad"])
def test_transforms_are_right_or_refused(cell: str, transform: str) -> None:
    """A silent zero tangent or a wrong number is the one answer not allowed."""
    case = Case(cell, states=False)
    ours, theirs = twin(case, torch.float64)
    x = case.inputs(torch.float64)["x"]
    direction = torch.ones_like(x)
    step = 1e-6

    def loss(module: Any, x: torch.Tensor) -> torch.Tensor:
        return module(x)[0].square().sum()

    with torch.no_grad():
        slope = (loss(theirs, x + step * direction) - loss(theirs, x - step * direction)) / (
            2 * step
        )
    try:
        if transform == "jvp":
            found = torch.func.jvp(lambda t: loss(ours, t), (x,), (direction,))[1]
        elif transform == "grad":
            found = (torch.func.grad(lambda t: loss(ours, t))(x) * direction).sum()
        elif transform == "vmap":
            stacked = torch.stack([x, x + direction])
            found = torch.func.vmap(lambda t: loss(ours, t))(stacked)[0]
            slope = loss(theirs, x).detach()
        else:
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, direction)
                found = torch.autograd.forward_ad.unpack_dual(loss(ours, dual)).tangent
                assert found is not None
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(found.detach(), slope, rtol=1e-5, atol=1e-6)
