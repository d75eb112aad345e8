"""What QEMU answered is what our loader answers: a part of the cases of ``make oracle``, whose answers are kept."""

from __future__ import annotations

import pytest

from kodojo.image.image import Image
from tests.conftest import image_of
from tests.oracle import records
from tests.oracle.answers import HANG
from tests.oracle.catalogue import GROUPS, catalogue
from tests.oracle.emulated import answer, ready
from tests.oracle.judge import ACCEPTED, judged
from tests.oracle.runner import Answers
from tests.support.accepted import accepted, judge

pytestmark = pytest.mark.kernel

# Each how-manieth case is tried, so that all are over in half a minute, and those of arm64 in less. What hangs takes
# a minute by itself. `make oracle` tries all.
STEPS = {"tree": 12, "malformed": 4, "damaged": 6}
STEP = 5
LONGER_STEPS = {"x86_64": 1, "aarch64": 3}


def recorded(image: Image) -> records.Records:
    found = records.read(image.release)
    if found is None:
        kept = ", ".join(records.recorded_releases())
        pytest.skip(f"no answers of QEMU are kept for {image.release} (but for {kept}): run make oracle")
    return found


def test_same_computer(series: str) -> None:
    """Kernel and processor say of themselves in our machine what they said under QEMU."""
    kept = recorded(image_of(series))
    kernel = ready(series)
    twin = kernel.fork()
    assert twin.read_file("/proc/version").decode().strip() == kept.version
    # QEMU's processor has the CPUID leaf of the topology (0xB), which newer kernels make a flag of; ours has not.
    assert twin.read_file("/proc/cpuinfo").decode() == kept.processor.replace(" xtopology ", " ")


@pytest.mark.parametrize("group", GROUPS)
def test_same_answers(series: str, group: str) -> None:
    """Every call returns, logs and leaves what it did under QEMU."""
    image = image_of(series)
    kept = recorded(image)
    cases = catalogue(image, series, [group])
    known = [case for case in cases if case.digest in kept.answers]
    found = []
    quick = [case for case in known if kept.answers[case.digest][-1].end != HANG]
    for case in quick[:: STEPS.get(group, STEP) * LONGER_STEPS[image.architecture]]:
        ours = Answers(kept.answers[case.digest], {"ours": answer(series, case, "ours")})
        found.append(judged(series, case, ours))
    judge(found, accepted(ACCEPTED))
    assert [entry for entry in found if entry["status"] == "disagreed"] == []
    unknown = len(cases) - len(known)
    if unknown:
        reason = "are new, or have modules in them that another compiler built"
        pytest.skip(f"{unknown} of {len(cases)} cases {reason} (run make oracle); the others agree")
