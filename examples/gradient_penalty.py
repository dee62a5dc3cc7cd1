"""Train a GRU whose output changes little when its input does: a penalty on a gradient.

A classifier of noisy waves learns once without and once with the squared norm of the gradient of
its loss with respect to the input in the loss ("double backpropagation"). The penalty's own
gradient needs the derivative of the backward pass. The price of an adversarial step against the
input shows what it brings.

    python examples/gradient_penalty.py [--steps 200]

Source: H. Drucker and Y. LeCun, Improving generalization performance using double
backpropagation, IEEE Transactions on Neural Networks 3 (1992).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

import fastrnn


class Classifier(nn.Module):
    """The mean output of a GRU, read by a linear layer."""

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.gru = fastrnn.GRU(1, hidden_size)
        self.readout = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.gru(x)[0].mean(0))


def waves(count: int, generator: torch.Generator, steps: int = 50) -> tuple[Tensor, Tensor]:
    """Return noisy sines of three frequencies, (T, B, 1), and which each has."""
    label = torch.randint(0, 3, (count,), generator=generator)
    phase = 6.28 * torch.rand(count, generator=generator)
    time = torch.arange(steps).unsqueeze(1)
    x = torch.sin(0.2 * (1 + label) * time + phase)
    return (x + 0.3 * torch.randn(steps, count, generator=generator)).unsqueeze(-1), label


def train(penalty: float, steps: int, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(64, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in trange(steps, desc=f"penalty {penalty:g}", disable=None):
        x, label = waves(64, generator)
        x.requires_grad_()
        loss = cross_entropy(model(x), label)
        total = loss
        if penalty:
            [slope] = torch.autograd.grad(loss * len(label), x, create_graph=True)
            total = loss + penalty * slope.square().sum(0).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model


def accuracies(model: Classifier, size: float) -> tuple[float, float]:
    """Return the accuracy on new waves, as they are and after a step to the worse."""
    x, label = waves(512, torch.Generator().manual_seed(99))
    x.requires_grad_()
    output = model(x)
    [slope] = torch.autograd.grad(cross_entropy(output, label), x)
    with torch.no_grad():
        moved = model(x + size * slope.sign())
    return tuple((o.argmax(1) == label).float().mean().item() for o in (output, moved))


def main(arguments: list[str] | None = None) -> dict[float, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of training (200)")
    parser.add_argument("--size", type=float, default=0.1, help="of the adversarial step (0.1)")
    options = parser.parse_args(arguments)
    found = {}
    for penalty in (0.0, 1.0):
        found[penalty] = plain, moved = accuracies(train(penalty, options.steps), options.size)
        print(f"penalty {penalty:g}: accuracy {plain:.3f}, {moved:.3f} after the adversarial step")
    return found


if __name__ == "__main__":
    main()
