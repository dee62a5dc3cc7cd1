"""Train a GRU critic whose slope is held at one: a penalty on a gradient.

The critic tells slow waves from fast ones by one number, as large as it can make it for the one
and as small for the other. Without a penalty it grows as steep as training lets it; with one on
the norm of its gradient with respect to the input, as in WGAN-GP, the slope stays near one and the
difference estimates a distance between the two kinds of waves. The penalty's own gradient needs
the derivative of the backward pass.

    python examples/gradient_penalty.py [--steps 150]

Source: I. Gulrajani et al., Improved Training of Wasserstein GANs, arXiv:1704.00028, equation 3.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from tqdm import trange

import fastrnn


class Critic(nn.Module):
    """One number for each sequence: the mean output of a GRU, read by a linear layer."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gru = fastrnn.GRU(1, hidden_size)
        self.readout = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.gru(x)[0].mean(0)).squeeze(1)


def waves(frequency: float, count: int, generator: torch.Generator, steps: int = 40) -> Tensor:
    """Return noisy sines of one frequency and any phase, (T, B, 1)."""
    phase = 6.28 * torch.rand(count, generator=generator)
    x = torch.sin(frequency * torch.arange(steps).unsqueeze(1) + phase)
    return (x + 0.1 * torch.randn(steps, count, generator=generator)).unsqueeze(-1)


def slopes(critic: Critic, slow: Tensor, fast: Tensor, generator: torch.Generator) -> Tensor:
    """Return the norms of the gradient at points between pairs of waves, differentiably."""
    share = torch.rand(slow.shape[1], 1, generator=generator)
    between = (share * slow + (1 - share) * fast).requires_grad_()
    [gradient] = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return gradient.square().sum((0, 2)).sqrt()


def train(weight: float, steps: int, seed: int = 0) -> tuple[float, float]:
    """Return the critic's mean difference and its mean slope, on new waves."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    critic = Critic(32)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)

    def batch() -> tuple[Tensor, Tensor]:
        return waves(0.2, 64, generator), waves(0.6, 64, generator)

    for _ in trange(steps, desc=f"penalty {weight:g}", disable=None):
        slow, fast = batch()
        loss = critic(fast).mean() - critic(slow).mean()
        if weight:
            loss = loss + weight * (slopes(critic, slow, fast, generator) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    slow, fast = batch()
    difference = critic(slow).mean() - critic(fast).mean()
    return difference.item(), slopes(critic, slow, fast, generator).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="of training (150)")
    options = parser.parse_args()
    for weight in (0.0, 10.0):
        difference, slope = train(weight, options.steps)
        print(f"penalty {weight:g}: difference {difference:.2f}, slope {slope:.2f}")


if __name__ == "__main__":
    main()
