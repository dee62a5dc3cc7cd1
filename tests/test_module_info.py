"""The checks that torch makes of every module, on fastrnn's: torch's own samples of each."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleInput, module_db
from torch.utils._pytree import tree_flatten, tree_map

import fastrnn

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in NAMES}
DTYPES = (torch.float32, torch.float64)


def samples(
    name: str, dtype: torch.dtype, requires_grad: bool = False, training: bool = True
) -> Iterator[ModuleInput]:
    info = INFOS[name]
    torch.manual_seed(0)
    packed = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    yield from info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training, **packed
    )


def build(name: str, sample: ModuleInput, dtype: torch.dtype, **over: Any) -> nn.Module:
    given = sample.constructor_input
    torch.manual_seed(1)
    return getattr(fastrnn, name)(*given.args, **given.kwargs, dtype=dtype, **over)


def outputs(module: nn.Module, sample: ModuleInput) -> list[torch.Tensor]:
    given = sample.forward_input
    return tensors(module(*given.args, **given.kwargs))


def _is_packed(value: object) -> bool:
    return isinstance(value, PackedSequence)


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return all floating-point tensors in a result."""
    flat, _ = tree_flatten(tree, is_leaf=_is_packed)
    flat = [t for t in flat if isinstance(t, torch.Tensor | PackedSequence)]
    flat = [t.data if isinstance(t, PackedSequence) else t for t in flat]
    return [t for t in flat if t.is_floating_point()]


def reference(name: str, sample: ModuleInput, module: nn.Module) -> nn.Module:
    given = sample.constructor_input
    dtype = next(module.parameters()).dtype
    theirs: nn.Module = getattr(nn, name)(*given.args, **given.kwargs, dtype=dtype)
    theirs.load_state_dict(module.state_dict())
    return theirs


def test_all_modules_are_in_torchs_list() -> None:
    assert INFOS.keys() == set(NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_forward(name: str, dtype: torch.dtype) -> None:
    for sample in samples(name, dtype):
        module = build(name, sample, dtype)
        found = outputs(module, sample)
        for mine, their in zip(
            found, outputs(reference(name, sample, module), sample), strict=True
        ):
            torch.testing.assert_close(mine, their)
        given = sample.forward_input
        # torch's references take unbatched input.
        if sample.reference_fn is not None and not any(map(_is_packed, given.args)):
            expected = sample.reference_fn(module, *given.args, **given.kwargs)
            for mine, true in zip(found, tensors(expected), strict=True):
                torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("name", NAMES)
def test_factory_keywords(name: str) -> None:
    """Device and dtype are those asked for, and the same numbers come out either way."""
    sample = next(samples(name, torch.float64))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module = build(name, sample, dtype, device="cpu")
        assert {p.dtype for p in module.parameters()} == {dtype}
        assert {p.device.type for p in module.parameters()} == {"cpu"}
    assert all(p.is_meta for p in build(name, sample, torch.float32, device="meta").parameters())


@pytest.mark.parametrize("name", NAMES)
def test_pickle_deepcopy_and_state_dict(name: str) -> None:
    for sample in samples(name, torch.float64):
        module = build(name, sample, torch.float64)
        expected = outputs(module, sample)
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        buffer.seek(0)
        loaded = build(name, sample, torch.float64)
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.zero_()
        loaded.load_state_dict(torch.load(buffer))
        for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), loaded):
            for mine, true in zip(outputs(other, sample), expected, strict=True):
                assert torch.equal(mine, true)


@pytest.mark.parametrize("name", NAMES)
def test_train_and_eval_agree_without_dropout(name: str) -> None:
    for sample in samples(name, torch.float64):
        module = build(name, sample, torch.float64)
        trained = outputs(module.train(), sample)
        with torch.no_grad():
            for mine, true in zip(outputs(module.eval(), sample), trained, strict=True):
                assert torch.equal(mine, true)


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return equal numbers, every other one in memory."""
    wide = tensor.detach().repeat_interleave(2, dim=-1)
    return wide[..., ::2].requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_tensors(name: str) -> None:
    for sample in samples(name, torch.float64, requires_grad=True):
        given = sample.forward_input
        if any(isinstance(a, PackedSequence) for a in given.args):
            continue
        module = build(name, sample, torch.float64)
        spread = tree_map(lambda t: _strided(t) if isinstance(t, torch.Tensor) else t, given.args)
        results = []
        for arguments in (given.args, spread):
            out = tensors(module(*arguments, **given.kwargs))
            sources = [t for t in tensors(arguments) if t.requires_grad] + list(module.parameters())
            upstream = [torch.ones(o.shape, dtype=o.dtype) for o in out]
            results.append([*out, *torch.autograd.grad(out, sources, upstream)])
        for mine, true in zip(*results, strict=True):
            assert torch.equal(mine, true)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed(name: str) -> None:
    for sample in samples(name, torch.float64, requires_grad=True):
        module = build(name, sample, torch.float64)
        before = [t.detach().clone() for t in tensors(sample.forward_input.args)]
        versions = [t._version for t in tensors(sample.forward_input.args)]
        sum(o.sum() for o in outputs(module, sample)).backward()
        after = tensors(sample.forward_input.args)
        assert [t._version for t in after] == versions
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def _checked_twice(name: str, check: Any, **options: Any) -> None:
    for sample in samples(name, torch.float64, requires_grad=True):
        module = build(name, sample, torch.float64)
        given = sample.forward_input
        flat, spec = tree_flatten(given.args, is_leaf=_is_packed)
        numbers = [a.data if _is_packed(a) else a for a in flat]
        names = [n for n, _ in module.named_parameters()]

        def function(
            *values: torch.Tensor,
            module: nn.Module = module,
            numbers: list[torch.Tensor] = numbers,
            flat: list[Any] = flat,
            spec: Any = spec,
            names: list[str] = names,
        ) -> tuple[torch.Tensor, ...]:
            own = iter(values[: len(numbers)])
            arguments = spec.unflatten(
                [
                    a._replace(data=next(own)) if isinstance(a, PackedSequence) else next(own)
                    for a in flat
                ]
            )
            parameters = dict(zip(names, values[len(numbers) :], strict=True))
            return tuple(tensors(torch.func.functional_call(module, parameters, arguments)))

        assert check(function, (*numbers, *module.parameters()), **options)


@pytest.mark.parametrize("name", NAMES)
def test_grad(name: str) -> None:
    """Batched gradients too, and undefined ones."""
    _checked_twice(name, torch.autograd.gradcheck, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_gradgrad(name: str) -> None:
    _checked_twice(name, torch.autograd.gradgradcheck, fast_mode=True)


# torch's own forward-mode rules load by way of it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode(name: str) -> None:
    _checked_twice(
        name,
        torch.autograd.gradcheck,
        check_forward_ad=True,
        check_backward_ad=False,
        check_undefined_grad=False,
        check_batched_grad=False,
        fast_mode=True,
    )


@pytest.mark.parametrize("name", NAMES)
def test_memory_format_and_repr(name: str) -> None:
    """There is but one memory format for these inputs; the text says what the module is."""
    for sample in samples(name, torch.float64):
        module = build(name, sample, torch.float64)
        expected = outputs(module, sample)
        again = module.to(memory_format=torch.preserve_format)
        for mine, true in zip(outputs(again, sample), expected, strict=True):
            assert torch.equal(mine, true)
        assert repr(module) == repr(reference(name, sample, module))
