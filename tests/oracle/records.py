"""QEMU's answers, kept by kernel release."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kodojo.durable import write_atomically
from tests.oracle.answers import Answer
from tests.oracle.cases import Case

__all__ = ["Records", "read", "recorded_releases", "write"]

DIRECTORY = Path(__file__).with_name("answers")


@dataclass(frozen=True)
class Records:
    """The answers of one kernel.

    :param version: its /proc/version; ``processor``: its /proc/cpuinfo; ``qemu``: what answered.
    :param answers: by the digest of the case.
    """

    release: str
    version: str
    processor: str
    qemu: str
    answers: Mapping[str, list[Answer]] = field(default_factory=dict)


def recorded_releases() -> list[str]:
    return sorted(path.name.removesuffix(".jsonl.xz") for path in DIRECTORY.glob("*.jsonl.xz"))


def read(release: str) -> Records | None:
    """The answers of a release; None if there are none."""
    path = DIRECTORY / f"{release}.jsonl.xz"
    if not path.exists():
        return None
    head, *lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    answers = {}
    for line in lines:
        entry = json.loads(line)
        answers[entry["digest"]] = [Answer.from_json(one) for one in entry["answers"]]
    return Records(**json.loads(head), answers=answers)


def write(records: Records, cases: Iterable[Case]) -> Path:
    """Keep the answers to these cases, and no others."""
    head = {name: getattr(records, name) for name in ("release", "version", "processor", "qemu")}
    lines = [json.dumps(head)]
    for case in cases:
        answers = [one.as_json() for one in records.answers[case.digest]]
        entry = {"group": case.group, "name": case.name, "digest": case.digest, "answers": answers}
        lines.append(json.dumps(entry, sort_keys=True))
    path = DIRECTORY / f"{records.release}.jsonl.xz"
    path.parent.mkdir(exist_ok=True)
    content = lzma.compress("\n".join(lines).encode() + b"\n", preset=9 | lzma.PRESET_EXTREME)
    write_atomically(path, lambda file: file.write(content))
    return path
