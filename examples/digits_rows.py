"""Classify handwritten digits row by row with fastrnn.RNN, beside torch.nn.RNN.

Two stacked relu Elman layers of 128 units read an image one row a step; the last step goes through
Dense(32, relu) and Dense(10). Both libraries train the model from the same seed on the same
batches, epoch by epoch in turn, so that both see the machine in the same state.

Times, accuracies and the picture are float32's. The training is repeated in float64 to compare the
loss curves: about once an epoch float32's rounding puts a relu on the other side of its kink, which
training then amplifies to 0.01-0.1 of loss. Any two float32 libraries part that way.

    python examples/digits_rows.py                  # scikit-learn's 8 x 8 digits, 20 epochs
    python examples/digits_rows.py --data DIR       # MNIST's IDX files (.gz or not), 5 epochs
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import fastrnn

BATCH = 32
LIBRARIES = {"fastrnn": fastrnn.RNN, "torch.nn": nn.RNN}
Split = tuple[Tensor, Tensor]  # images (N, rows, columns) in [0, 1], labels (N,)


class RowClassifier(nn.Module):
    def __init__(self, rnn: type[nn.Module], columns: int) -> None:
        super().__init__()
        self.rnn = rnn(columns, 128, num_layers=2, nonlinearity="relu", batch_first=True)
        self.head = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.rnn(images)[0][:, -1])


class Trainer:
    """A model, the seconds spent in training it and its curves by epoch."""

    def __init__(self, rnn: type[nn.Module], data: Split, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = RowClassifier(rnn, columns=data[0].shape[2]).to(data[0].dtype)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.seconds = 0.0
        self.curves: dict[str, list[float]] = defaultdict(list)
        for _ in range(5):  # the first calls allocate and start threads: not timed
            self.evaluate((data[0][:BATCH], data[1][:BATCH]))[0].backward()

    def evaluate(self, data: Split) -> tuple[Tensor, float]:
        """Return the mean loss and the accuracy."""
        scores = self.model(data[0])
        correct = (scores.argmax(1) == data[1]).sum().item()
        return nn.functional.cross_entropy(scores, data[1]), correct / len(data[1])

    def record(self, part: str, loss: float, accuracy: float) -> None:
        self.curves[f"{part} loss"].append(loss)
        self.curves[f"{part} accuracy"].append(accuracy)

    def epoch(self, batches: list[Split], validation: Split, progress: tqdm) -> None:
        sums = np.zeros(3)
        begin = time.perf_counter()
        for batch in batches:
            loss, accuracy = self.evaluate(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            sums += np.array([loss.item(), accuracy, 1]) * len(batch[1])
            progress.update()
        self.seconds += time.perf_counter() - begin
        self.record("training", *sums[:2] / sums[2])
        with torch.no_grad():
            loss, accuracy = self.evaluate(validation)
        self.record("validation", loss.item(), accuracy)


def read_idx(directory: Path, name: str) -> Tensor:
    path = directory / name
    if not path.exists():
        path = directory / f"{name}.gz"
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + shape.nbytes)
    return torch.tensor(values.reshape(shape))


def load(directory: Path | None, seed: int) -> tuple[Split, Split]:
    if directory is None:
        from sklearn.datasets import load_digits

        images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        images, labels = images[order].reshape(-1, 8, 8) / 16, labels[order]
        cut = len(labels) * 4 // 5
        return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])

    def split(part: str) -> Split:
        images = read_idx(directory, f"{part}-images-idx3-ubyte")
        return images / 255, read_idx(directory, f"{part}-labels-idx1-ubyte").long()

    return split("train"), split("t10k")


def train(data: Split, validation: Split, epochs: int, seed: int) -> dict[str, Trainer]:
    trainers = {name: Trainer(rnn, data, seed) for name, rnn in LIBRARIES.items()}
    shuffle = torch.Generator().manual_seed(seed)
    steps = len(trainers) * epochs * -(-len(data[1]) // BATCH)
    with tqdm(total=steps, desc=str(data[0].dtype), unit="batch") as progress:
        for _ in range(epochs):
            order = torch.randperm(len(data[1]), generator=shuffle).split(BATCH)
            batches = [(data[0][rows], data[1][rows]) for rows in order]
            for trainer in trainers.values():
                trainer.epoch(batches, validation, progress)
    return trainers


def plot(trainers: dict[str, Trainer], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for part, color in (("training", "tab:blue"), ("validation", "tab:orange")):
            for (library, trainer), line in zip(trainers.items(), (".-", "x--"), strict=True):
                curve = trainer.curves[f"{part} {quantity}"]
                label = f"{part}, {library}"
                axes.plot(range(1, len(curve) + 1), curve, line, color=color, label=label)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files, .gz or not")
    parser.add_argument("--quick", action="store_true", help="2 epochs, at most 1,000 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("digits_rows.png"), metavar="PNG")
    options = parser.parse_args()

    splits = load(options.data, options.seed)
    epochs = 2 if options.quick else 5 if options.data else 20
    limit = 1000 if options.quick else None
    runs = {}
    for dtype in (torch.float32, torch.float64):
        pair = [(images[:limit].to(dtype), labels[:limit]) for images, labels in splits]
        runs[dtype] = train(*pair, epochs, options.seed)
    plot(runs[torch.float32], options.output)

    for library, trainer in runs[torch.float32].items():
        accuracy = trainer.curves["validation accuracy"][-1]
        print(f"{library}: validation accuracy {accuracy:.4f}, training {trainer.seconds:.2f} s")
    ours, theirs = (trainer.seconds for trainer in runs[torch.float32].values())
    print(f"time of torch.nn / fastrnn: {theirs / ours:.2f}, {torch.get_num_threads()} threads")
    for dtype, trainers in runs.items():
        ours, theirs = (trainer.curves for trainer in trainers.values())
        losses = [key for key in ours if key.endswith("loss")]
        difference = max(np.abs(np.subtract(ours[key], theirs[key])).max() for key in losses)
        print(f"largest difference of the loss curves, {dtype}: {difference:.1e}")
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
