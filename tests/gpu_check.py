"""Everything there is to check on a GPU, in one run with one report file: `make gpu-check`.

The tests of CUDA on the real device, then small cases under compute-sanitizer's memcheck, racecheck
and synccheck. Ends with a status other than 0 when anything fails or could not run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# Of what only a GPU can show, and those that run modules by `_support.run`, which takes them there.
TESTS_ON_DEVICE = ("gpu", "parity", "packed", "partial_grads", "reduced", "hypothesis", "reference")
TOOLS = ("memcheck", "racecheck", "synccheck")
# Seconds: with the build all of it stays below ten minutes.
TEST_SECONDS, TOOL_SECONDS = 240, 60
NO_GPU = 2


@dataclass
class Step:
    """One command of the check, and what came of it."""

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    status: str = "not run"
    output: str = ""
    took: float = 0.0

    def run(self) -> bool:
        start = time.perf_counter()
        try:
            done = subprocess.run(
                self.command,
                cwd=ROOT,
                env=os.environ | self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=self.seconds,
                check=False,
            )
            self.status = "passed" if done.returncode == 0 else f"FAILED, exit {done.returncode}"
            self.output = done.stdout
        except FileNotFoundError:
            self.status = f"FAILED, no program {self.command[0]}"
        except subprocess.TimeoutExpired as error:
            self.status = f"FAILED, still running after {self.seconds:g} s"
            self.output = (error.stdout or b"").decode(errors="replace")
        self.took = time.perf_counter() - start
        return self.status == "passed"


def query_gpu(fields: str) -> list[str]:
    """Return nvidia-smi's answer for each GPU, nothing where there is none."""
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def architecture(capability: str) -> int:
    """Return which of the architectures that the kernels are compiled for a GPU runs."""
    text = (ROOT / "cmake" / "cuda_toolkit.cmake").read_text()
    [listed] = re.findall(r"set\(FASTRNN_CUDA_SUPPORTED ([\d ]+)\)", text)
    supported = [int(number) for number in listed.split()]
    own = int(capability.replace(".", ""))
    older = [number for number in supported if number <= own]
    if not older:
        raise SystemExit(f"the GPU's compute capability is {capability}, the least is 7.5")
    return max(older)  # its machine code, or PTX for what comes after the last


def compute_sanitizer() -> str:
    """Return the path of compute-sanitizer: from PATH, or from where the toolkit usually is."""
    usual = "/usr/local/cuda/bin/compute-sanitizer"
    return shutil.which("compute-sanitizer") or usual


def steps(device: str, sanitizer: str, tests: list[Path]) -> list[Step]:
    """Return what is to be run."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)]
    pytest += ["--cuda-emulated"] if device == "emulated" else []
    small = [sys.executable, str(TESTS / "gpu_small.py"), "--device", device]
    on_device = {"FASTRNN_TEST_DEVICE": "cpu" if device == "emulated" else device}
    listed = [Step("small cases", small, TOOL_SECONDS)]
    listed.append(Step("tests on the device", pytest, TEST_SECONDS, on_device))
    for tool in TOOLS:
        # Only this library's kernels: torch's are not ours to report. No caching allocator, or
        # writes past the end of a tensor land in memory that is torch's own.
        options = ["--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=fastrnn"]
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = [sanitizer, *options, *small]
        listed.append(Step(f"small cases under {tool}", command, TOOL_SECONDS, alone))
    return listed


def describe(gpus: list[str]) -> list[str]:
    """Return what the report begins with."""
    run = [sys.executable, "-m", "fastrnn"]
    package = subprocess.run(run, capture_output=True, text=True, check=False)
    head = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [f"commit {commit.stdout.strip() or 'unknown'}, {platform.platform()}"]
    return [*lines, *(f"GPU {gpu}" for gpu in gpus), package.stdout + package.stderr]


def report(path: Path, head: list[str], done: list[Step]) -> None:
    """Write the report: what was run where, each step's end, then each step's words."""
    lines = ["# GPU check", "", *head, ""]
    lines += [f"- {step.name}: {step.status}, {step.took:.0f} s" for step in done]
    for step in done:
        variables = " ".join(f"{name}={value}" for name, value in step.environment.items())
        lines += ["", f"## {step.name}: {step.status}", "", f"{variables} {' '.join(step.command)}"]
        lines += ["", step.output[-20_000:]]
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Run every step, print each one's end and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    parser.add_argument("--report", type=Path, default=ROOT / "gpu-check.md", metavar="FILE")
    parser.add_argument("--sanitizer", default=compute_sanitizer(), metavar="PROGRAM")
    usual = [TESTS / f"test_{name}.py" for name in TESTS_ON_DEVICE]
    parser.add_argument("--tests", type=Path, nargs="+", default=usual, metavar="FILE")
    parser.add_argument(
        "--architecture", action="store_true", help="print what to compile for, and stop"
    )
    options = parser.parse_args()
    gpus = query_gpu("name,driver_version,compute_cap,clocks.max.sm,memory.total")
    if options.device == "cuda" and not gpus:
        print("no GPU: nvidia-smi names none, so there is nothing to check here", file=sys.stderr)
        return NO_GPU
    if options.architecture:
        print(architecture(query_gpu("compute_cap")[0]))
        return 0
    done = steps(options.device, options.sanitizer, options.tests)
    for step in done:
        step.run()
        print(f"{step.name}: {step.status}, {step.took:.0f} s", flush=True)
    report(options.report, describe(gpus), done)
    print(f"report: {options.report}")
    return 0 if all(step.status == "passed" for step in done) else 1


if __name__ == "__main__":
    sys.exit(main())
