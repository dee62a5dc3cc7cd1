"""fastrnn in float32: the ratio to it is what fewer bits bring."""

from __future__ import annotations

from dataclasses import replace

from registry import Case, Data

from . import Side
from .fastrnn_modules import build as build_reduced


def build(case: Case, data: Data, threads: int) -> Side:
    return build_reduced(replace(case, dtype="float32"), data, threads)
