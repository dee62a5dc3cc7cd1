"""Train an LSTM on several processes: DistributedDataParallel or FSDP2, with restarts.

    python examples/distributed.py                                      # one process
    torchrun --nproc-per-node 2 examples/distributed.py                 # DistributedDataParallel
    torchrun --nproc-per-node 2 examples/distributed.py --fsdp          # sharded parameters
    torchrun --nproc-per-node 2 --max-restarts 1 examples/distributed.py --fail-at 80

The task is the adding problem: a sequence has two marked numbers, their sum is asked for. A step's
batch follows from its number alone and every process takes its share, so all of these train alike:
the losses differ by rounding. Each process that is started anew, by hand or by torchrun after a
failure, goes on from the checkpoint.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastrnn

ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Adder(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.recurrent = fastrnn.LSTM(2, hidden_size, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(x)
        return self.head(y[:, -1]).squeeze(1)


def batch(step: int, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the sequences of a step, and what their marked numbers add up to."""
    generator = torch.Generator().manual_seed(step)
    numbers = torch.rand(size, length, generator=generator)
    places = torch.rand(size, length, generator=generator).topk(2).indices
    marks = torch.zeros(size, length).scatter_(1, places, 1.0)
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(1)


def parallel(model: Adder, fsdp: bool) -> nn.Module:
    """Prepare the model for the processes there are."""
    if not dist.is_initialized():
        return model
    if not fsdp:
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.recurrent, mesh=mesh)  # gathered for its own forward and backward only
    return fully_shard(model, mesh=mesh)


def save(path: Path, step: int, model: nn.Module, optimizer: Any) -> None:
    """Write a checkpoint that any number of processes can go on from."""
    weights, moments = get_state_dict(model, optimizer, options=WHOLE)  # by all processes
    if not dist.is_initialized() or dist.get_rank() == 0:
        partial = path.with_suffix(".partial")
        torch.save({"step": step, "model": weights, "optimizer": moments}, partial)
        os.replace(partial, path)  # a failure in between leaves the old one


def load(path: Path, model: nn.Module, optimizer: Any) -> int:
    """Read the checkpoint, if there is one; return how many steps have been done."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
        options=WHOLE,
    )
    done: int = saved["step"]
    return done


def train(arguments: argparse.Namespace) -> None:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = parallel(Adder(arguments.hidden), arguments.fsdp)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = load(arguments.checkpoint, model, optimizer)
    for step in range(first, arguments.steps):
        if step == arguments.fail_at and ATTEMPT == 0 and rank == world - 1:
            raise RuntimeError(f"failing at step {step}, as asked")
        x, target = batch(step, arguments.batch, arguments.length)
        own = slice(rank * len(x) // world, (rank + 1) * len(x) // world)
        loss = nn.functional.mse_loss(model(x[own]), target[own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        mean = loss.detach() / world
        if world > 1:
            dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step} loss {mean.item():.9f}", flush=True)
        if (step + 1) % arguments.checkpoint_every == 0:
            save(arguments.checkpoint, step + 1, model, optimizer)


def start() -> None:
    """Join the other processes that torchrun has started.

    ``init_process_group("gloo")`` would do, but for a restart: torchrun keeps the store, and a
    process could find the address of one that is gone. So every attempt has keys of its own.
    """
    store, rank, world = next(dist.rendezvous("env://"))
    keys = dist.PrefixStore(f"attempt {ATTEMPT}", store)
    dist.init_process_group("gloo", store=keys, rank=rank, world_size=world)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an LSTM on several processes.")
    parser.add_argument("--fsdp", action="store_true", help="shard the parameters (FSDP2)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--checkpoint", type=Path, default=Path("distributed.pt"))
    parser.add_argument("--checkpoint-every", type=int, default=50, help="steps")
    parser.add_argument("--fail-at", type=int, default=-1, help="step at which to fail once")
    arguments = parser.parse_args()
    if not dist.is_torchelastic_launched():
        train(arguments)
        return
    start()
    train(arguments)
    dist.barrier()
    gc.collect()  # the model holds on to the process group, which must not outlive this
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
