"""Plants faults in the C++ engine, one line at a time, and says which test notices each first.

Run by hand, in a copy of the sources: ``python tests/planted_faults.py [--isa avx2] [NAME ...]``;
with ``--all`` it goes on to say which other tests notice it. The faults in ``tiles.h``, and
``rows-twice``, take ``--isa amx`` to be noticed, ``packed-place`` takes ``--isa avx512``.
With ``ccache`` installed, what was built by an earlier run is not built again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("csrc", "cmake", "tests/cpp", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")

# Name, file, the line's part to replace, what takes its place.
FAULTS = [
    ("lstm-dc", "cells/lstm.h", "fnma(u, u, V(1)), ds[1])", "V(1), ds[1])"),
    ("lstm-gate-order", "cells/lstm.h", "save(1, f), save(2, g)", "save(1, g), save(2, f)"),
    ("gru-recurrent-n", "cells/gru.h", "d[3] = dn * r;", "d[3] = dn;"),
    ("gru-held-output", "cells/gru.h", "ds[0] = dy * z;", "ds[0] = dy;"),
    ("elman-square", "cells/elman.h", "fnma(y * y, dy, dy)", "fnma(y, dy, dy)"),
    ("final-state", "cpu/forward.h", "for (int64_t r = still; r < n; ++r)", "for (int64_t r = still + 1; r < n; ++r)"),
    ("batch-first-single-row", "cpu/forward.h", "rows_ == 1 ? x_.strides.step : x_.strides.row;", "x_.strides.row;"),
    ("reserve-row", "cpu/forward.h", "(time_.first(t) + begin_) * saved_ * p_->H : nullptr;", "time_.first(t) * saved_ * p_->H : nullptr;"),
    ("panels-of-a-row", "cpu/forward.h", "begin + (s & 1 ? groups - 1 - i : i) * kTogether;", "begin + i * kTogether + (s & 1 && groups > 1 && i == 0);"),
    ("between-of-a-row", "cpu/cell_step.h", "output(place(j), between[j]);", "output(place(j), between[0]);"),
    ("panel-of-inputs", "cpu/cell_step.h", "const int64_t i = begin + j;", "const int64_t i = j;"),
    ("dh0-of-short-rows", "cpu/backward_chain.h", "dh0_ ? active(after) : carried;", "carried;"),
    ("dh_n-of-a-group", "cpu/backward_chain.h", "convert_row(sums, dh_n_ + (begin_ + r) * q_->O + u, n);", "convert_row(sums, dh_n_ + r * q_->O + u, n);"),
    ("dh0-held-output", "cpu/backward_chain.h", "if (C::kHoldsOutput) g = g + V::load(", "if (false) g = g + V::load("),
    ("rows-of-a-part", "cpu/backward_chain.h", "for (int64_t r = begin; r < end; ++r) f(r, part);", "for (int64_t r = begin + (begin > 0); r < end; ++r) f(r, part);"),
    ("recalled-panels", "cpu/replay.h", "for (int64_t p = begin; p < end; ++p)", "for (int64_t p = begin + (begin > 0); p < end; ++p)"),
    ("projected-panels", "cpu/forward.h", "multiply(w_->hr, {from_.w_hr, nullptr, begin, end, part}", "multiply(w_->hr, {from_.w_hr, nullptr, begin + (begin > 0), end, part}"),
    ("middle-block-dx", "cpu/backward.h", "2 * done > blocks - 1;", "2 * done >= blocks - 1;"),
    ("fresh-chunks", "cpu/weight_gradients.h", "rows - row), fresh && row == 0};", "rows - row), fresh};"),
    ("bias-compensation", "cpu/weight_gradients.h", "exact = sum - Vec<T>::load(lost + u, n);", "exact = sum;"),
    ("segment-start", "cpu/replay.h", "if (step % p.checkpoint_every == 0) {", "if (step == 0) {"),
    ("chain-taken-twice", "cpu/threads.cpp", "if (chain[c].busy.exchange(true, std::memory_order_acquire)) continue;", "if (chain[c].busy.load()) continue;"),
    ("early-return", "cpu/threads.cpp", "p.done.load(std::memory_order_acquire) == count ||", "p.done.load(std::memory_order_acquire) >= count - 1 ||"),
    ("rounding-mode", "cpu/threads.cpp", "std::fesetenv(&floating_point);", "(void)floating_point;"),
    ("callers-processor", "cpu/threads.cpp", "if (callers >= 0 && callers == processor())", "if (callers == -2)"),
    ("never-stops", "cpu/threads.h", "if (!(slot == 0 ? asked_to_stop() : stopped())) body(i, slot);", "body(i, slot);"),
    ("zero-point", "cpu/pack.h", "return -128 * sum;", "return -127 * sum;"),
    ("reverse-before", "cpu/rows.h", "return reverse ? t + 1 : t - 1;", "return t - 1;"),
    ("workspace-alignment", "cpu/arena.h", "return used_ + kAlign;", "return used_;"),
    ("dual-product", "simd/dual.h", "fma(a.d, b.v, a.v * b.d)};", "a.v * b.d};"),
    ("returning-state", "cpu/second_order.h", "for (T* state : state_) fill_row(state, T(0), rows_ * ld_);", ""),
    ("row-of-through", "cpu/second_order.h", "first_row(t) + r + i, 1, 0, u,", "first_row(t) + r, 1, 0, u,"),
    ("growing-offsets", "dispatch.cpp", "offsets[t + 1] - offsets[t] <= offsets[t] - offsets[t - 1],", "true,"),
    ("bias-as-used", "cpu/forward.h", "few.pack_panel(i, share.w, share.bias, nullptr);", "few.pack_panel(i, share.w, nullptr, nullptr);"),
    ("bias-unpacked", "cpu/unpacked.h", "V::load(bias + row, lanes)", "V::load(bias + to.unit(p, c), lanes)"),
    ("rows-unpacked", "cpu/unpacked.h", "fma(V(a[r * lda + k + j])", "fma(V(a[k + j])"),
    ("last-lanes-unpacked", "cpu/unpacked.h", "if (lanes == W)", "if (true)"),
    ("rows-as-they-lie", "cpu/unpacked.h", "a + r * lda, lda,", "a, lda,"),
    ("slot-order", "cpu/pack.h", "*++order_ * units_", "*order_ * units_"),
    ("packed-rows", "cpu/product.h", "a += (kPackedA ? kPackedRows : 1)", "a += (kPackedA ? R : 1)"),
    ("packed-tile", "cpu/weight_gradients.h", "m < count; m += W)", "m < W; m += W)"),
    ("packed-place", "cpu/weight_gradients.h", "kPackedRows : begin(i))", "kPackedRows : 0)"),
    ("narrow-words", "simd/factors.h", "step ? words & 0xffff0000u : words << 16", "step ? words << 16 : words & 0xffff0000u"),
    ("rows-twice", "cpu/product.h", "twice[j] + early[j] * row,", "twice[j],"),
    ("second-tile", "simd/tiles.h", "*second = tile[R - 1].a;", "*second = tile[0].a;"),
    ("second-sums", "simd/tiles.h", "*init_second = tile[R - 1].init + first * W;", "*init_second = init;"),
    ("part-of-k", "cpu/product.h", "w.panel(p) + (1 + k0) * w.word_stride(p), w.strip(p),", "w.panel(p) + (1 + (k0 & ~1)) * w.word_stride(p), w.strip(p),"),
    ("strip-start", "cpu/product.h", "init + (init_row ? S * W : strip), init_row,", "init + (init_row ? S * W : 0), init_row,"),
    ("strip-part", "cpu/product.h", "const int64_t init_strip = init_row ? S * W : strip;", "const int64_t init_strip = strip;"),
]  # fmt: skip


def sh(*command: str, cwd: Path, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    # ccache: the directory has another name in each run.
    environment = os.environ | {"FASTRNN_TEST_QUICK": "1", "CCACHE_BASEDIR": str(cwd)}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def prepare(isa: str) -> Path:
    """Copy the sources and build them for one instruction set."""
    copy = Path(tempfile.mkdtemp(prefix="planted-"))
    for name in COPIED:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    lists = copy / "CMakeLists.txt"
    # An instruction set for every machine is expected to be there, and some extend others.
    isas = {
        "baseline": "baseline",
        "avx512_bf16": "baseline avx512 avx512_bf16",
        "amx": "baseline avx512 avx512_bf16 amx",
    }.get(isa, f"baseline {isa}")
    text = re.sub(
        r"set\(FASTRNN_ISAS baseline avx2.*\)", f"set(FASTRNN_ISAS {isas})", lists.read_text()
    )
    lists.write_text(text)
    flags = ["-DFASTRNN_BUILD_TESTS=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0"]
    if shutil.which("ccache"):
        flags.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    made = sh("cmake", "-S", ".", "-B", "build", "-G", "Ninja", *flags, cwd=copy)
    if made.returncode:
        raise SystemExit(made.stdout + made.stderr)
    return copy


def noticed_by(copy: Path, *options: str) -> str:
    """Build and run the tests; return the names of those that fail."""
    built = sh("cmake", "--build", "build", cwd=copy)
    if built.returncode:
        return "the compiler"
    tested = sh("ctest", "--test-dir", "build", "--timeout", "100", *options, cwd=copy)
    failed = re.findall(
        r"Test +#\d+: (\w+) \.*\s*\**\s*(?:\*\*\*)?(Failed|Timeout|Exception\S*|Subprocess)",
        tested.stdout,
    )
    names = sorted({name for name, _ in failed})
    return ", ".join(names) or ("nothing" if tested.returncode == 0 else tested.stdout[-500:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="faults; by default all")
    parser.add_argument("--isa", default="baseline")
    parser.add_argument("--all", action="store_true", help="do not stop at the first test")
    options = parser.parse_args()
    stop = () if options.all else ("--stop-on-failure",)
    copy = prepare(options.isa)
    try:
        print(f"without a fault: {noticed_by(copy)}", flush=True)
        for name, file, old, new in FAULTS:
            if options.names and name not in options.names:
                continue
            path = copy / "csrc" / file
            text = path.read_text()
            if text.count(old) != 1:
                raise SystemExit(f"{name}: {file} has {text.count(old)} times: {old}")
            path.write_text(text.replace(old, new))
            found = noticed_by(copy, *stop)
            print(f"| {name} | `{file}` | `{old}` -> `{new}` | {found} |", flush=True)
            path.write_text(text)
    finally:
        shutil.rmtree(copy)


if __name__ == "__main__":
    sys.exit(main())
