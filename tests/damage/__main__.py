"""``python -m tests.damage``: damaged modules, our answer against the native loader's, as a table.

What has been judged is kept (in the test cache, by series and seed), so ``--resume`` goes on where the last run of
the same code stopped. ``--dry`` compares our dry load with our real one
instead. ``--only NUMBER`` shows one case in full; ``--save`` writes its file.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import SERIES, image_of
from tests.damage.dry import compare
from tests.damage.judge import GOOD, Judgement, Verdict, judge
from tests.damage.machines import Warm, warm
from tests.damage.mutations import KINDS, make_case
from tests.support.accepted import ACCEPTED, accepted
from tests.support.accepted import judge as accept
from tests.support.distribution import cache_directory
from tests.support.figures import counted, record
from tests.sweep.plan import ARCHITECTURES, kernel_names
from tests.sweep.results import source_hash

CHUNK = 48


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    bad = 0
    for series in kernel_names(options.arch, options.series):
        machine = warm(series)
        if options.dry:
            bad += _dry(machine, series, options)
            continue
        if options.only is not None:
            _show(machine, options)
            continue
        judgements = _run(machine, series, options)
        records = [as_record(series, options.seed, one) for one in judgements]
        unused = accept(records, accepted())
        if options.record:
            record(f"damaged modules, seed {options.seed}", image_of(series).release, _facts(judgements, records))
        print(table(series, judgements, records), flush=True)
        for entry in unused:
            print(f"{ACCEPTED.name}: superfluous: {entry.module}: {entry.difference}")
        bad += len(unused) + sum(one["status"] == "disagreed" for one in records)
    return 1 if bad else 0


def as_record(series: str, seed: int, one: Judgement) -> dict[str, Any]:
    """A judgement as the list of accepted differences wants it."""
    lines = [f"{one.verdict.value}: {one.text}", *one.details] if one.verdict not in GOOD else []
    status = "disagreed" if lines else "agreed"
    name = f"damage/{seed}/{one.number}"
    return {"module": name, "series": series, "status": status, "lines": lines[:1], "count": len(lines[:1])}


def _facts(judgements: Sequence[Judgement], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        **counted(records),
        "numbers": [judgements[0].number, judgements[-1].number] if judgements else [],
        "verdicts": dict(sorted(Counter(one.verdict.value for one in judgements).items())),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES), help="kernels (default: all)")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=ARCHITECTURES[0], help="for which processor")
    parser.add_argument("--cases", type=int, default=20000, help="how many, per kernel")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--resume", action="store_true", help="keep what this very code has judged")
    parser.add_argument("--record", action="store_true", help="keep the counts in results/reliability.json")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case, in full")
    parser.add_argument("--dry", action="store_true", help="compare the dry load with the real one, in this process")
    parser.add_argument("--save", type=Path, metavar="FILE", help="with --only: write the damaged file")
    return parser.parse_args(arguments)


def _show(machine: Warm, options: argparse.Namespace) -> None:
    case = make_case(machine.bases, options.seed, options.only)
    if options.save:
        options.save.write_bytes(case.data)
    for one in judge(machine.kernel, [case]):
        print(f"{one.number} {one.kind}: {one.text}: {one.verdict.value}", *one.details, sep="\n    ")


def _dry(machine: Warm, series: str, options: argparse.Namespace) -> int:
    """Compare the dry load with the real one; the number of cases in which they differ."""
    numbers = range(options.first, options.first + options.cases) if options.only is None else [options.only]
    cases = [make_case(machine.bases, options.seed, number) for number in numbers]
    differing = 0
    for answer in compare(machine.kernel, cases):
        if answer.lines:
            differing += 1
            print(f"{answer.case.number} {answer.case.kind}: {answer.case.base}: {answer.case.text}")
            print(*(f"    {line[:400]}" for line in answer.lines), sep="\n", flush=True)
    print(f"{series}: the dry load differs from the real one in {differing} of {len(cases)} cases", flush=True)
    return differing


# -- many ---------------------------------------------------------------------------------------------


def _run(machine: Warm, series: str, options: argparse.Namespace) -> list[Judgement]:
    kept = cache_directory() / "damage" / f"{series}-{options.seed}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        kept.unlink(missing_ok=True)
    wanted = range(options.first, options.first + options.cases)
    code = source_hash()
    done = {one.number: one for one in _load(kept, code) if one.number in wanted}
    todo = [number for number in wanted if number not in done]
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    started = time.monotonic()
    jobs = max(1, min(options.jobs, len(chunks) or 1))
    children = [_worker(machine, options.seed, chunks[job::jobs], kept, code) for job in range(jobs)]
    for child in children:
        while not os.waitpid(child, os.WNOHANG)[0]:
            _progress(series, kept, len(wanted), started, len(done))
            time.sleep(0.5)
    judgements = [one for one in _load(kept, code) if one.number in wanted]
    seconds = time.monotonic() - started
    rate = len(todo) / seconds if seconds else 0.0
    print(f"\n{series}: {len(todo)} cases in {seconds:.0f} s, {rate:.1f}/s with {jobs} processes")
    return judgements


def _worker(machine: Warm, seed: int, chunks: Iterable[list[int]], kept: Path, code: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for chunk in chunks:
            cases = [make_case(machine.bases, seed, number) for number in chunk]
            lines = "".join(_line(one, code) for one in judge(machine.kernel, cases))
            with kept.open("a") as file:  # one write: lines of several processes do not mix
                file.write(lines)
        status = 0
    finally:
        os._exit(status)


def _line(one: Judgement, code: str) -> str:
    return json.dumps([code, one.number, one.kind, one.verdict.name, one.text, one.details]) + "\n"


def _load(kept: Path, code: str) -> list[Judgement]:
    """What the code with that hash has judged."""
    if not kept.exists():
        return []
    found = {}
    for line in kept.read_text().splitlines():
        try:
            by, number, kind, verdict, text, details = json.loads(line)
        except ValueError:
            continue  # the line that was being written
        if by == code:
            found[number] = Judgement(number, kind, Verdict[verdict], text, details)
    return list(found.values())


def _progress(series: str, kept: Path, total: int, started: float, before: int) -> None:
    if not sys.stderr.isatty() or not kept.exists():
        return
    count = kept.read_bytes().count(b"\n")
    rate = max(count - before, 0) / max(time.monotonic() - started, 0.1)
    width = 30
    filled = min(width, width * count // max(total, 1))
    bar = "#" * filled + "." * (width - filled)
    print(f"\r{series} [{bar}] {count}/{total} {rate:.0f}/s", end="", file=sys.stderr, flush=True)


def table(series: str, judgements: Sequence[Judgement], records: Sequence[dict[str, Any]]) -> str:
    """Kinds of damage against verdicts; then everything that is not as it should be."""
    verdicts = [one for one in Verdict if any(j.verdict is one for j in judgements)]
    counts = Counter((one.kind, one.verdict) for one in judgements)
    heads = ["cases", *(one.value for one in verdicts)]
    rows = [f"{series:16}" + "".join(f"  {head}" for head in heads)]
    for kind in (*KINDS, None):
        numbers = [sum(n for (k, v), n in counts.items() if kind in {k, None} and v is one) for one in verdicts]
        cells = "".join(
            f"  {number:{len(head)}}" for number, head in zip([sum(numbers), *numbers], heads, strict=True)
        )
        rows.append(f"{kind or 'all':16}{cells}")
    for one, line in zip(judgements, records, strict=True):
        if line["status"] == "disagreed":
            rows.append(f"{one.number} {one.kind}: {one.text}: {one.verdict.value}")
            rows += [f"    {line[:400]}" for line in one.details[:6]]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
