"""What torch offers for modules and their parameters works with fastrnn's, made or converted."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, stateless

import fastrnn
from _support import output_of, python

KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
SOURCES = ("made", "converted", "compatible")
I, H = 4, 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """More make torch no faster at these sizes, and on a busy machine far slower."""
    torch.set_num_threads(1)


def make(kind: str, source: str = "made", seed: int = 0, **options: Any) -> Any:
    """Return a module of fastrnn that came about in one of three ways, or torch's own."""
    torch.manual_seed(seed)
    if source == "made":
        return getattr(fastrnn, kind)(I, H, **options)
    module = getattr(nn, kind)(I, H, **options)
    if source == "torch":
        return module
    return fastrnn.convert(module, compatible=source == "compatible", strict=True)


def weight_of(module: Any, which: str = "weight_hh") -> str:
    return which if isinstance(module, nn.RNNCellBase) else f"{which}_l0"


def input_of(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((3, I) if "Cell" in kind else (5, 3, I), generator=generator)


def output(module: Any, x: torch.Tensor) -> torch.Tensor:
    result = module(x)
    return result[0] if isinstance(result, tuple) else result


def loss(module: Any, kind: str) -> torch.Tensor:
    return output(module, input_of(kind)).square().sum()


def pairs(kind: str, source: str, **options: Any) -> tuple[Any, Any]:
    return make(kind, source, **options), make(kind, "torch", **options)


def close_gradients(ours: Any, theirs: Any) -> None:
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=lambda m, n=name: f"{n}: {m}")


each_kind = pytest.mark.parametrize("kind", KINDS)
each_source = pytest.mark.parametrize("source", SOURCES)


@each_kind
@each_source
def test_clip_and_vectors(kind: str, source: str) -> None:
    ours, theirs = pairs(kind, source)
    norms = []
    for module in (ours, theirs):
        loss(module, kind).backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.1))
        nn.utils.clip_grad_value_(module.parameters(), 0.01)
    torch.testing.assert_close(*norms)
    close_gradients(ours, theirs)
    vector = nn.utils.parameters_to_vector(ours.parameters())
    assert torch.equal(vector, nn.utils.parameters_to_vector(theirs.parameters()))
    for module in (ours, theirs):
        nn.utils.vector_to_parameters(vector * 2, module.parameters())
    torch.testing.assert_close(loss(ours, kind), loss(theirs, kind))


def old_weight_norm(module: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, weight_of(module))


# torch.nn reads a weight several times a call, and each time the new spectral_norm does some steps
# of its power iteration; only with many of them are the results comparable.
WRAPPERS = {
    "weight_norm, old": old_weight_norm,
    "spectral_norm, old": lambda m: nn.utils.spectral_norm(m, weight_of(m)),
    "weight_norm": lambda m: parametrizations.weight_norm(m, weight_of(m)),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, weight_of(m), 99),
    "orthogonal": lambda m: parametrizations.orthogonal(m, weight_of(m)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@each_kind
@pytest.mark.parametrize("when", ["made", "wrapped, then converted", "converted, then wrapped"])
def test_reparametrized(kind: str, wrapper: str, when: str) -> None:
    """Training through a norm takes the course that torch's module takes."""
    ours, theirs = make(kind, "made" if when == "made" else "torch"), make(kind, "torch")
    if when.startswith("converted"):
        fastrnn.convert(ours, strict=True)
    for module in (ours, theirs):
        torch.manual_seed(3)
        WRAPPERS[wrapper](module)
    if when.startswith("wrapped"):
        fastrnn.convert(ours, strict=True)
    assert isinstance(ours, getattr(fastrnn, kind))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (ours, theirs)]
    for _ in range(3):
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss(module, kind).backward()
            optimizer.step()
        close_gradients(ours, theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():  # inference: the packed weights follow
        torch.testing.assert_close(loss(ours.eval(), kind), loss(theirs.eval(), kind))


@each_kind
@each_source
def test_norm_removed(kind: str, source: str) -> None:
    module = make(kind, source)
    cls, expected = type(module), output(module, input_of(kind))
    parametrizations.weight_norm(module, weight_of(module))
    parametrize.remove_parametrizations(module, weight_of(module))
    assert type(module) is cls
    torch.testing.assert_close(output(module, input_of(kind)), expected)
    old_weight_norm(module)
    nn.utils.remove_weight_norm(module, weight_of(module))
    torch.testing.assert_close(output(module, input_of(kind)), expected)


@each_kind
@each_source
def test_prune(kind: str, source: str) -> None:
    ours, theirs = pairs(kind, source)
    for module in (ours, theirs):
        prune.l1_unstructured(module, weight_of(module), amount=0.5)
        loss(module, kind).backward()
    close_gradients(ours, theirs)
    torch.testing.assert_close(loss(ours, kind), loss(theirs, kind))
    prune.remove(ours, weight_of(ours))
    assert (getattr(ours, weight_of(ours)) == 0).float().mean() == 0.5
    torch.testing.assert_close(loss(ours, kind), loss(theirs, kind))


@each_kind
@each_source
def test_frozen_parts(kind: str, source: str) -> None:
    ours, theirs = pairs(kind, source)
    for module in (ours, theirs):
        getattr(module, weight_of(module)).requires_grad_(False)
        getattr(module, weight_of(module, "bias_ih")).requires_grad_(False)
        loss(module, kind).backward()
    close_gradients(ours, theirs)
    assert getattr(ours, weight_of(ours)).grad is None
    ours.requires_grad_(False)
    assert not output(ours, input_of(kind)).requires_grad


@pytest.mark.parametrize("source", [*SOURCES, "accelerated"])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_tied_weights(kind: str, source: str) -> None:
    """One parameter in two places: one gradient, the sum."""

    class Tied(nn.Module):
        def __init__(self, source: str) -> None:
            super().__init__()
            self.layer = make(kind, source, num_layers=2)
            self.other = make(kind, source, seed=2)
            self.layer.weight_hh_l1 = self.layer.weight_hh_l0
            self.other.weight_hh_l0 = self.layer.weight_hh_l0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0] + self.other(x)[0]

    ours, theirs = Tied("torch" if source == "accelerated" else source), Tied("torch")
    with fastrnn.accelerate(source == "accelerated", strict=True):
        for model in (ours, theirs):
            loss(model, kind).backward()
    close_gradients(ours, theirs)
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) == 10


