"""Random calls of modules: lengths, resets, packed batches and 8-bit weights, many made wrong.

Each call is refused with an exception of the documented kinds or gives, gradients included, what a
loop over the steps gives in float64. A call follows from its number alone; from the folder tests:
``python -m fuzz.modules --first N --calls 1`` repeats call N.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fuzz import gate
from fuzz.steps import Tensors, states_by_layer, sweep

# As gate.TOLERANCE. Of 8-bit weights: a number may be rounded to either of two neighbours.
INT8_TOLERANCE = 0.05
EXTREME = (-1, -(2**31), -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**64, *gate.HUGE)


@dataclass
class Call:
    """A module, what it is called with, and what the lengths and resets among that mean."""

    module: Any
    tensors: dict[str, Any]  # input, h0, c0; of 8-bit weights also these by name
    batched: bool
    packed: PackedSequence | None  # its data are tensors["input"]
    T: int
    B: int
    steps: list[int]
    cuts: Tensor  # bool, (T, B)
    lengths: Any = None
    reset_mask: Any = None

    @property
    def quantized(self) -> bool:
        return isinstance(self.module, fastrnn.Quantized)


def draw_module(rng: random.Random, **options: Any) -> Any:
    """Draw a module, of 8-bit weights or of any dtype; ``options`` are not drawn."""
    kind = rng.choice(["RNN", "LSTM", "GRU"])
    hidden = rng.choice([1, 2, 3, 7, 16, 17, 33])
    drawn: dict[str, Any] = {
        "num_layers": rng.choice([1, 1, 2, 3]),
        "bias": rng.random() < 0.8,
        "batch_first": rng.random() < 0.4,
        "bidirectional": rng.random() < 0.5,
        "checkpoint_every": rng.choice([None, None, 1, 3, "auto"]),
    }
    if kind == "RNN":
        drawn["nonlinearity"] = rng.choice(["tanh", "relu"])
    if kind == "LSTM" and hidden > 1 and rng.random() < 0.3:
        drawn["proj_size"] = rng.randrange(1, hidden)
    torch.manual_seed(rng.randrange(2**31))
    module = getattr(fastrnn, kind)(rng.choice([1, 2, 5, 16, 31]), hidden, **drawn | options)
    if rng.random() < 0.5:
        return fastrnn.Quantized(module)
    return module.to(rng.choice([torch.float32] * 3 + [torch.float64, torch.bfloat16]))


def dtype_of(module: Any) -> torch.dtype:
    weights = list(module.parameters())
    return weights[0].dtype if weights else torch.float32


def draw_states(module: Any, batch: list[int], dtype: torch.dtype) -> dict[str, Any]:
    slots = module.num_layers * (2 if module.bidirectional else 1)
    h0 = torch.randn(slots, *batch, module.proj_size or module.hidden_size).to(dtype)
    c0 = torch.randn(slots, *batch, module.hidden_size).to(dtype)
    return {"h0": h0, "c0": c0 if module.mode == "LSTM" else None}


def valid_call(rng: random.Random) -> Call:
    """Draw a call that must be answered."""
    module = draw_module(rng)
    dtype = dtype_of(module)
    form = rng.choice(["dense", "lengths", "resets", "both", "both", "packed"])
    batched = form == "packed" or rng.random() < 0.85
    T, B = rng.randrange(1, 8), rng.choice([0, 1, 1, 2, 3, 8, 17]) if batched else 1
    if form == "packed":
        B = max(B, 1)
    shortest = 1 if form == "packed" else 0
    ragged = form in ("lengths", "both", "packed")
    steps = [rng.randrange(shortest, T + 1) if ragged else T for _ in range(B)]
    cuts = torch.zeros(T, B, dtype=torch.bool)
    if form in ("resets", "both"):
        cuts = torch.rand(T, B) < rng.choice([0.1, 0.5, 1.0])
    x = torch.randn(T, B, module.input_size).to(dtype)
    if rng.random() < 0.7:
        padding = torch.arange(T).unsqueeze(1) >= torch.tensor(steps, dtype=torch.int64)
        x[padding] = rng.choice([float("nan"), float("inf"), 3e38])
    if not batched:
        x = x[:, 0]
    elif module.batch_first:
        x = x.transpose(0, 1).contiguous()
    states = {"h0": None, "c0": None}
    if rng.random() < 0.6:
        states = draw_states(module, [B] if batched else [], dtype)
    packed = None
    if form == "packed":
        packed = pack_padded_sequence(
            x, torch.tensor(steps), module.batch_first, enforce_sorted=False
        )
        x = packed.data
    call = Call(module, {"input": x, **states}, batched, packed, T, B, steps, cuts)
    if form in ("lengths", "both"):
        call.lengths = given_lengths(call, rng)
    if form in ("resets", "both"):
        call.reset_mask = given_mask(call, rng)
    return call


def given_lengths(call: Call, rng: random.Random) -> Any:
    """Write the lengths in one of the ways in which they may be given."""
    if not call.batched:
        n = call.steps[0]
        return rng.choice([n, torch.tensor(n), torch.tensor(n, dtype=torch.int32), np.int64(n)])
    exact = torch.tensor(call.steps, dtype=torch.int64)
    ways = [call.steps, tuple(call.steps), exact, exact.int(), exact.repeat_interleave(2)[::2]]
    return rng.choice([*ways, np.asarray(call.steps, np.int16), exact.flip(0).numpy()[::-1]])


def given_mask(call: Call, rng: random.Random) -> Tensor:
    mask = call.cuts if call.batched else call.cuts[:, 0]
    mask = mask.T if call.batched and call.module.batch_first else mask
    wide = mask.repeat_interleave(2, -1)[..., ::2]
    return rng.choice([mask, mask.contiguous(), wide, gate.strided(mask, rng)])


def wrong_lengths(call: Call, rng: random.Random) -> Any:
    """Make lengths that do not fit the input, or are no lengths."""
    steps: Any = list(call.steps) if call.batched else call.steps[0]
    exact = torch.tensor(steps, dtype=torch.int64)
    far = rng.choice([*EXTREME, call.T + 1])
    outside: Any = far
    if call.batched and call.B:
        outside = list(call.steps)
        outside[rng.randrange(call.B)] = far
    odd = [(steps, steps, steps), "lengths", {1: 2}, 1j, object(), [[1], [1, 2]], [None] * call.B]
    tensors = [exact.double(), exact.half(), exact.bool(), exact.short(), exact.to(torch.uint8)]
    hidden = [exact.to("meta"), gate.without_memory(exact, rng), gate.Wrapping(exact)]
    if exact.dim():
        hidden += [exact.to_sparse(), exact[:, None], torch.cat([exact, exact[:1] * 0, exact * 0])]
    if exact.numel() and exact.dim():
        hidden += [gate.freed(exact, rng), exact[1:]]
        tensors += [torch.full([call.B], float("nan"))]
    kinds = [odd, tensors, hidden]
    if call.B:
        kinds += [[outside]] * 3
    wrong = rng.choice(rng.choice(kinds))
    none = call.B == 0 and (isinstance(wrong, list) or getattr(wrong, "shape", None) == (0,))
    return "lengths" if none else wrong


def wrong_mask(call: Call, rng: random.Random) -> Any:
    shape = [call.T, call.B] if call.packed else list(call.tensors["input"].shape[:-1])
    mask = torch.rand(shape) < 0.5
    kinds: list[Any] = [mask.float(), mask.to(torch.uint8), mask.tolist(), mask.numpy(), True]
    kinds += [mask.to("meta"), gate.without_memory(mask, rng), gate.Wrapping(mask)]
    kinds += [mask[None], mask.unsqueeze(-1), torch.zeros([n + 1 for n in shape]).bool()]
    if mask.numel():
        kinds += [mask.to_sparse(), gate.freed(mask, rng)]
    if len(set(shape)) > 1:
        kinds.append(mask.T)
    return rng.choice(kinds)


def change(call: Call, rng: random.Random) -> tuple[list[str], bool]:
    """Change what the call is given; return what was done, and whether it must be refused."""
    if rng.random() < 0.4:
        return [], False
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            call.lengths = wrong_lengths(call, rng)
            return [f"lengths {type(call.lengths).__name__}"], True
        call.reset_mask = wrong_mask(call, rng)
        return [f"reset_mask {type(call.reset_mask).__name__}"], True
    x = call.tensors["input"]
    call.tensors["input"] = x.nan_to_num(0.0, 0.0, 0.0).masked_fill(x.abs() > 1e38, 0.0)
    if call.quantized and rng.random() < 0.4:
        call.tensors |= {n: t for n, t in call.module.named_buffers() if t is not None}
    done = gate.change(call.tensors, rng)
    for name, tensor in call.tensors.items():
        if name in call.module._buffers and isinstance(tensor, Tensor):
            setattr(call.module, name, tensor)
    return done, False


def hx(call: Call) -> Any:
    h0, c0 = call.tensors["h0"], call.tensors["c0"]
    return h0 if call.module.mode != "LSTM" or (h0 is None and c0 is None) else (h0, c0)


def framed(call: Call, x: Any) -> Any:
    return x if call.packed is None else call.packed._replace(data=x)


def run(call: Call, x: Any, states: Any) -> dict[str, Tensor]:
    """Call the module; return y, padded, and the final states."""
    variable = {"lengths": call.lengths, "reset_mask": call.reset_mask}
    y, final = call.module(framed(call, x), states, **variable)
    if isinstance(y, PackedSequence):
        y, _ = pad_packed_sequence(y, call.module.batch_first, total_length=call.T)
    parts = final if isinstance(final, tuple) else (final,)
    return {"y": y, **dict(zip(("h_n", "c_n"), parts, strict=False))}


def weights_of(module: Any) -> Tensors:
    named = module.named_buffers() if isinstance(module, fastrnn.Quantized) else None
    return dict(named or module.named_parameters())


def expected(call: Call, tensors: Tensors, weights: Tensors) -> dict[str, Tensor]:
    """Return what ``run`` must, of tensors in float64."""
    module, x = call.module, tensors["input"]
    if call.packed is not None:
        x, _ = pad_packed_sequence(framed(call, x), module.batch_first, total_length=call.T)
    free = call.lengths is None and call.reset_mask is None and call.packed is None
    call.batched = x.dim() == 3 if free else call.batched
    if not call.batched:
        x = x.unsqueeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    if free:
        call.T, call.B = x.shape[:2]  # which may be others than drawn
        call.steps, call.cuts = [call.T] * call.B, x.new_zeros(x.shape[:2], dtype=torch.bool)
    given = {n: t for n, t in tensors.items() if n in ("h0", "c0")}
    if not call.batched:
        given = {n: t.unsqueeze(1) for n, t in given.items()}
    states = states_by_layer(module, given, call.B)
    results = sweep(module, weights, x, states, call.steps, call.cuts)
    if not call.batched:
        return {n: t.squeeze(1) for n, t in results.items()}
    if module.batch_first:
        results["y"] = results["y"].transpose(0, 1)
    return results


def compare(call: Call, name: str, found: Tensor, exact: Tensor) -> None:
    if call.quantized:
        compare_int8(name, found, exact)
    else:
        gate.compare(name, found, exact, dtype_of(call.module))


def compare_int8(name: str, found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape, f"{name}: {found.shape}, not {exact.shape}"
    assert found.dtype is torch.float32, f"{name} is {found.dtype}"
    if found.numel():
        off, scale = (found.double() - exact).abs().max().item(), exact.abs().max().item()
        assert off <= INT8_TOLERANCE * max(scale, 1), f"{name} is off by {off:.3g}, of {scale:.3g}"


def plain(value: Any) -> bool:
    return type(value) is Tensor and value.layout is torch.strided and not value.is_meta


def gradients(
    outputs: dict[str, Tensor], above: dict[str, Tensor], sources: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of the sources; without any step outputs are constants."""
    heads = [n for n in above if outputs[n].requires_grad]
    if not heads:
        return tuple(torch.zeros_like(s) for s in sources)
    return torch.autograd.grad(
        [outputs[n] for n in heads],
        sources,
        [above[n] for n in heads],
        allow_unused=True,
        materialize_grads=True,
    )


