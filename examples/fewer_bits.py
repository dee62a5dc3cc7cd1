"""What fewer bits cost and bring: an LSTM that reads digits in four formats of numbers.

A classifier of one LSTM layer of 256 units is trained in float32, once for each seed; then the same
weights classify the validation images in every format. Printed are the accuracy, how many images
are classified otherwise than in float32, the largest change of a class's probability, the time of
the layer and the bytes of its weights.

    python examples/fewer_bits.py                  # scikit-learn's 8 x 8 digits
    python examples/fewer_bits.py --data DIR       # MNIST's IDX files (.gz or not)
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from statistics import median

import torch
from digits_rows import BATCH, Split, load
from torch import Tensor, nn
from tqdm import tqdm

import fastrnn

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RowClassifier(nn.Module):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(columns, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.lstm(images)[0][:, -1].float())


def train(data: Split, epochs: int, seed: int, progress: tqdm) -> RowClassifier:
    torch.manual_seed(seed)
    model = RowClassifier(data[0].shape[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[1])).split(BATCH):
            loss = nn.functional.cross_entropy(model(data[0][rows]), data[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.update()
    return model.eval()


def reduced(model: RowClassifier) -> dict[str, RowClassifier]:
    """Return the model with its LSTM in every format; the head stays float32."""
    models = {"float32": model, "int8": fastrnn.quantize_dynamic(model)}
    for name in ("bfloat16", "float16"):
        models[name] = copy.deepcopy(model)
        models[name].lstm.to(FORMATS[name])
    return models


def milliseconds(model: RowClassifier, images: Tensor) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        model.lstm(images)
        times.append(time.perf_counter() - begin)
    return median(times) * 1e3


def weight_bytes(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in layer.state_dict().values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files, .gz or not")
    parser.add_argument("--quick", action="store_true", help="2 epochs, one seed")
    options = parser.parse_args()
    seeds, epochs = (1, 2) if options.quick else (3, 5 if options.data else 20)
    data, (images, labels) = load(options.data, seed=0)
    data, images = (data[0].float(), data[1]), images.float()

    rows: dict[str, list[tuple[float, ...]]] = {}
    total = seeds * epochs * -(-len(data[1]) // BATCH)
    with tqdm(total=total, unit="batch") as progress, torch.no_grad():
        for seed in range(seeds):
            with torch.enable_grad():
                model = train(data, epochs, seed, progress)
            exact = model(images).softmax(1)
            for name, small in reduced(model).items():
                x = images.to(FORMATS.get(name, torch.float32))
                found = small(x).softmax(1)
                classes = found.argmax(1)
                rows.setdefault(name, []).append(
                    (
                        (classes == labels).double().mean().item(),
                        (classes != exact.argmax(1)).sum().item(),
                        (found - exact).abs().max().item(),
                        milliseconds(small, x),
                        weight_bytes(small.lstm),
                    )
                )
    print(f"{len(labels)} images, {seeds} seeds, mean; {torch.get_num_threads()} threads")
    print(f"{'format':<9} {'accuracy':>8} {'changed':>8} {'max dp':>8} {'ms':>8} {'bytes':>9}")
    for name, values in rows.items():
        mean = [sum(column) / len(values) for column in zip(*values, strict=True)]
        accuracy, changed, distance, ms, size = mean
        print(f"{name:<9} {accuracy:8.4f} {changed:8.1f} {distance:8.4f} {ms:8.2f} {size:9.0f}")


if __name__ == "__main__":
    main()