@each_kind
@each_source
def test_hooks(kind: str, source: str) -> None:
    ours, theirs = pairs(kind, source)
    seen: dict[Any, list[str]] = {ours: [], theirs: []}
    for module in (ours, theirs):
        note = seen[module].append
        module.register_forward_pre_hook(lambda *_, n=note: n("before"))
        module.register_forward_hook(lambda *_, n=note: n("after"))
        module.register_full_backward_pre_hook(lambda *_, n=note: n("backward before"))
        module.register_full_backward_hook(lambda *_, n=note: n("backward after"))
        module.register_state_dict_post_hook(lambda *_, n=note: n("state"))
        for parameter in module.parameters():
            parameter.register_hook(lambda g, n=note: n("gradient"))
            parameter.register_post_accumulate_grad_hook(lambda p, n=note: n("accumulated"))
        output(module, input_of(kind).requires_grad_()).sum().backward()
        module.state_dict()
    assert sorted(seen[ours]) == sorted(seen[theirs])
    assert len(seen[ours]) == 5 + 8


@each_kind
@each_source
def test_torch_save(kind: str, source: str, tmp_path: Path) -> None:
    """Whole modules and state dicts, the latter with ``weights_only``, both ways."""
    ours, theirs = pairs(kind, source)
    expected = output(ours, input_of(kind))
    torch.save(ours, tmp_path / "module.pt")
    whole = torch.load(tmp_path / "module.pt", weights_only=False)
    assert type(whole) is type(ours)
    assert torch.equal(output(whole, input_of(kind)), expected)
    with torch.serialization.safe_globals([type(ours), *_globals(ours)]):
        assert type(torch.load(tmp_path / "module.pt", weights_only=True)) is type(ours)

    torch.save(ours.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)
    fresh = make(kind, "torch", seed=9)
    fresh.load_state_dict(state)
    torch.testing.assert_close(output(fresh, input_of(kind)), expected)
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    buffer.seek(0)
    other = make(kind, source, seed=9)
    other.load_state_dict(torch.load(buffer, weights_only=True), assign=True)
    assert torch.equal(output(other, input_of(kind)), expected)


def _globals(module: Any) -> list[Any]:
    """Return what a pickled module refers to besides its class."""
    return [torch.nn.Parameter, set, *{type(v) for v in vars(module).values()}]


