"""Random use of streams: steps, states and weights, many of them wrong.

What is refused leaves the stream as it was; every other step gives what plain torch computes in
float64 from the state before it, and of float32, float64 and 8-bit weights the module's own bits.
A stream's life follows from its number alone; from the folder tests:
``python -m fuzz.streams --first N --calls 1`` repeats life N.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fuzz import gate, modules
from fuzz.steps import states_by_layer, sweep

STEPS = 8


class Life:
    """A stream, the module that it is of, and a copy of this with the weights that it has taken."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.module = modules.draw_module(rng, bidirectional=False, batch_first=False)
        self.dtype = modules.dtype_of(self.module)
        self.batch = rng.choice([1, 1, 2, 5, 17])
        self.stream = self.module.stream(self.batch)
        self.taken = copy.deepcopy(self.module)

    def states(self) -> list[Tensor]:
        state = self.stream.state
        return list(state) if isinstance(state, tuple) else [state]

    def refuses(self, call: Any, valid: bool) -> bool:
        """Make a call; return whether it was refused, which must not change the state."""
        before = self.states()
        try:
            call()
        except gate.REFUSALS as error:
            gate.checked_refusal(error, self.module._owner)
            if valid:
                raise AssertionError(f"refused a valid call: {error}") from error
            for now, then in zip(self.states(), before, strict=True):
                assert torch.equal(now, then), "a refused call changed the state"
            return True
        return False

    def changed(self, tensors: dict[str, Any]) -> bool:
        """Perhaps change some tensors; return whether they must be taken all the same."""
        if self.rng.random() < 0.5:
            return True
        harmless = {f.__name__ for f in gate.SAME_VALUES + gate.OTHER_VALUES}
        return all(c.split()[-1] in harmless for c in gate.change(tensors, self.rng))

    def step(self) -> bool:
        """Do a step; return whether it was refused."""
        x = torch.randn(self.batch, self.module.input_size).to(self.dtype)
        single = self.batch == 1 and self.rng.random() < 0.3
        tensors: dict[str, Any] = {"input": x[0] if single else x}
        valid = self.changed(tensors)
        before, found = self.states(), list[Tensor]()
        if self.refuses(lambda: found.append(self.stream.step(tensors["input"])), valid):
            return True
        x = tensors["input"].detach()
        self.check(found[0], x if x.dim() == 2 else x[None], x.dim() == 1, before)
        return False

    def check(self, y: Tensor, x: Tensor, single: bool, before: list[Tensor]) -> None:
        names, after = ("h0", "c0"), self.states()
        exact = {n: s.double() for n, s in zip(names, before, strict=False)}
        weights = {n: w.detach().double() for n, w in modules.weights_of(self.taken).items()}
        states = states_by_layer(self.taken, exact, self.batch)
        resets = torch.zeros(1, self.batch, dtype=torch.bool)
        true = sweep(self.taken, weights, x.double()[None], states, [1] * self.batch, resets)
        true["y"] = true["y"][0, 0] if single else true["y"][0]
        found = {"y": y, **dict(zip(("h_n", "c_n"), after, strict=False))}
        for name, tensor in found.items():
            self.compare(name, tensor, true[name])
        if self.dtype is torch.bfloat16:  # whose c the module takes and gives rounded
            return
        with torch.no_grad():
            out, final = self.taken(x[None], tuple(before) if len(before) > 1 else before[0])
        assert torch.equal(out[0, 0] if single else out[0], y), "y has other bits than the module's"
        for own, ours in zip(final if len(before) > 1 else (final,), after, strict=True):
            assert torch.equal(own, ours), "the state has other bits than the module's"

    def compare(self, name: str, found: Tensor, exact: Tensor) -> None:
        if isinstance(self.module, fastrnn.Quantized):
            modules.compare_int8(name, found, exact)
        elif name == "c_n":
            gate.compare(name, found.to(self.dtype), exact, self.dtype)
            assert found.dtype is self.stream.cell_dtype
        else:
            gate.compare(name, found, exact, self.dtype)

    def assign(self) -> bool:
        """Give the stream a state; return whether it was refused."""
        drawn = modules.draw_states(self.module, [self.batch], self.dtype)
        if drawn["c0"] is not None:
            drawn["c0"] = drawn["c0"].to(self.stream.cell_dtype)
        valid = self.changed(drawn)
        value = drawn["h0"] if self.module.mode != "LSTM" else (drawn["h0"], drawn["c0"])
        if self.rng.random() < 0.1:
            valid, value = False, self.rng.choice([None, (), "h0", (value,) * 3, 1.0])
        if self.refuses(lambda: setattr(self.stream, "state", value), valid):
            return True
        given = value if isinstance(value, tuple | list) else (value,)
        for now, then in zip(self.states(), given, strict=True):
            assert torch.equal(now, then), "the state is not the one that was assigned"
        return False

    def refresh(self) -> bool:
        """Change the module's weights, perhaps to wrong ones; return whether these were refused."""
        weights: dict[str, Any] = {
            n: torch.randn(w.shape).to(w.dtype) * self.module.hidden_size**-0.5
            if w.is_floating_point()
            else torch.randint(-127, 128, w.shape, dtype=torch.int8)
            for n, w in modules.weights_of(self.taken).items()
        }
        if isinstance(self.module, fastrnn.Quantized):
            weights |= {n: w.abs() / 127 for n, w in weights.items() if n.startswith("scale")}
        valid = self.changed(weights)
        for name, weight in weights.items():
            self.put(name, weight)
        if not self.refuses(self.stream.refresh, valid):
            self.taken.load_state_dict(weights)
            return False
        for name, weight in self.taken.state_dict().items():
            self.put(name, weight.clone())
        return True

    def put(self, name: str, weight: Any) -> None:
        """Give the module a weight past torch's own checks."""
        if name in self.module._buffers:
            self.module._buffers[name] = weight
        else:
            self.module._parameters.pop(name, None)
            self.module.__dict__[name] = weight

    def reset(self) -> bool:
        self.stream.reset()
        assert not any(s.any() for s in self.states()), "the state is not zeros"
        return False


def wrong_stream(rng: random.Random) -> None:
    """Make a stream of what has none."""
    module, batch = modules.draw_module(rng), rng.choice([0, -1, -(2**63), 1.5, "1", None, 1])
    if batch == 1:
        module = modules.draw_module(rng, bidirectional=True)
    try:
        module.stream(batch)
    except gate.REFUSALS as error:
        gate.checked_refusal(error, module._owner)
        return
    raise AssertionError(f"made a stream of {batch} sequences")


def fuzz(number: int) -> str:
    """Live through life ``number``; return whether anything was refused."""
    rng, refused, done, module = random.Random(number), False, [], None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if rng.random() < 0.1:
                wrong_stream(rng)
                return "refused"
            life = Life(rng)
            module = life.module
            for _ in range(STEPS):
                act = rng.choice([life.step] * 4 + [life.assign] * 2 + [life.refresh, life.reset])
                done.append(act.__name__)
                refused |= act()
    except Exception as error:
        raise AssertionError(f"call {number} ({module}, {', '.join(done)}): {error!r}") from error
    return "refused" if refused else "answered"


if __name__ == "__main__":
    gate.main(fuzz)
