"""Time what torch.nn does by other means: penalties on gradients, gradients of samples, lengths.

python benchmarks/beyond.py --json beyond.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tqdm import tqdm

import fastrnn
import machine

CELLS = ("RNN", "GRU", "LSTM")
PENALTY = ((50, 32, 64, 128), (100, 8, 32, 32), (28, 32, 28, 128), (30, 16, 256, 256))
SAMPLES = ((28, 32, 28, 64), (50, 32, 64, 128), (100, 32, 32, 32))
LENGTHS = ((100, 32, 256, 256), (28, 32, 28, 128))
RESETS = 0.01  # the probability of one at a step

Sides = dict[str, Callable[[], Any]]


def penalty(cell: str, T: int, B: int, I: int, H: int) -> Sides:
    """One step with a penalty on the gradient of the input: backward through backward."""
    x = torch.randn(T, B, I, requires_grad=True)

    def step(module: nn.Module) -> None:
        y = module(x)[0]
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    ours, theirs = getattr(fastrnn, cell)(I, H), getattr(nn, cell)(I, H)
    return {"fastrnn": lambda: step(ours), "torch": lambda: step(theirs)}


def samples(cell: str, T: int, B: int, I: int, H: int) -> Sides:
    """Gradients of the weights for each of B samples: ``vmap(grad(f))``, and loops over them."""
    module, theirs = getattr(fastrnn, cell)(I, H), getattr(nn, cell)(I, H)
    own = {name: p.detach() for name, p in module.named_parameters()}
    data = torch.randn(B, T, 1, I)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,))[0].square().sum()

    def loop(module: nn.Module) -> list[Tensor]:
        parameters = list(module.parameters())
        each = [torch.autograd.grad(module(x)[0].square().sum(), parameters) for x in data]
        return [torch.stack(gradients) for gradients in zip(*each, strict=True)]

    mapped = vmap(grad(loss), (None, 0))
    return {
        "fastrnn": lambda: mapped(own, data),
        "loop": lambda: loop(module),
        "torch's loop": lambda: loop(theirs),
    }


def lengths(cell: str, T: int, B: int, I: int, H: int, training: bool) -> Sides:
    """Lengths uniform in [T/2, T], resets, all steps, and torch's packing, run and unpacking."""
    ours, theirs = getattr(fastrnn, cell)(I, H), getattr(nn, cell)(I, H)
    x, dy = torch.randn(T, B, I, requires_grad=training), torch.randn(T, B, H)
    steps, mask = case_lengths(T, B), torch.rand(T, B) < RESETS

    def packed() -> Tensor:
        given = pack_padded_sequence(x, steps, enforce_sorted=False)
        return pad_packed_sequence(theirs(given)[0], total_length=T)[0]

    def timed(forward: Callable[[], Tensor], module: nn.Module) -> Callable[[], Any]:
        def train() -> Any:
            return torch.autograd.grad(forward(), [x, *module.parameters()], dy)

        return train if training else torch.no_grad()(forward)

    return {
        "fastrnn": timed(lambda: ours(x, lengths=steps)[0], ours),
        "resets": timed(lambda: ours(x, reset_mask=mask)[0], ours),
        "dense": timed(lambda: ours(x)[0], ours),
        "torch": timed(packed, theirs),
    }


def case_lengths(T: int, B: int) -> Tensor:
    return torch.randint(T // 2, T + 1, (B,), generator=torch.Generator().manual_seed(0))


def medians(sides: Sides, rounds: int) -> dict[str, float]:
    """Time all sides in turn; return the median of each.

    Their order is drawn anew each time: a call finds in the caches what the one before it left, and
    that must not always be the same one.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    drawn = random.Random(0)
    for turn in range(rounds + 2):
        drawn.shuffle(order)
        for name, call in order:
            begin = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in times.items()}


def ratios(kind: str, shape: tuple[int, ...], seconds: dict[str, float]) -> dict[str, float]:
    """Return the other sides' times over fastrnn's; of lengths, what a real step takes too."""
    found = {f"{n} / fastrnn": s / seconds["fastrnn"] for n, s in seconds.items() if n != "fastrnn"}
    if kind.startswith("lengths"):
        T, B = shape[:2]
        real = float(case_lengths(T, B).sum()) / (T * B)
        found["a real step / a dense one"] = seconds["fastrnn"] / real / seconds["dense"]
        found["resets / dense"] = seconds["resets"] / seconds["dense"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples of each side")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    processors = machine.confine(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    disturbance = machine.Disturbance(processors)
    cases = [("penalty", cell, shape) for cell in CELLS for shape in PENALTY]
    cases += [("samples", cell, shape) for cell in CELLS for shape in SAMPLES]
    cases += [
        (f"lengths, {mode}", cell, shape)
        for mode in ("training", "inference")
        for cell in CELLS
        for shape in LENGTHS
    ]
    results = []
    with tqdm(cases, unit="case", disable=None) as progress:
        for kind, cell, shape in progress:
            builders = {"penalty": penalty, "samples": samples}
            sides = (
                builders[kind](cell, *shape)
                if kind in builders
                else lengths(cell, *shape, training=kind.endswith("training"))
            )
            seconds = medians(sides, options.rounds)
            found = ratios(kind, shape, seconds)
            results.append(
                {"kind": kind, "cell": cell, "shape": shape, "seconds": seconds, "ratios": found}
            )
            text = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
            progress.write(f"{kind:20} {cell:5} {shape!s:22} {text}")
    others = disturbance.share()
    print(f"{others or 0:.0%} of the processors' time went to others")
    if options.json:
        described = machine.describe(processors) | {"command": "python benchmarks/beyond.py"}
        outcome = {
            "machine": described,
            "time_of_others": others,
            "results": results,
        }
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")


if __name__ == "__main__":
    main()
