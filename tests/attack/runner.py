"""Cases by the thousand, in processes that may die: what fails is named, and the rest goes on.

A case is made from a seed and a number, so that it can be made again. Each batch is a process of its own, with bounds
for its memory and its time; its record is a line of a file in the cache, and a later run goes on behind the last one.
What is a failure: an exception that kodojo does not raise on purpose, a death by signal, more processor time or more
memory than a case may take, a file written anywhere but where it was allowed.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import gc
import json
import mmap
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kodojo.errors import KodojoError
from tests.support.children import run_in_a_child
from tests.support.distribution import cache_directory
from tests.support.figures import provenance

__all__ = ["Attack", "main"]

BATCH = 100
SECONDS = 5.0  # of processor time, for one case
MEMORY = 512 << 20  # bytes more than before, for one case
ADDRESS_SPACE = 8 << 30
SECONDS_OF_A_BATCH = 120


class Attack(NamedTuple):
    """One kind of attack.

    :param name: of the section in the result. :param prepare: what is made once, before the first batch.
    :param attempt: makes a case and does it: what was prepared, seed, number, an empty directory. Returns the kind of
        the case and what came of it; raises KodojoError for a refusal.
    :param allowed: files and directories that may be in the directory afterwards, by the beginnings of their names.
    """

    name: str
    prepare: Callable[[], Any]
    attempt: Callable[[Any, int, int, Path], tuple[str, str]]
    allowed: tuple[str, ...]


class _Timeout(Exception):  # noqa: N818
    pass


def _one(attack: Attack, prepared: Any, seed: int, number: int, place: Path) -> tuple[str, str, str]:
    """Kind, outcome, and what failed."""
    inside = place / "inside"
    inside.mkdir()
    before, began = _peak(), time.process_time()
    kind, outcome, failure = "", "", ""
    try:
        kind, outcome = attack.attempt(prepared, seed, number, inside)
    except _Timeout:
        failure = "over time"
    except MemoryError:
        failure = "over memory"
    except KodojoError as error:
        outcome = type(error).__name__
    except Exception:  # noqa: BLE001  what is looked for
        failure = traceback.format_exc(limit=-3)
    if not failure and time.process_time() - began > SECONDS:
        failure = "over time"
    if not failure and _peak() - before > MEMORY:
        failure = "over memory"
    left = [path.name for path in place.iterdir() if path != inside]
    left += [path.name for path in inside.iterdir() if not path.name.startswith(attack.allowed)]
    shutil.rmtree(inside, ignore_errors=True)
    if left:
        failure = f"written outside: {left[:3]}"
    return kind, outcome, failure


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _batch(attack: Attack, prepared: Any, seed: int, numbers: range, at: mmap.mmap, place: Path) -> dict[str, Any]:
    def over(_signal: int, _frame: Any) -> None:
        raise _Timeout

    signal.signal(signal.SIGPROF, over)
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures = []
    for number in numbers:
        at[:8] = number.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, 4 * SECONDS)
        kind, outcome, failure = _one(attack, prepared, seed, number, place)
        signal.setitimer(signal.ITIMER_PROF, 0)
        kinds[kind or "?"] += 1
        outcomes[outcome or "failure"] += 1
        if failure:
            failures.append({"seed": seed, "number": number, "kind": kind, "failure": failure})
    return {"kinds": kinds, "outcomes": outcomes, "failures": failures}


def _in_a_child(attack: Attack, prepared: Any, seed: int, numbers: range) -> tuple[dict[str, Any] | None, str, int]:
    """What came of a batch; if its process died: of what, and at which case."""
    at = mmap.mmap(-1, mmap.PAGESIZE)
    place = Path(tempfile.mkdtemp(prefix="kodojo-attack-"))

    def work() -> bytes:
        tempfile.tempdir = str(place)
        gc.disable()
        return json.dumps(_batch(attack, prepared, seed, numbers, at, place)).encode()

    limits = {
        resource.RLIMIT_CPU: (SECONDS_OF_A_BATCH, SECONDS_OF_A_BATCH + 5),
        resource.RLIMIT_AS: (ADDRESS_SPACE, ADDRESS_SPACE),
    }
    content, number = run_in_a_child(work, limits)
    shutil.rmtree(place, ignore_errors=True)
    if content and not number:
        return json.loads(content), "", 0
    return None, signal.Signals(number).name if number > 0 else "exception", int.from_bytes(at[:8], "little")


def _record(attack: Attack, prepared: Any, seed: int, numbers: range) -> dict[str, Any]:
    """A batch with its deaths: what stands behind one is done in another process."""
    record: dict[str, Any] = {
        "first": numbers.start, "count": len(numbers), "kinds": {}, "outcomes": {}, "failures": [],
    }  # fmt: skip
    rest = [numbers]
    while rest:
        part = rest.pop()
        if not part:
            continue
        found, how, number = _in_a_child(attack, prepared, seed, part)
        if found is None:
            record["failures"].append({"seed": seed, "number": number, "kind": "", "failure": how})
            found = {"kinds": {}, "outcomes": {how: 1}, "failures": []}
            rest += [range(part.start, number), range(number + 1, part.stop)]
        for name in ("kinds", "outcomes"):
            record[name] = dict(Counter(record[name]) + Counter(found[name]))
        record["failures"] += found["failures"]
    return record


def _sum_up(attack: Attack, seed: int, records: Sequence[dict[str, Any]], result: Path) -> dict[str, Any]:
    """Write the section of this attack; the others stay."""
    whole: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for record in records:
        kinds.update(record["kinds"])
        outcomes.update(record["outcomes"])
    section = {
        **provenance(),
        "seed": seed,
        "inputs": sum(record["count"] for record in records),
        "kinds": dict(sorted(kinds.items())),
        "outcomes": dict(sorted(outcomes.items())),
        "failures": [failure for record in records for failure in record["failures"]],
    }
    whole[attack.name] = section
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(dict(sorted(whole.items())), indent=2) + "\n")
    return section


def main(attack: Attack, arguments: Sequence[str] | None = None) -> int:
    """The command line of one attack."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.attack.{attack.name}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in sum, those done before included")
    parser.add_argument("--resume", action="store_true", help="go on where the last run with this seed ended")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so much time")
    parser.add_argument("--result", type=Path, default=Path("results/attack.json"))
    parser.add_argument("--only", type=int, metavar="NUMBER", help="do one case here, and let its exception out")
    options = parser.parse_args(arguments)
    prepared = attack.prepare()
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="kodojo-attack-") as place:
            try:
                print(attack.attempt(prepared, options.seed, options.only, Path(place)))
            except KodojoError as error:
                print(f"{type(error).__name__}: {error.message}\nhint: {error.hint}")
        return 0
    journal = cache_directory() / "attack" / f"{attack.name}-{options.seed}.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        journal.unlink(missing_ok=True)
    records = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    first = records[-1]["first"] + records[-1]["count"] if records else 0
    end = time.monotonic() + options.seconds
    with journal.open("a") as file:
        while first < options.count and time.monotonic() < end:
            numbers = range(first, min(first + BATCH, options.count))
            records.append(_record(attack, prepared, options.seed, numbers))
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            for failure in records[-1]["failures"]:
                print(f"{attack.name} {failure['number']} ({failure['kind']}): {failure['failure']}", flush=True)
            first = numbers.stop
    section = _sum_up(attack, options.seed, records, options.result)
    print(f"{attack.name}: {section['inputs']} inputs, {len(section['failures'])} failures")
    return 1 if section["failures"] else 0
