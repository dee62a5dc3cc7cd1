"""Compile the CUDA kernels for every architecture and read what the compiler says and made.

Fails on a warning, a spill of note, more registers than let a block run, a tensor-core instruction
that is missing where a format promises one, or weights that are not copied asynchronously. `make
cuda-check` runs it; without nvcc it says so and passes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
FORMATS = ("float32", "tf32", "float64", "bfloat16", "float16")
# Threads of a block of each kernel, whose registers must fit into a multiprocessor's 65,536.
REGISTERS = 65536
# Bytes that a thread may store and load again: blocks of 512 threads leave 128 registers, and ptxas
# puts a few numbers aside in float16 and float64 persistent kernels. More is a fault.
SPILLED_STORES, SPILLED_LOADS = 36, 80
THREADS = 256
# What the products of a format are made of. bfloat16 and TF32 need 8.0; plans refuse them before.
INSTRUCTIONS = {
    "float32": "FFMA",
    "tf32": "HMMA.1688.F32.TF32",
    "float64": "DFMA",
    "bfloat16": "HMMA.16816.F32.BF16",
    "float16": "HMMA.16816.F32",
}
READ = (80, 90, 120)  # architectures whose code is read: one of each kind


def compile_format(format_name: str, folder: Path) -> str:
    """Compile kernels.cu for all architectures into one object; return what nvcc says."""
    command = ["nvcc", "-std=c++17", "-O3", "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra"]
    command += [f"-Xcompiler=-iquote{ROOT / 'csrc'}", "-I", str(ROOT / "csrc" / "include")]
    command += ["-DFASTRNN_ISA=cuda", f"-DFASTRNN_CUDA_FORMAT={format_name}"]
    for a in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{a},code=sm_{a}"]
    command += ["-c", str(ROOT / "cuda" / "kernels.cu"), "-o", str(folder / f"{format_name}.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"{format_name} does not compile:\n{text}")
    return text


def check_messages(format_name: str, text: str) -> tuple[int, int, list[str]]:
    """Return the number of kernels, the most registers, and what is wrong with them."""
    wrong = [f"{format_name}: {line}" for line in text.splitlines() if "warning" in line.lower()]
    for stack, stores, loads in re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
    ):
        if int(stores) > SPILLED_STORES or int(loads) > SPILLED_LOADS:
            wrong.append(f"{format_name}: spills {stores} and {loads} bytes, stack {stack}")
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    if not registers:
        wrong.append(f"{format_name}: nvcc names no kernel")
    wrong += [f"{format_name}: {n} registers" for n in registers if n * THREADS > REGISTERS]
    return len(registers), max(registers, default=0), wrong


def cuobjdump() -> str | None:
    """Return the path of cuobjdump: the toolkit's or that of the PyPI package."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(packaged) if packaged.is_file() else None)


def check_code(tool: str, format_name: str, folder: Path) -> list[str]:
    """Return what is wrong with the machine code of one format."""
    wrong = []
    for a in READ:
        command = [tool, "-sass", "-arch", f"sm_{a}", str(folder / f"{format_name}.o")]
        # It finds nvdisasm by the path.
        path = os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        kernels = done.stdout.split("Function : ")[1:]
        if not kernels:
            wrong.append(f"{format_name} sm_{a}: no kernel in the object")
        for kernel in kernels:
            name = kernel.split("\n", 1)[0][:60]
            if INSTRUCTIONS[format_name] not in kernel:
                wrong.append(f"{format_name} sm_{a}: no {INSTRUCTIONS[format_name]} in {name}")
            if "LDGSTS" not in kernel:
                wrong.append(f"{format_name} sm_{a}: no asynchronous copy in {name}")
    return wrong


def main() -> int:
    """Check every format; print a line for each."""
    if not shutil.which("nvcc"):
        print("SKIPPED: the static checks of the CUDA kernels need nvcc 13")
        return 0
    wrong = []
    tool = cuobjdump()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        for format_name, text in zip(
            FORMATS, pool.map(lambda f: compile_format(f, folder), FORMATS), strict=True
        ):
            kernels, most, found = check_messages(format_name, text)
            found += check_code(tool, format_name, folder) if tool else []
            print(f"{format_name}: {kernels} kernels, at most {most} registers, {len(found)} wrong")
            wrong += found
    if not tool:
        print("SKIPPED: machine code was not read, nvidia-cuda-cuobjdump is not installed")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
