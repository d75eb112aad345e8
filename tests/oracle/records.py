"""QEMU's answers, kept by kernel release."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kodojo.durable import write_atomically
from tests.oracle.answers import Answer
from tests.oracle.cases import Case

__all__ = ["Records", "nearest", "read", "recorded_releases", "write"]

DIRECTORY = Path(__file__).with_name("answers")


@dataclass(frozen=True)
class Records:
    """The answers of one kernel.

    :param version: its /proc/version; ``processor``: its /proc/cpuinfo; ``qemu``: what answered.
    :param answers: by the digest of the case.
    :param digests: by group and name of the case.
    """

    release: str
    version: str
    processor: str
    qemu: str
    answers: Mapping[str, list[Answer]] = field(default_factory=dict)
    digests: Mapping[tuple[str, str], str] = field(default_factory=dict)


def recorded_releases() -> list[str]:
    return sorted(path.name.removesuffix(".jsonl.xz") for path in DIRECTORY.glob("*.jsonl.xz"))


def read(release: str) -> Records | None:
    """The answers of a release; None if there are none."""
    path = DIRECTORY / f"{release}.jsonl.xz"
    if not path.exists():
        return None
    head, *lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    answers, digests = {}, {}
    for line in lines:
        entry = json.loads(line)
        answers[entry["digest"]] = [Answer.from_json(one) for one in entry["answers"]]
        digests[entry["group"], entry["name"]] = entry["digest"]
    return Records(**json.loads(head), answers=answers, digests=digests)


def nearest(release: str) -> Records:
    """The answers of a release, or of the newest other one of its series and architecture.

    :raises LookupError: there are none of that series.
    """
    found = read(release)
    if found is not None:
        return found
    others = [other for other in recorded_releases() if _kind(other) == _kind(release)]
    if not others:
        raise LookupError(f"no answers of QEMU are kept for the series of {release}: run make oracle")
    newest = read(max(others, key=lambda other: [int(digits) for digits in re.findall("[0-9]+", other)]))
    assert newest is not None
    return newest


def _kind(release: str) -> tuple[str, str]:
    """Series and architecture."""
    return ".".join(release.split(".")[:2]), release.rpartition("-")[2]


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
