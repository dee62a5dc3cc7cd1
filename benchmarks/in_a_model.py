"""Time a whole model, a recurrent layer between linear ones, with fastrnn's layer and with torch's.

python benchmarks/in_a_model.py --json in-a-model.json

On several threads a layer is called just after torch's operations, and they just after it: what the
threads of either side still do then is part of the time.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastrnn
import machine
from beyond import Sides, medians
from report import geometric_mean

CELLS = ("RNN", "GRU", "LSTM")
SHAPES = ((28, 32, 28, 128), (100, 32, 64, 128), (100, 32, 64, 256), (50, 8, 64, 512))
SHAPES += ((256, 1, 64, 256), (100, 1, 64, 512))  # T, B, features, H


class Model(nn.Module):
    """A linear layer, tanh, a recurrent layer, relu and a linear layer."""

    def __init__(self, layer: type[nn.Module], features: int, H: int) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(features, H), nn.Linear(H, features)
        self.layer = layer(H, H)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(torch.relu(self.layer(torch.tanh(self.before(x)))[0]))
        return y


def model_sides(cell: str, shape: tuple[int, ...], training: bool) -> Sides:
    T, B, features, H = shape
    x, target = torch.randn(T, B, features), torch.randn(T, B, features)
    ours = Model(getattr(fastrnn, cell), features, H)
    theirs = Model(getattr(nn, cell), features, H)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))

    def train(model: nn.Module) -> None:
        loss = (model(x) - target).square().mean()
        torch.autograd.grad(loss, list(model.parameters()))

    step = train if training else torch.no_grad()(lambda model: model(x))
    return {"fastrnn": lambda: step(ours), "torch": lambda: step(theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=41, help="samples of each side")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    processors = machine.confine(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    disturbance = machine.Disturbance(processors)
    cases = [(m, c, s) for m in ("inference", "training") for c in CELLS for s in SHAPES]
    results, found = [], dict[str, list[float]]()
    with tqdm(cases, unit="case", disable=None) as progress:
        for mode, cell, shape in progress:
            seconds = medians(model_sides(cell, shape, mode == "training"), options.rounds)
            ratio = seconds["torch"] / seconds["fastrnn"]
            found.setdefault(mode, []).append(ratio)
            results.append({"mode": mode, "cell": cell, "shape": shape, "seconds": seconds})
            text = "  ".join(f"{name} {s * 1e3:8.3f} ms" for name, s in seconds.items())
            progress.write(f"{mode:9} {cell:4} {shape!s:18} {text}  torch / fastrnn {ratio:.2f}")
    for mode, values in found.items():
        print(f"{mode}: torch / fastrnn {geometric_mean(values):.2f}, least {min(values):.2f}")
    others = disturbance.share()
    print(f"{others or 0:.0%} of the processors' time went to others")
    if options.json:
        command = f"python benchmarks/in_a_model.py --threads {options.threads}"
        outcome = {
            "machine": machine.describe(processors) | {"command": command},
            "threads": options.threads,
            "FASTRNN_OWN_THREADS": os.environ.get("FASTRNN_OWN_THREADS", "0"),
            "time_of_others": others,
            "results": results,
        }
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")


if __name__ == "__main__":
    main()
