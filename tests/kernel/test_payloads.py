"""Module files brought into a running kernel: it answers as its image does on paper, by whatever door they come."""

from __future__ import annotations

from pathlib import Path

import pytest

from kodojo.errors import LoadError
from tests.support.payloads import files_of

pytestmark = pytest.mark.kernel

SHOWN = 8  # lines of a log that are compared
FORMS = ("plain", "gzip", "xz-crc64", "zstd-stream", "bzip2")
STATES = ("whole", "cut-half", "signature", "zeros-4", "two", "nothing", "short", "named-plain")
NAMES = {f"{form}-{state}" for form in FORMS for state in STATES} | {"bytes-0", "bytes-5", "bytes-6", "bytes-63"}
"""The states that differ in what becomes of them; what is the same for a kernel is left to test_doors.py."""


def answer(kernel, file):
    """What insmod in a copy of the kernel says: errno, reason, lines of a refusal; and the warnings."""
    try:
        module = kernel.fork().insmod(file)
    except LoadError as error:
        return error.errno, error.slug, texts(error.log), error.warnings
    return 0, "ok", (), module.warnings


def texts(log):
    return tuple(record.text for record in log[:SHOWN])


def test_a_running_kernel_answers_as_on_paper(kernel, built, image, tmp_path):
    """insmod of a path and of the bytes of a file says what check says, for each state that a file may be in."""
    every = files_of(built["kd_noinit"].read_bytes())
    files = {name: data for name, data in every.items() if name.partition(".")[0] in NAMES}
    assert len(files) == len(NAMES) - len({"plain-named-plain"})
    wrong = []
    for name, data in files.items():
        path = Path(tmp_path, name)
        path.write_bytes(data)
        verdict = image.check(path)
        said = verdict.errno, verdict.slug, () if verdict.ok else texts(verdict.log), verdict.warnings
        wrong += [(name, form, found, said) for form in (path, data) if (found := answer(kernel, form)) != said]
    assert wrong == []
