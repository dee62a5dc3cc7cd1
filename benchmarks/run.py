"""Time fastrnn beside the libraries that are installed; README.md says how.

python benchmarks/run.py --quick
python benchmarks/run.py --set all --json results.json --png results.png --memory
python benchmarks/run.py --set esn --json results.json       # echo state networks: esn.py
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry import CELLS, MODES, SETS, WEIGHT_BYTES, Case, Shape, cases

LEVELS = (1 << 19, 1 << 23, 1 << 28)  # bytes that usually fit in L2, in L3, in neither
BUSY = 0.05  # others may take this share of the processors' time before a run is worth nothing


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the six shapes of --set quick, torch")
    parser.add_argument(
        "--set",
        choices=(*SETS, "esn"),
        default="everyday",
        help="shapes (registry.py); esn: echo state networks beside reservoirpy, with --filter, "
        "--samples, --json, --png and --load",
    )
    parser.add_argument(
        "--mode", choices=(*MODES, "both", "all"), default="both", help="both: not streaming"
    )
    parser.add_argument("--cell", choices=CELLS, nargs="+", default=CELLS)
    parser.add_argument("--shape", metavar="T,B,I,H", help="one shape in place of a set")
    parser.add_argument("--dtype", choices=WEIGHT_BYTES, default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="default: what is installed")
    parser.add_argument("--filter", default="", help="only cases whose name has this, '100,32,'")
    parser.add_argument("--ragged", action="store_true", help="packed, lengths in [T/2, T]")
    parser.add_argument(
        "--lengths",
        action="store_true",
        help="padded, lengths in [T/2, T] in any order; torch packs and unpacks in each call",
    )
    parser.add_argument("--samples", type=int, help="default: 20, of the set esn 3")
    parser.add_argument(
        "--idle", type=float, default=0, metavar="MS", help="sleep before each call"
    )
    parser.add_argument(
        "--torch-between",
        action="store_true",
        help="a torch product on all threads, which then spin, just before each call",
    )
    parser.add_argument(
        "--limit", type=float, default=3, metavar="S", help="skip what takes longer at the FMA peak"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory too, a process a side")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    parser.add_argument("--load", type=Path, metavar="FILE", help="report an earlier run's JSON")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.set = "quick"
        options.peers = options.peers or ["torch"]
    return options


def networks(options: argparse.Namespace) -> None:
    """Run the set of echo state networks, which has a script of its own."""
    import esn

    arguments = []
    for name in ("filter", "samples", "json", "png", "load"):
        if value := getattr(options, name):
            arguments += [f"--{name}", str(value)]
    esn.main(arguments)


def prepare_environment(threads: int) -> None:
    """Set what libraries read from the environment when they are imported."""
    os.environ.update(
        NPROC=str(threads),  # JAX: threads of the CPU client
        OMP_NUM_THREADS=str(threads),
        JAX_PLATFORMS="cpu",
        JAX_ENABLE_X64="1",  # only arrays that ask for it become float64
        KERAS_BACKEND="tensorflow",
        CUDA_VISIBLE_DEVICES="-1",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    modes = {"both": ("inference", "training"), "all": MODES}.get(options.mode, (options.mode,))
    chosen: str | Shape = options.set
    if options.shape:
        T, B, I, H = map(int, options.shape.split(","))
        chosen = (T, B, I, H)
    ragged = options.ragged or options.lengths
    listed = cases(chosen, tuple(options.cell), modes, options.dtype, ragged)
    if options.lengths:
        listed = [replace(case, padded=True) for case in listed if case.ragged]
    return [case for case in listed if options.filter in case.name]


def chosen_peers(options: argparse.Namespace, case: Case) -> list[str]:
    from peers import OURS, PEERS

    if options.peers:
        unknown = set(options.peers) - PEERS.keys()
        missing = [n for n in options.peers if n in PEERS and not PEERS[n].installed]
        if unknown or missing:
            raise SystemExit(f"unknown: {sorted(unknown)}, not installed: {missing}")
        return [OURS, *(name for name in options.peers if name != OURS)]
    return [n for n, peer in PEERS.items() if peer.installed and case.mode in peer.modes]


def torch_product(threads: int) -> Any:
    """Return a function that keeps all of torch's threads busy for some hundred microseconds."""
    import torch

    a = torch.randn(512, 512)

    def multiply() -> torch.Tensor:
        torch.set_num_threads(threads)
        return a.mm(a).tanh_()

    return multiply


