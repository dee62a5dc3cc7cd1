"""The house keeps its plan: who may include, import and name whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from _support import ROOT
from fastrnn.cells import CELLS

CSRC, CUDA, PACKAGE = ROOT / "csrc", ROOT / "cuda", ROOT / "python" / "fastrnn"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason=f"no sources at {CSRC}")

PUBLIC = "include/fastrnn/fastrnn.h"
PUBLIC_RESERVOIR = "include/fastrnn/reservoir.h"
# What the files of a place may include besides files of the same place and the standard library.
# A place is a folder of csrc/, or a file right in it.
MAY_INCLUDE = {
    "include": set(),
    "check.h": set(),
    "math.h": set(),
    "cells": {"math.h"},
    "simd": {"math.h"},
    "variants": {"math.h", "cells/contract.h", PUBLIC},
    "cpu": {
        "simd/dual.h",
        "simd/factors.h",
        "simd/tiles.h",
        "simd/transpose.h",
        "check.h",
        "cells/list.h",
        "reservoir/kernels.h",
        PUBLIC,
    },
    "reservoir": {
        "simd/vec.h",
        "simd/transpose.h",
        "check.h",
        "cpu/arena.h",
        "cpu/isa.h",
        "cpu/kernels.h",
        "cpu/threads.h",
        PUBLIC,
        PUBLIC_RESERVOIR,
    },
    "dispatch.cpp": {"check.h", "cpu/isa.h", "cpu/kernels.h", PUBLIC},
    "pages.cpp": {PUBLIC},
    "segments.cpp": {"check.h", PUBLIC},
    "bindings": {"check.h", PUBLIC, PUBLIC_RESERVOIR},
    "cuda": {"check.h", "math.h", "cells/list.h", PUBLIC},
}
# What echo state networks may import besides: standard modules, and extras within functions (the
# scikit-learn estimators are a module of their own, loaded when asked for).
RESERVOIR_ONLY = "contextlib itertools matplotlib optuna pathlib scipy sklearn tqdm".split()
# Files of this package, lowest first: each imports only what stands before it.
IMPORT_ORDER = (
    [
        "_core",
        "cells._spec",
        "_problem",
        "_errors",
        "_checks",
        "_cuda",
        "_cuda_device",
        "_cuda_ops",
        "_memory",
        "_threads",
        "_plans",
        "_ops",
        "_reference",
        "_chains",
        "_engine_chains",
        "_second_order",
        "_transforms",
        "_library",
        "_autograd",
        "_repeat",
        "_variable_length",
        "_onnx_export",
        "_autocast",
        "_stream_ops",
        "streaming",
        "_base",
    ]
    + [f"cells.{name}" for name in CELLS]
    + ["cells", "functional", "quantize", "cuda"]
    + [
        "reservoir.matrices",
        "reservoir._engine",
        "reservoir._inputs",
        "reservoir._layer",
        "reservoir.spectrum",
        "reservoir._run",
        "reservoir._arguments",
        "reservoir.plasticity",
        "reservoir.reservoir",
        "reservoir.population",
        "reservoir._ops",
        "reservoir._moments",
        "reservoir._rows",
        "reservoir._solve",
        "reservoir._sums",
        "reservoir.readout",
        "reservoir.ridge",
        "reservoir.online",
        "reservoir.classify",
        "reservoir.nvar",
        "reservoir._forecast",
        "reservoir._series",
        "reservoir._session",
        "reservoir._open_loop",
        "reservoir._closed_loop",
        "reservoir.esn",
        "reservoir.ensemble",
        "reservoir.datasets",
        "reservoir.tasks",
        "reservoir.tuning",
        "reservoir.estimators",
    ]
    + ["reservoir"]
    + ["loaded", "onnx_node", "keras_layer", "truncated", "stateful"]
    + ["acceleration", "compat", "conversion", "__init__", "__main__"]
)
# Who alone may import a compiled module.
GATES = {"_core": "_plans", "_cuda": "_cuda_device"}
# Places that may name an instruction set, and those that may name a cell.
NAMES_ISAS = re.compile(r"simd/vec_\w+\.h|cpu/(isa|kernels)\.(h|cpp)|dispatch\.cpp")
NAMES_CELLS = re.compile(r"cells/\w+\.h|" + re.escape(PUBLIC))
ISAS = re.compile(r"\b\w*(avx|sse\d|neon)\w*\b", re.IGNORECASE)
# Kernels never allocate, print, lock or throw; these files are no kernels.
NO_KERNELS = re.compile(r"cpu/(threads|isa|kernels)\.(h|cpp)|reservoir/dispatch\.cpp")
# `new (place)` allocates nothing.
FORBIDDEN_IN_KERNELS = re.compile(
    r"\b(malloc|calloc|realloc|free|(?<!<)new(?! \()|(?<!= )delete|throw|printf|fprintf|puts|"
    r"std::(vector|string|cout|cerr|mutex|lock_guard|unique_lock|unique_ptr|shared_ptr|make_unique|"
    r"function))\b"
)


def cxx() -> list[Path]:
    files = [p for root in (CSRC, CUDA) for p in root.rglob("*") if root.is_dir()]
    return sorted(p for p in files if p.suffix in (".h", ".cpp", ".cu", ".cuh"))


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    base = CSRC if path.is_relative_to(CSRC) else ROOT
    return path.relative_to(base).as_posix()


def code(path: Path) -> str:
    """Return a C++ source without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[relative(p) for p in paths])