def answer(call: Call, rng: random.Random) -> str:
    """Make the call and check what it gives."""
    dtype, module = dtype_of(call.module), call.module
    # Reduced gradients differ from exact ones by what h was rounded by, relu's by its kink.
    exact_enough = dtype in (torch.float32, torch.float64) and module.mode != "RNN_RELU"
    inputs = {n: call.tensors[n] for n in ("input", "h0", "c0")}
    train = exact_enough and not call.quantized and rng.random() < 0.7
    for name, tensor in inputs.items():
        if plain(tensor) and tensor.is_floating_point():
            call.tensors[name] = inputs[name] = tensor.detach().requires_grad_(train)
    for _ in range(rng.choice([1, 2])):
        with torch.set_grad_enabled(train):
            found = run(call, inputs["input"], hx(call))
    exact = {
        n: t.detach().double().requires_grad_(train) for n, t in inputs.items() if t is not None
    }
    weights = {n: w.detach().double().requires_grad_(train) for n, w in weights_of(module).items()}
    true = expected(call, exact, weights)
    assert found.keys() == true.keys(), f"{list(found)}, not {list(true)}"
    for name, tensor in found.items():
        compare(call, name, tensor.detach(), true[name].detach())
    if not train:
        return "answered"
    sources = {n: t for n, t in inputs.items() if t is not None} | weights_of(module)
    exact |= weights
    heads = {n: torch.randn(found[n].shape, dtype=dtype) for n in found if rng.random() < 0.8}
    got = gradients(found, heads, list(sources.values()))
    wanted = gradients(true, {n: a.double() for n, a in heads.items()}, [exact[n] for n in sources])
    for name, ours, theirs in zip(sources, got, wanted, strict=True):
        compare(call, f"d.{name}", ours, theirs)
    return "answered"


def fuzz(number: int) -> str:
    """Make call ``number``; return what became of it."""
    rng = random.Random(number)
    call = valid_call(rng)
    changed, wrong = change(call, rng)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return outcome(call, changed, wrong, rng)
    except Exception as error:
        what = f"call {number} ({call.module}, {', '.join(changed)})"
        raise AssertionError(f"{what}: {error!r}") from error


def outcome(call: Call, changed: list[str], wrong: bool, rng: random.Random) -> str:
    harmless = {f.__name__ for f in gate.SAME_VALUES + gate.OTHER_VALUES}
    try:
        result = answer(call, rng)
    except gate.REFUSALS as error:
        gate.checked_refusal(error, call.module._owner)
        if not wrong and all(c.split()[-1] in harmless for c in changed):
            raise AssertionError(f"refused a valid call: {error}") from error
        return "refused"
    assert not wrong, "was answered"
    return result


if __name__ == "__main__":
    gate.main(fuzz)
