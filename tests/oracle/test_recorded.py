"""What QEMU answered is what our loader answers: a part of the cases of ``make oracle``, whose answers are kept."""

from __future__ import annotations

from typing import Any

import pytest

from kodojo.image.image import Image
from tests.conftest import image_of
from tests.oracle import records
from tests.oracle.answers import HANG, Answer
from tests.oracle.cases import Case
from tests.oracle.catalogue import GROUPS, catalogue
from tests.oracle.emulated import answer, ready
from tests.oracle.judge import ACCEPTED, judged
from tests.oracle.other_builds import neutral
from tests.oracle.runner import Answers
from tests.support.accepted import accepted, judge

pytestmark = pytest.mark.kernel

# Each how-manieth case is tried, so that all are over in half a minute, and those of arm64 in less. What hangs takes
# a minute by itself. `make oracle` tries all.
STEPS = {"tree": 12, "malformed": 4, "damaged": 6, "machine": 16}
STEP = 5
LONGER_STEPS = {"x86_64": 1, "aarch64": 3}


# Of these kernels QEMU has not been asked everything that is about the machine (tests/oracle/machine.py).
NOT_ASKED = {"6.1-arm64", "6.12-arm64"}
# Of these the names say what was done to the bytes, so another compiler's or release's have other ones.
NAMED_BY_BYTES = {"damaged"}


def test_same_computer(series: str) -> None:
    """Kernel and processor say of themselves in our machine what they said under QEMU."""
    image = image_of(series)
    kept = records.nearest(image.release)
    twin = ready(series).fork()
    # QEMU's processor has the CPUID leaf of the topology (0xB), which newer kernels make a flag of; ours has not.
    processor = kept.processor.replace(" xtopology ", " ")
    if image.release == kept.release:
        assert twin.read_file("/proc/version").decode().strip() == kept.version
        assert twin.read_file("/proc/cpuinfo").decode() == processor
    else:  # which flaws and features a processor has is what the release knows of them
        ours, theirs = (_without_knowledge(text) for text in (twin.read_file("/proc/cpuinfo").decode(), processor))
        assert ours == theirs


def _without_knowledge(processor: str) -> list[str]:
    return [line for line in processor.splitlines() if not line.startswith(("flags", "Features", "bugs"))]


@pytest.mark.parametrize("group", GROUPS)
def test_same_answers(series: str, group: str) -> None:
    """Every call returns, logs and leaves what it did under QEMU; another build of the kernel or of our modules, too,
    but for what differs by that (:mod:`tests.oracle.other_builds`)."""
    image = image_of(series)
    kept = records.nearest(image.release)
    cases = catalogue(image, series, [group])
    known = [case for case in cases if (case.group, case.name) in kept.digests]
    same = all(kept.digests[case.group, case.name] == case.digest for case in known)
    if image.release == kept.release and (same or group not in NAMED_BY_BYTES):
        unknown = [case.name for case in cases if case not in known]
        is_complete = group != "machine" or series not in NOT_ASKED
        assert (unknown == []) is is_complete, f"QEMU has not been asked, or now has: run make oracle; {unknown}"
    assert known or group in {*NAMED_BY_BYTES, "machine"}
    found = [_judged(series, case, kept) for case in _sample(known, kept, group, image)]
    judge(found, accepted(ACCEPTED))
    assert [entry for entry in found if entry["status"] == "disagreed"] == []


def _sample(known: list[Case], kept: records.Records, group: str, image: Image) -> list[Case]:
    quick = [case for case in known if _answers(case, kept)[-1].end != HANG]
    return quick[:: STEPS.get(group, STEP) * LONGER_STEPS[image.architecture]]


def _answers(case: Case, kept: records.Records) -> list[Answer]:
    return list(kept.answers[kept.digests[case.group, case.name]])


def _judged(series: str, case: Case, kept: records.Records) -> dict[str, Any]:
    ours, theirs = answer(series, case, "ours"), _answers(case, kept)
    if case.digest not in kept.answers:
        ours, theirs = neutral(ours), neutral(theirs)
    return judged(series, case, Answers(theirs, {"ours": ours}))