def run_case(
    case: Case, options: argparse.Namespace, ceilings: Any, progress: Any
) -> dict[str, Any]:
    """Measure one case; return its entry in the JSON file."""
    from measure import build_sides, check, peak_memory, time_sides

    peak = ceilings.fma_peak(case.dtype)
    bandwidth = ceilings.read_bandwidth(case.reread_bytes)
    progress.set_description(f"{case.name}: build and check")
    sides, absent = build_sides(case, chosen_peers(options, case), options.threads)
    differences = check(case, sides)

    def tick(name: str) -> None:
        progress.set_description(f"{case.name}: {name}")

    between = torch_product(options.threads) if options.torch_between else None
    measured = time_sides(sides, options.samples, options.idle / 1e3, between, tick)
    del sides
    gc.collect()
    for name, entry in measured.items():
        entry["gflops"] = case.flops / entry["median"] / 1e9
        reading = case.bytes / entry["median"] / 1e9 if case.mode != "training" else None
        entry["of_peak"] = peak and entry["gflops"] / (peak * options.threads)
        entry["of_bandwidth"] = bandwidth and reading and reading / (bandwidth * options.threads)
        entry["difference"] = differences[name]
        if options.memory:
            progress.set_description(f"{case.name}: memory of {name}")
            entry["memory"] = peak_memory(case, name, options.threads)
    return {
        "case": vars(case),
        "flops": case.flops,
        "bytes": case.bytes,
        "reread_bytes": case.reread_bytes,
        "fma_peak": peak,
        "read_bandwidth": bandwidth,
        "sides": measured,
        "not_measured": absent,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all chosen cases, writing the JSON file as results come."""
    from tqdm import tqdm

    import machine
    from measure import WrongResultError
    from report import header, row

    processors = machine.confine(options.threads)
    disturbance = machine.Disturbance(processors)
    ceilings = machine.Ceilings()
    listed = chosen_cases(options)
    if not listed:
        raise SystemExit("no case is left by these options")
    peak = ceilings.fma_peak(options.dtype)
    speed = (peak or 50.0) * options.threads * 1e9
    skipped = [case.name for case in listed if case.flops / speed > options.limit]
    listed = [case for case in listed if case.name not in skipped]
    peers = list(dict.fromkeys(n for case in listed for n in chosen_peers(options, case)))[1:]

    outcome: dict[str, Any] = {
        "machine": machine.describe(processors),
        "threads": options.threads,
        "dtype": options.dtype,
        "idle_ms": options.idle,
        "torch_between": options.torch_between,
        "fma_peak": peak,
        "read_bandwidth": {str(size): ceilings.read_bandwidth(size) for size in LEVELS},
        "time_of_others": None,
        "skipped": skipped,
        "wrong": [],
        "results": [],
    }
    for name in ceilings.missing:
        print(f"fastrnn._core.{name} is missing: its column stays empty", file=sys.stderr)
    print(header(peers, options.memory))
    with tqdm(listed, unit="case", disable=None) as progress:
        for case in progress:
            try:
                result = run_case(case, options, ceilings, progress)
            except WrongResultError as error:
                outcome["wrong"].append(str(error))
                progress.write(f"NOT TIMED: {error}")
                continue
            outcome["results"].append(result)
            outcome["time_of_others"] = disturbance.share()
            progress.write(row(result, peers, options.memory))
            if options.json:
                options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    return outcome


def conditions(outcome: dict[str, Any]) -> str:
    machine, peak, others = (outcome[k] for k in ("machine", "fma_peak", "time_of_others"))
    speed = "not measured" if peak is None else f"{peak:.0f} GFLOP/s a thread"
    line = f"{machine['cpu']}; {machine['isa']}; {outcome['threads']} thread(s); FMA peak {speed}"
    if others is None:
        return f"{line}; what else ran is not known"
    line += f"; {others:.0%} of the processors' time went to others"
    return line + (": these times are not to be quoted" if others > BUSY else "")


def main() -> None:
    options = parse()
    if options.memory_of:
        prepare_environment(json.loads(options.memory_of)["threads"])
        from measure import memory_of

        print(json.dumps(memory_of(options.memory_of)))
        return
    if options.set == "esn":
        networks(options)
        return
    options.samples = options.samples or 20
    if options.list:
        for case in chosen_cases(options):
            print(f"{case.name}  {case.flops / 1e9:.2f} GFLOP  {case.source}")
        return
    prepare_environment(options.threads)
    outcome = json.loads(options.load.read_text()) if options.load else run(options)

    from report import bounds, plot, summary

    print("\n".join([*summary(outcome["results"]), *bounds(outcome)]))
    if outcome["skipped"]:
        print(f"Skipped, too long (--limit): {'; '.join(outcome['skipped'])}")
    print(conditions(outcome))
    if options.png:
        plot(outcome, options.png)
    if outcome["wrong"]:
        raise SystemExit("Not timed, results differ:\n  " + "\n  ".join(outcome["wrong"]))


if __name__ == "__main__":
    main()
