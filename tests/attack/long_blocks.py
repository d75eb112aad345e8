"""``python -m tests.attack.long_blocks``: long pieces of straight-line code, and whether the process survives them.

Each batch runs in a process of its own, so a death by signal is seen, its case is named, and the batch goes on behind
it. What was done is kept in the result file, so the next call goes on there::

    python -m tests.attack.long_blocks --cases 200000 --result results/long-blocks.json
    python -m tests.attack.long_blocks --only aarch64 SVE 1234

Cases are numbered by family; the number is the seed.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import mmap
import platform
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import unicorn

from kodojo.errors import KodojoError
from kodojo.machine.cpu import ProcessorState
from kodojo.machine.machine import Machine
from tests.attack.blocks import FAMILIES, make_block
from tests.support import bare_arm64, bare_machine
from tests.support.children import run_in_a_child

BATCH = 100
SECONDS_OF_A_BATCH = 120  # of processor time
BLOCKS_OF_A_CASE = 64
FEATURES = 0x620  # CR4: PAE, and SSE allowed by the operating system
SVM = (0xC0000080, 0x1D01)  # EFER: long mode and virtual machines
CPACR_EL1, FLOATING_POINT = (3, 0, 1, 0, 2), 3 << 20


class Guest:
    """A machine that is put back after each case."""

    def __init__(self, architecture: str) -> None:
        if architecture == "x86_64":
            self._support: Any = bare_machine
            guest: Any = bare_machine.BareMachine()
            guest.cpu.set("cr4", FEATURES)
            guest.cpu.set("msr", SVM)
            self._pc, data = (
                "rip",
                {"rbx": bare_machine.DATA, "rsi": bare_machine.DATA, "rdi": bare_machine.DATA + 0x100, "rcx": 8},
            )
        else:
            self._support = bare_arm64
            guest = bare_arm64.BareArm64()
            guest.cpu.engine.set_system(CPACR_EL1, FLOATING_POINT)
            self._pc, data = "pc", {"x3": bare_arm64.DATA}
        self._machine: Machine = guest.machine
        cpu = self._machine.cpu
        stack = {"rsp" if architecture == "x86_64" else "sp": self._support.STACK - 0x100}
        cpu.write_registers({**data, **stack})
        self._state, self._memory = cpu.save_state(), self._machine.ram.pages.copy()

    def run(self, block: bytes) -> str:
        """How the engine stopped."""
        cpu, code = self._machine.cpu, self._support.CODE
        self._machine.ram.pages[:] = self._memory
        cpu.restore_state(ProcessorState(self._state.engine, self._state.facts))
        cpu.engine.flush_tlb()
        cpu._started = True
        cpu.write(code, block)
        try:
            stop, _number, _blocks = cpu.engine.start(code, BLOCKS_OF_A_CASE)
        except KodojoError as error:
            return type(error).__name__
        at_once = cpu.get(self._pc) == code
        return str(stop.name).lower() + (" at once" if at_once else "")


def _batch(architecture: str, family: str, seeds: range, at: mmap.mmap) -> Counter[str]:
    guest = Guest(architecture)
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        at[:8] = seed.to_bytes(8, "little")
        outcomes[guest.run(make_block(architecture, family, seed))] += 1
    return outcomes


def in_a_child(architecture: str, family: str, seeds: range) -> tuple[int, int, Counter[str]]:
    """Do a batch in a process of its own: the signal that ended it (-1: an exception) or 0, the last
    seed, the outcomes."""
    at = mmap.mmap(-1, mmap.PAGESIZE)
    content, number = run_in_a_child(
        lambda: json.dumps(_batch(architecture, family, seeds, at)).encode(),
        {resource.RLIMIT_CPU: (SECONDS_OF_A_BATCH, SECONDS_OF_A_BATCH + 5)},
    )
    return number, int.from_bytes(at[:8], "little"), Counter(json.loads(content)) if content else Counter()


def run_family(architecture: str, family: str, seeds: range) -> tuple[Counter[str], list[dict[str, Any]]]:
    """All the cases; the outcomes, and the deaths."""
    outcomes: Counter[str] = Counter()
    deaths = []
    while seeds:
        number, last, found = in_a_child(architecture, family, seeds)
        outcomes += found
        if not number:
            break
        name = "exception" if number < 0 else signal.Signals(number).name
        alone, _, _ = in_a_child(architecture, family, range(last, last + 1))
        deaths.append(
            {"architecture": architecture, "family": family, "seed": last, "signal": name, "alone": bool(alone)}
        )
        print(f"{architecture} {family} {last}: {name}", flush=True)
        outcomes[name] += 1
        before, _, found = (
            in_a_child(architecture, family, range(seeds.start, last)) if last > seeds.start else (0, 0, Counter())
        )
        outcomes += found if not before else Counter()
        seeds = range(last + 1, seeds.stop)
    return outcomes, deaths


def _new_result() -> dict[str, Any]:
    return {"done": {}, "outcomes": {}, "deaths": []}


def _describe(result: dict[str, Any]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    result["what"] = "long blocks of guest code: does the process survive their translation and execution"
    result["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    result["commit"] = commit
    result["versions"] = {
        "unicorn": unicorn.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    result["cases"] = sum(result["done"].values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.long_blocks")
    parser.add_argument("--cases", type=int, default=200_000, help="in sum over all families")
    parser.add_argument("--architecture", choices=FAMILIES, help="this one only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so much time")
    parser.add_argument("--result", type=Path, default=Path("results/long-blocks.json"))
    parser.add_argument("--only", nargs=3, metavar=("ARCHITECTURE", "FAMILY", "SEED"))
    options = parser.parse_args(arguments)
    if options.only:
        architecture, family, seed = options.only
        block = make_block(architecture, family, int(seed))
        print(f"{len(block)} bytes: {block[:32].hex()}...")
        print(in_a_child(architecture, family, range(int(seed), int(seed) + 1)))
        return 0
    result = json.loads(options.result.read_text()) if options.result.exists() else _new_result()
    names = [(architecture, family) for architecture, families in FAMILIES.items() for family in families]
    each = -(-options.cases // len(names))
    names = [name for name in names if options.architecture in (None, name[0])]
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        name, (architecture, family) = min(
            ((f"{a}: {f}", (a, f)) for a, f in names), key=lambda entry: result["done"].get(entry[0], 0)
        )
        first = result["done"].get(name, 0)
        if first >= each:
            break
        seeds = range(first, min(first + BATCH, each))
        outcomes, deaths = run_family(architecture, family, seeds)
        result["outcomes"][name] = dict(sorted((Counter(result["outcomes"].get(name, {})) + outcomes).items()))
        result["deaths"] += deaths
        result["done"][name] = seeds.stop
        _describe(result)
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result.get('cases', 0)} cases, {len(result['deaths'])} deaths")
    return 1 if result["deaths"] else 0


if __name__ == "__main__":
    sys.exit(main())
