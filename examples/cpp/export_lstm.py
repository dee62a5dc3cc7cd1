"""Write a torch LSTM, an input and torch's output to the file that lstm.cpp reads.

The file holds four int64 (T, B, I, H), then float32 arrays without gaps: weight_ih (4H, I),
weight_hh (4H, H), bias_ih (4H), bias_hh (4H), x (T, B, I), y (T, B, H).

    python export_lstm.py lstm.bin
"""

import sys
from pathlib import Path

import numpy as np
import torch

T, B, I, H = 20, 3, 10, 17  # steps, sequences, inputs, hidden units


def main(path: Path) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(I, H)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        y, _ = lstm(x)
    arrays = [*lstm.state_dict().values(), x, y]
    with path.open("wb") as file:
        np.array([T, B, I, H], dtype="<i8").tofile(file)
        for array in arrays:
            array.numpy().astype("<f4").tofile(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
