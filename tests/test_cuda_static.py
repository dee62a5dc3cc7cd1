"""What reads the kernels' machine code finds the faults it is for, in listings made up here."""

from __future__ import annotations

import pytest

import cuda_static
from _support import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "cmake").is_dir(), reason="no sources")

NAME = "_ZN7fastrnn4cuda11step_kernelINS0_12ForwardGatesINS0_4LstmENS0_6HalvesINS0_8Bfloat16EEEEEE"
HMMA = "HMMA.16816.F32.BF16 R12, R20.reuse, R16, R12"
GOOD = [
    "LDGSTS.E.BYPASS.128 [R2], [R4.64]",  # 0x00
    "LDSM.16.M88.4 R20, [R2]",  # 0x10: the loop
    HMMA,
    HMMA,
    "@P0 BRA 0x10",
    "MUFU.EX2 R3, R3",  # 0x50: the maths, with a division's slow path
    "CALL.REL.NOINC 0xa0",
    "STG.E [R2.64], R3",
    "@P1 BRA 0x50",
    "EXIT",
    "MUFU.RCP R3, R3",  # 0xa0
    "RET.REL.NODEC R8 0x0",
]


def faults(code: list[str], name: str = NAME, architecture: str = "sm_90") -> str:
    lines = [f"        /*{16 * i:04x}*/    {text} ;  /* 0x0 */" for i, text in enumerate(code)]
    text = "\n".join(["\t\tFunction : " + name, *lines])
    [kernel] = cuda_static.parse_kernels(architecture, text)
    return "; ".join(cuda_static.check_kernel(kernel))


def with_line(number: int, text: str) -> list[str]:
    return [text if i == number else line for i, line in enumerate(GOOD)]


def test_good_code() -> None:
    assert faults(GOOD) == ""
    assert faults(GOOD, name=NAME.replace("8Bfloat16", "7Float16")) == ""


def test_faults() -> None:
    assert "division's slow path in its inner loop" in faults(with_line(1, "CALL.REL.NOINC 0xa0"))
    assert "slow path" not in faults(with_line(1, "CALL.REL.NOINC 0x50"))  # a jump out of the loop
    assert "has 0 HMMA" in faults(GOOD, name=NAME.replace("6HalvesINS0_8Bfloat16EE", "4Tf32"))
    assert "has 1 HMMA" in faults(with_line(2, "NOP"))
    assert "no asynchronous copy" in faults(with_line(0, "NOP"))
    assert "no known format" in faults(GOOD, name="_Z6kernelv")
    spill = ["STL.128 [R1], R4"] * 3
    assert "spills 48 bytes and loads 0" in faults([*GOOD[:-2], *spill, *GOOD[-2:]])
    inside = [*GOOD[:2], "LDL.64 R4, [R1]", "LDL.128 R8, [R1]", *GOOD[2:]]
    assert "spills 0 bytes and loads 24" in faults(inside)


def test_a_kernel_that_only_copies() -> None:
    assert faults(["EXIT"], name="_ZN7fastrnn4cuda10copy_stateE") == ""


def test_sm_75_has_halves_of_products_and_no_asynchronous_copies() -> None:
    name = NAME.replace("8Bfloat16", "7Float16")
    code = [line.replace("16816.F32.BF16", "1688.F32") for line in with_line(0, "NOP")]
    assert faults(code, name, "sm_75") == ""
    assert "no asynchronous copy" in faults(code, name, "sm_80")


USAGE = "\n Function kernel:\n  REG:{} STACK:0 SHARED:{} LOCAL:0"
LIMITS = ".nv.info.kernel\n\tAttribute:\tEIATTR_MAX_THREADS\n\tValue:\t0x{:x} 0x1 0x1"


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "fault"),
    [
        (128, 1024, 512, ""),
        (129, 1024, 512, "has 129 registers for 512 threads"),
        (255, 1024, 256, ""),
        (64, 1040, 256, "has 1040 bytes of static shared memory"),
    ],
)
def test_resources(registers: int, shared: int, threads: int, fault: str) -> None:
    found = cuda_static.check_resources(USAGE.format(registers, shared), LIMITS.format(threads))
    assert fault in "; ".join(found)
    assert bool(fault) == bool(
        list(cuda_static.check_resources(USAGE.format(registers, shared), LIMITS.format(threads)))
    )


def test_resources_without_bounds() -> None:
    assert list(cuda_static.check_resources("", "")) == ["no kernel's resources are named"]
    assert list(cuda_static.check_resources(USAGE.format(1, 1), "")) == [
        "kernel has no bound on its threads"
    ]