@each_kind
@each_source
def test_safetensors(kind: str, source: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    module = make(kind, source)
    path = str(tmp_path / "module.safetensors")
    safetensors.save_model(module, path)
    for other in (make(kind, source, seed=5), make(kind, "torch", seed=5)):
        assert safetensors.load_model(other, path) == (set(), [])
        for a, b in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        other = make(kind, source, seed=5).eval()
        output(other, input_of(kind))  # packs the weights that are then replaced
        safetensors.load_model(other, path)
        assert torch.equal(output(other, input_of(kind)), output(module, input_of(kind)))


@each_kind
@each_source
def test_copies_and_functional_calls(kind: str, source: str) -> None:
    module, x = make(kind, source), input_of(kind)
    expected = output(module, x)
    twin = copy.deepcopy(module)
    assert type(twin) is type(module)
    assert torch.equal(output(twin, x), expected)
    doubled = {n: p.detach() * 2 for n, p in module.named_parameters()}
    results = [
        torch.func.functional_call(module, doubled, (x,)),
        stateless._functional_call(module, doubled, (x,)),
    ]
    twin.load_state_dict(doubled)
    for result in results:
        result = result[0] if isinstance(result, tuple) else result
        assert torch.equal(result, output(twin, x))
    assert torch.equal(output(module, x), expected)
    leaf = {n: t.clone().requires_grad_() for n, t in doubled.items()}
    result = torch.func.functional_call(module, leaf, (x,))
    (result[0] if isinstance(result, tuple) else result).sum().backward()
    assert all(t.grad is not None for t in leaf.values())
    assert all(p.grad is None for p in module.parameters())


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    "SGD, fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "Adam": (torch.optim.Adam, {"foreach": True}),
    "Adam, fused": (torch.optim.Adam, {"fused": True}),
    "AdamW, single": (torch.optim.AdamW, {"foreach": False}),
    "Adagrad, fused": (torch.optim.Adagrad, {"fused": True}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "LBFGS": (torch.optim.LBFGS, {"max_iter": 2}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_optimizers(kind: str, name: str) -> None:
    """The course of the losses is torch's, in inference between the steps as well."""
    optimizer_class, options = OPTIMIZERS[name]
    courses = []
    for source in ("made", "torch"):
        module = make(kind, source, dtype=torch.float64)
        optimizer = optimizer_class(module.parameters(), lr=0.01, **options)

        def closure(module: Any = module, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = output(module, input_of(kind).double()).square().sum()
            value.backward()
            return value

        course = []
        for _ in range(4):
            optimizer.step(closure)
            with torch.no_grad():
                course.append(output(module, input_of(kind).double()).square().sum())
        courses.append(course)
    torch.testing.assert_close(*courses)


@each_kind
def test_moving_average(kind: str) -> None:
    courses = []
    for source in ("made", "torch"):
        module = make(kind, source)
        average = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        course = []
        for _ in range(3):
            optimizer.zero_grad()
            loss(module, kind).backward()
            optimizer.step()
            average.update_parameters(module)
            with torch.no_grad():
                course.append(output(average.eval(), input_of(kind)))
        courses.append(course)
    torch.testing.assert_close(*courses)


@pytest.mark.parametrize("source", SOURCES)
def test_activation_checkpointing_and_inference_mode(source: str) -> None:
    module, x = make("LSTM", source), input_of("LSTM").requires_grad_()
    y = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    y.sum().backward()
    recomputed = module.weight_hh_l0.grad.clone()
    module.zero_grad()
    module(x)[0].sum().backward()
    assert torch.equal(module.weight_hh_l0.grad, recomputed)
    with torch.inference_mode():
        assert torch.equal(module(x)[0], y)


def test_anomaly_and_saved_tensor_hooks() -> None:
    module, x = make("GRU"), input_of("GRU")
    loss(module, "GRU").backward()
    expected = module.weight_hh_l0.grad.clone()
    module.zero_grad()
    packed: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor.numel())
        return tensor.clone()

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autograd.set_detect_anomaly(True, check_nan=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        output(module, x).square().sum().backward()
    assert packed
    assert torch.equal(module.weight_hh_l0.grad, expected)


SHARED = """
import sys
import torch, torch.multiprocessing as mp
import fastrnn

def work(module, x, queue):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    result = module(x)
    (result[0] if isinstance(result, tuple) else result).sum().backward()
    optimizer.step()
    queue.put((type(module).__module__, type(module).__name__))

if __name__ == "__main__":
    torch.manual_seed(0)
    modules = [
        fastrnn.LSTM(4, 6),
        fastrnn.convert(torch.nn.GRU(4, 6)),
        fastrnn.compat.LSTMCell(4, 6),
    ]
    context = mp.get_context("spawn")
    queue = context.Queue()
    x = torch.randn(5, 3, 4)
    for module in modules:
        module.share_memory()
        assert all(p.is_shared() for p in module.parameters())
    inputs = [x, x, x[0]]
    alone = [fastrnn.LSTM(4, 6), fastrnn.GRU(4, 6), fastrnn.LSTMCell(4, 6)]
    for module, other, x in zip(modules, alone, inputs):
        other.load_state_dict(module.state_dict())
        with torch.no_grad():
            module.eval()(x)
        child = context.Process(target=work, args=(module, x, queue))
        child.start()
        kind = queue.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0, child.exitcode
        assert kind == (type(module).__module__, type(module).__name__), kind
        result = other(x)
        result = result[0] if isinstance(result, tuple) else result
        result.sum().backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        with torch.no_grad():
            a, b = module(x), other(x)
        assert torch.equal(a[0], b[0]) and not torch.equal(a[0], result), type(module)
    print("trained elsewhere")
"""


def test_a_spawned_process_trains_shared_modules(tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    runner = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    assert output_of(python(runner, str(script))).strip() == "trained elsewhere"