def included(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the project's files that a source includes, and how others are spelled."""
    for name in re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', code(path), re.MULTILINE):
        for base in (path.parent, CSRC, CSRC / "include"):
            if (base / name).exists():
                yield (base / name).resolve().relative_to(ROOT).as_posix(), True
                break
        else:
            yield name, False


@each(cxx())
def test_includes(path: Path) -> None:
    place = relative(path).split("/")[0]
    assert place in MAY_INCLUDE, f"say in MAY_INCLUDE what {place} may include"
    for name, ours in included(path):
        if ours:
            target = name.removeprefix("csrc/")
            assert target.split("/")[0] == place or target in MAY_INCLUDE[place], (
                f"{relative(path)} must not include {target}"
            )
        elif name.startswith(("pybind11", "Python", "torch", "ATen", "c10")):
            bindings = place == "bindings" or relative(path) == "cuda/module.cpp"
            assert bindings, f"{relative(path)} includes {name}"
            assert not name.startswith(("torch", "ATen", "c10")), "the core is free of torch"
        elif name.endswith("intrin.h") or name == "arm_neon.h":
            assert place == "simd", f"{relative(path)} includes {name}"


def test_only_the_kernels_see_the_list_of_cells() -> None:
    users = {relative(p) for p in cxx() for name, _ in included(p) if name.endswith("cells/list.h")}
    assert {u for u in users if not u.startswith("cuda/")} == {"cpu/kernels.cpp"}


@each(cxx())
def test_names(path: Path) -> None:
    """Only the registry names cells; only dispatch and the kernels' table name ISAs."""
    text, name = code(path), relative(path)
    if not NAMES_CELLS.fullmatch(name):
        cells = re.compile(rf"\bk?({'|'.join(map(str.title, CELLS))})\b|\"({'|'.join(CELLS)})\"")
        assert not cells.search(text), f"{name} names {cells.search(text)}"
    if not NAMES_ISAS.fullmatch(name):
        assert not ISAS.search(text), f"{name} names {ISAS.search(text)}"
    if "simd" not in name:
        assert not re.search(r"\b_mm\d*_|\bv\w+q_[fsu]\d\d\b", text), f"{name} uses intrinsics"


@each([p for p in cxx() if re.match(r"cells|simd|cpu|reservoir|variants|math", relative(p))])
def test_kernels_only_compute(path: Path) -> None:
    if not NO_KERNELS.fullmatch(relative(path)):
        found = FORBIDDEN_IN_KERNELS.search(code(path))
        assert not found, f"{relative(path)}: {found}"


@each([p for p in cxx() if re.match(r"cells|simd|variants|math", relative(p))])
def test_per_isa_code_has_a_namespace_per_isa(path: Path) -> None:
    """Or the linker would merge functions compiled for different instruction sets."""
    text = code(path)
    if re.search(r"\b(struct|inline|template)\b", text):
        assert "namespace fastrnn::FASTRNN_ISA" in text


@each([p for p in cxx() if p.suffix in (".h", ".cuh")])
def test_headers_are_guarded(path: Path) -> None:
    assert re.search(r"^#pragma once$", path.read_text(), re.MULTILINE)


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a syntax tree, but for what only type checkers read."""
    if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from run_time_nodes(child)


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of everything that a module imports, relative ones resolved."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                yield f"{base}.{alias.name}"


def module_of(name: str) -> str | None:
    """Return the module of this package that a dotted name is in, if any."""
    if name.split(".")[0] != "fastrnn":
        return None
    known = [m for m in IMPORT_ORDER if f"{name}.".startswith(f"fastrnn.{m}.")]
    return max(known, key=len) if known else "__init__"


@each(modules())
def test_imports(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
    assert own in IMPORT_ORDER, f"say in IMPORT_ORDER where {own} stands"
    for name in imported(path):
        module = module_of(name)
        if module is not None:
            assert IMPORT_ORDER.index(module) < IMPORT_ORDER.index(own), f"{own} imports {name}"
            assert module not in ("_core", "_cuda") or own == GATES[module], f"{own} imports {name}"
        else:
            assert name.split(".")[0] in {
                "__future__",
                "copy",
                "collections",
                "contextlib",
                "contextvars",
                "ctypes",
                "itertools",
                "json",
                "dataclasses",
                "functools",
                "importlib",
                "inspect",
                "math",
                "os",
                "platform",
                "sys",
                "threading",
                "torch",
                "types",
                "typing",
                "numpy",
                "warnings",
                "weakref",
                *(RESERVOIR_ONLY if own.startswith("reservoir.") else ()),
            }, f"{own} imports {name}"


# Places that speak of torch.nn's modules, each by its name.
NAMES_MODULES = ("functional.py", "acceleration.py", "compat.py", "conversion.py")


@each([p for p in modules() if p.parent == PACKAGE and p.name not in NAMES_MODULES])
def test_shared_python_names_no_cell(path: Path) -> None:
    """What every cell shares must not ask which one it has."""
    if path.name in ("__init__.py", "__main__.py"):
        return
    names = {*CELLS, "Elman", "LSTM", "GRU", "RNN"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant):
            assert node.value not in names, f"line {node.lineno} names {node.value}"


@pytest.mark.parametrize("cell", CELLS)
def test_each_cell_is_complete(cell: str) -> None:
    assert (CSRC / "cells" / f"{cell}.h").is_file()
    assert (PACKAGE / "cells" / f"{cell}.py").is_file()
    assert f'#include "{cell}.h"' in (CSRC / "cells" / "list.h").read_text()
    page = ROOT / "docs" / "cells" / f"{cell}.md"
    assert page.is_file()
    assert re.search(r"source|paper|reference", page.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("folder", ["csrc", "cuda", "python", "tests", "benchmarks", "examples"])
def test_files_are_short(folder: str) -> None:
    suffixes = {".h", ".cpp", ".cu", ".cuh", ".py", ".pyi"}
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes and p.is_file()]
    long = {p.name: n for p in files if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_planted_faults_have_their_places() -> None:
    """Each is planted in a line that is there, once."""
    from planted_faults import FAULTS

    for name, file, old, new in FAULTS:
        assert (CSRC / file).read_text().count(old) == 1, name
        assert old != new, name


@pytest.mark.parametrize("name", GATES)
def test_stub_matches_the_module(name: str) -> None:
    """The types of a compiled module are those that mypy reads."""
    module = importlib.import_module(f"fastrnn.{name}")
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    stub = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    real = {n for n in dir(module) if not n.startswith("__")}
    expected = {n for n in stub if not n.startswith("_")}
    if not getattr(module, "has_kernels", True):
        expected -= {"versions", "device_properties", "forward", "backward", "Stream"}
    assert expected <= real
    assert {n for n in real if callable(getattr(module, n)) and not n.startswith("_")} <= stub
