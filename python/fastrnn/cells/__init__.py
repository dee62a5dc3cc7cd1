"""The cells, one module each, and their registry."""

from __future__ import annotations

from . import elman, gru, lstm
from ._spec import CellSpec as CellSpec

CELLS: dict[str, CellSpec] = {spec.name: spec for spec in (elman.SPEC, lstm.SPEC, gru.SPEC)}
"""The only Python registry of cells, by the name that the engine knows them under."""
