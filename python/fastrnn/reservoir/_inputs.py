"""What a caller gives, in the one form that the layers take: (M, T, B, I), and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Sequences = Tensor | PackedSequence


@dataclass(frozen=True)
class Batch:
    """One call's input, and how its results are to be laid out."""

    x: Tensor  # (T, B, I), or (M, T, B, I) of a population
    lengths: Tensor | None
    batched: bool
    batch_first: bool
    packed: PackedSequence | None

    def output(self, y: Tensor) -> Sequences:
        """Lay out y, (..., T, B, F), as the input was."""
        if self.packed is not None:
            order = self.packed.sorted_indices
            lengths = self.lengths
            assert lengths is not None
            if order is not None:
                y, lengths = y.index_select(-2, order), lengths[order]
            data, sizes, *_ = pack_padded_sequence(y, lengths)
            return PackedSequence(data, sizes, order, self.packed.unsorted_indices)
        if not self.batched:
            return y.squeeze(-2)
        return y.transpose(-3, -2) if self.batch_first else y

    def state(self, h: Tensor) -> Tensor:
        """Lay out h, (..., L*D, B, N), as the input was."""
        return h if self.batched else h.squeeze(-2)


def check_tensor(owner: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Refuse other dtypes and devices."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{owner}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype != dtype:
        raise ValueError(
            f"{owner}: {name} must have the weights' dtype {dtype}, got {x.dtype}; convert it, or "
            f"the module with .to({x.dtype})"
        )
    if x.device.type not in ("cpu", "meta"):
        raise ValueError(f"{owner}: {name} must be on the CPU, got {x.device}")


def check_shape(owner: str, name: str, form: str, expected: tuple[int, ...], x: Tensor) -> None:
    """Refuse other shapes; -1 stands for any size."""
    fits = x.dim() == len(expected) and all(
        e in (-1, s) for e, s in zip(expected, x.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("*" if e < 0 else str(e) for e in expected)
        raise ValueError(
            f"{owner}: {name} must have shape {form} = ({sizes}), got {tuple(x.shape)}"
        )


def check_lengths(owner: str, lengths: Tensor | list[int], T: int, B: int) -> Tensor:
    """Return lengths as an int64 tensor on the CPU."""
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"{owner}: lengths must be integers, got {lengths.dtype}")
    lengths = lengths.to("cpu", torch.int64).contiguous()
    check_shape(owner, "lengths", "(B,)", (B,), lengths)
    if B and (int(lengths.min()) < 0 or int(lengths.max()) > T):
        raise ValueError(
            f"{owner}: lengths must be in [0, T] = [0, {T}], got {int(lengths.min())} to "
            f"{int(lengths.max())}"
        )
    return lengths


def read(
    owner: str,
    x: Sequences,
    lengths: Tensor | list[int] | None,
    input_size: int,
    batch_first: bool,
    dtype: torch.dtype,
) -> Batch:
    """Check an input and bring it to (T, B, I)."""
    packed = x if isinstance(x, PackedSequence) else None
    if isinstance(x, PackedSequence):
        if lengths is not None:
            raise ValueError(f"{owner}: lengths must not be given with a PackedSequence")
        check_tensor(owner, "x", x.data, dtype)
        check_shape(owner, "x.data", "(rows, I)", (-1, input_size), x.data)
        padded, lengths = pad_packed_sequence(x)
        return Batch(padded, lengths, True, False, packed)
    check_tensor(owner, "x", x, dtype)
    if x.dim() == 2:
        check_shape(owner, "x", "(T, I)", (-1, input_size), x)
        dense = x.unsqueeze(1)
    else:
        form = "(B, T, I)" if batch_first else "(T, B, I)"
        check_shape(owner, "x", f"{form} or (T, I)", (-1, -1, input_size), x)
        dense = x.transpose(0, 1) if batch_first else x
    T, B = dense.shape[:2]
    checked = None if lengths is None else check_lengths(owner, lengths, T, B)
    return Batch(dense, checked, x.dim() == 3, batch_first and x.dim() == 3, None)
