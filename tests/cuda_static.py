"""Read the machine code of the CUDA kernels, every architecture, as it lies in a wheel or module.

Fails on a spill, a slow-path division among the products of the inner loop, more
registers than let a block run or more shared memory than plans set aside, a tensor-core instruction
that is missing where a format promises one, weights that are not copied asynchronously, and an
architecture that lacks a kernel. `make cuda-check` runs it on the wheel; nvcc's warnings already
ended that wheel's build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# By what a kernel's mangled name says of its format: its name, and what its products are made of.
FORMATS = {
    "PlainIfE": ("float32", "FFMA"),
    "PlainIdE": ("float64", "DFMA"),
    "4Tf32": ("tf32", "HMMA.1688.F32.TF32"),
    "8Bfloat16": ("bfloat16", "HMMA.16816.F32.BF16"),
    "7Float16": ("float16", "HMMA.16816.F32"),
}
TURING = "sm_75"  # has neither TF32 nor bfloat16, halves of products, and no asynchronous copies
TURING_PRODUCTS = {"float16": "HMMA.1688.F32"}
AMPERE_ONLY = {"tf32", "bfloat16"}
REGISTERS = 65536  # of a multiprocessor
STATIC_SHARED = 1024  # bytes of a block, what plans set aside
COPIES = "copy_state"  # in the name of the kernel that only copies bytes
FEWEST_PRODUCTS = 2  # of the inner loop


@dataclass
class Kernel:
    """One kernel's machine code for one architecture."""

    architecture: str
    name: str
    code: list[tuple[int, str]]  # address, instruction without its predicate

    @property
    def format(self) -> str:
        return next((name for mark, (name, _) in FORMATS.items() if mark in self.name), "unknown")

    @property
    def label(self) -> str:
        return f"{self.architecture} {self.name[:90]}"

    @property
    def product(self) -> str:
        """What the products of this format are made of."""
        usual = dict(FORMATS.values())[self.format]
        return TURING_PRODUCTS.get(self.format, usual) if self.architecture == TURING else usual


def of_turing(name: str) -> bool:
    """Say whether a kernel is of a format that sm_75 has."""
    return Kernel(TURING, name, []).format not in AMPERE_ONLY


def architectures() -> list[str]:
    """Return what the kernels are compiled for."""
    text = (ROOT / "cmake" / "cuda_toolkit.cmake").read_text()
    [listed] = re.findall(r"set\(FASTRNN_CUDA_SUPPORTED ([\d ]+)\)", text)
    return [f"sm_{number}" for number in listed.split()]


def cuobjdump() -> str | None:
    """Return the path of cuobjdump: the toolkit's or that of the PyPI package."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(packaged) if packaged.is_file() else None)


def dump(tool: str, module: Path, *options: str) -> str:
    """Return what cuobjdump says."""
    # It finds nvdisasm by the path.
    path = os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])
    command = [tool, *options, str(module)]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


def parse_kernels(architecture: str, text: str) -> list[Kernel]:
    """Return the kernels of `cuobjdump -sass`."""
    kernels = []
    for part in text.split("Function : ")[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([^;]+?)\s*;", part)
        code = [(int(address, 16), instruction) for address, instruction in lines]
        kernels.append(Kernel(architecture, part.split("\n", 1)[0].strip(), code))
    return kernels


def loops(kernel: Kernel) -> list[tuple[int, int]]:
    """Return first and last address of each loop, inner ones first: each ends in a jump back."""
    found = []
    for address, instruction in kernel.code:
        target = re.match(r"BRA\b.*?0x([0-9a-f]+)", instruction)
        if target and int(target[1], 16) < address:
            found.append((int(target[1], 16), address))
    return sorted(found, key=lambda loop: loop[1] - loop[0])


def inner_loop(kernel: Kernel) -> list[tuple[int, str]]:
    """Return the loop that has most products, not counting those in a loop inside it.

    The cells' maths has products too, in loops that write to global memory; this one does not.
    """
    bodies = {loop: body(kernel, *loop) for loop in loops(kernel)}
    counts: Counter[tuple[int, int]] = Counter()
    for address, instruction in kernel.code:
        if instruction.startswith(kernel.product):
            around = next((loop for loop in bodies if loop[0] <= address <= loop[1]), None)
            counts.update([around] if around else [])
    pure = {l: n for l, n in counts.items() if not any(i.startswith("STG") for _, i in bodies[l])}
    return bodies[max(pure, key=lambda loop: pure[loop])] if pure else []


def body(kernel: Kernel, begin: int, end: int) -> list[tuple[int, str]]:
    """Return the instructions from one address to another."""
    return [(address, text) for address, text in kernel.code if begin <= address <= end]


def calls(kernel: Kernel, instruction: str) -> bool:
    """Say whether this is a call: divisions have their slow path behind the last way out.

    A CALL to anywhere else is a jump; ptxas leaves loops that way.
    """
    target = re.match(r"CALL\b.*?0x([0-9a-f]+)", instruction)
    last = max(address for address, text in kernel.code if text.startswith("EXIT"))
    return target is not None and int(target[1], 16) > last


def spilled(instructions: list[str], operation: str) -> int:
    """Return the bytes that all local loads or stores together move."""
    widths = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
    moves = [i.split()[0].split(".") for i in instructions if re.match(rf"{operation}\b", i)]
    return sum(next((widths[part] for part in move if part in widths), 4) for move in moves)


def check_kernel(kernel: Kernel) -> Iterator[str]:
    """Yield what is wrong with a kernel's instructions."""
    if COPIES in kernel.name:
        return
    if kernel.format == "unknown":
        yield "is of no known format"
        return
    every = [instruction for _, instruction in kernel.code]
    stores, loads = spilled(every, "STL"), spilled(every, "LDL")
    if stores or loads:
        yield f"spills {stores} bytes and loads {loads}"
    if kernel.architecture != TURING and not any(i.startswith("LDGSTS") for i in every):
        yield "has no asynchronous copy"
    inner = [instruction for _, instruction in inner_loop(kernel)]
    products = sum(instruction.startswith(kernel.product) for instruction in inner)
    if products < FEWEST_PRODUCTS:
        yield f"has {products} {kernel.product} in its inner loop"
    if any(calls(kernel, instruction) for instruction in inner):
        yield "has a division's slow path in its inner loop"


def check_resources(usage: str, limits: str) -> Iterator[str]:
    """Yield what is wrong with the registers and the shared memory of `cuobjdump -res-usage`.

    Args:
        usage: what `-res-usage` says.
        limits: what `-elf` says, which has the threads of a block.
    """
    pattern = r"\.nv\.info\.(\S+).*?EIATTR_MAX_THREADS.*?Value:\s+0x([0-9a-f]+)"
    threads = {name: int(number, 16) for name, number in re.findall(pattern, limits, re.DOTALL)}
    used = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)", usage)
    if not used:
        yield "no kernel's resources are named"
    for name, registers, shared in used:
        if name not in threads:
            yield f"{name[:90]} has no bound on its threads"
        elif int(registers) * threads[name] > REGISTERS:
            yield f"{name[:90]} has {registers} registers for {threads[name]} threads"
        if int(shared) > STATIC_SHARED:
            yield f"{name[:90]} has {shared} bytes of static shared memory"


def check_architecture(
    tool: str, module: Path, architecture: str
) -> tuple[list[Kernel], list[str]]:
    """Return an architecture's kernels, and what is wrong with them."""
    only = ("-arch", architecture)
    kernels = parse_kernels(architecture, dump(tool, module, "-sass", *only))
    wrong = [f"{kernel.label} {what}" for kernel in kernels for what in check_kernel(kernel)]
    usage, limits = (dump(tool, module, option, *only) for option in ("-res-usage", "-elf"))
    return kernels, wrong + [f"{architecture} {what}" for what in check_resources(usage, limits)]


def check(tool: str, module: Path) -> list[str]:
    """Return what is wrong with a module; print a line for each architecture."""
    wrong, listed = [], architectures()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: check_architecture(tool, module, name), listed)
        results = dict(zip(listed, found, strict=True))
    most = {kernel.name for kernels, _ in results.values() for kernel in kernels}
    for architecture, (kernels, faults) in results.items():
        here = {kernel.name for kernel in kernels}
        due = {
            n
            for n in most
            if architecture != TURING or Kernel(TURING, n, []).format not in AMPERE_ONLY
        }
        wrong += faults + [f"{architecture} lacks {name[:90]}" for name in sorted(due - here)]
        formats = Counter(kernel.format for kernel in kernels)
        print(f"{architecture}: {dict(sorted(formats.items()))} kernels, {len(faults)} wrong")
    newest = listed[-1].removeprefix("sm_")
    if f"sm_{newest}.ptx" not in dump(tool, module, "-lptx"):
        wrong.append(f"no PTX for GPUs after sm_{newest}")
    return wrong if most else ["there is no kernel in the module"]


def main() -> int:
    """Check the module, or the wheel's, that is named."""
    tool = cuobjdump()
    if tool is None:
        print("cuobjdump is missing: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
        return 1
    [given] = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        module = given
        if given.suffix == ".whl":
            with zipfile.ZipFile(given) as wheel:
                [name] = [n for n in wheel.namelist() if re.fullmatch(r"fastrnn/_cuda\..*so", n)]
                module = Path(wheel.extract(name, folder))
        wrong = check(tool, module)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
