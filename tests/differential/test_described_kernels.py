"""What headers say about modules against what the kernel itself says: never anything else, if sometimes less."""

from __future__ import annotations

import shutil
from functools import lru_cache

import pytest

from kodojo.image.image import Image
from kodojo.loader.verdict import Verdict, check
from tests.conftest import image_of
from tests.damage.bases import Base, bases
from tests.damage.mutations import make_case
from tests.support import distribution

pytestmark = pytest.mark.kernel

SAMPLE = 40
"""Modules of the distribution, evenly spread."""

CASES = 100
SEED = 4

PARTS = {
    "headers": None,
    "symvers and config": ("Module.symvers", ".config", "include/generated/utsrelease.h"),
    "symvers": ("Module.symvers",),
}
"""What is left of the headers package; None: all."""

# The subject of a sentence in Verdict.unmade -> what the kernel may say for which headers have no word.
EXCUSES = {
    "signature": ("module verification failed", "bad-signature", "blacklisted-module"),
    "ranges of relocations": ("relocation-overflow",),
    "struct module's size": ("struct-module-size", "would-damage-kernel", "relocation-target-nonzero"),
    "struct module in the file is not empty": ("",),
    "architecture": ("elf-architecture",),
    "version magic": ("vermagic",),
}
DIFFERENCES = ("the value in the log", "other words", "other lines", "the errno would be")
"""What is said where the errno is not all of the kernel's answer."""


@pytest.fixture(params=PARTS)
def described(request, series, tmp_path, monkeypatch):
    if request.param == "symvers" and series in distribution.ARM64:
        pytest.skip("Module.symvers does not say for which architecture it is: x86-64 is supposed, and said so")
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))
    build = distribution.kernel_of(series).build_directory
    for name in PARTS[request.param] or ():
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / name, tmp_path / "parts" / name)
    return Image.open(tmp_path / "parts" if PARTS[request.param] else build)


@lru_cache
def damaged_bases(series: str) -> list[Base]:
    return bases(image_of(series), series)


def test_facts(series, tmp_path, monkeypatch):
    """Release, version magic and every export of the headers package are those of the kernel."""
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))
    kernel, headers = image_of(series), Image.open(distribution.kernel_of(series).build_directory)
    assert (headers.release, headers.vermagic) == (kernel.release, kernel.vermagic)
    assert headers.warnings == ()
    assert dict(kernel.config).items() <= dict(headers.config).items()
    facts = [[(e.name, e.crc, e.gpl, e.namespace) for e in image.exports] for image in (headers, kernel)]
    assert facts[0] == facts[1]


def test_distribution_modules(series, described):
    """Modules of the distribution load by headers as they do by the kernel."""
    kernel = image_of(series)
    names = sorted(kernel.modules)
    for name in names[:: len(names) // SAMPLE]:
        content = kernel.modules[name].read()
        compare(name, check(described, content), check(kernel, content))


def test_damaged_modules(series, described):
    """An errno that headers give is the kernel's, with its log; what they do not see they say they did not check."""
    for number in range(CASES):
        case = make_case(damaged_bases(series), SEED, number)
        arguments = case.arguments.split()
        compare(
            f"{number}: {case.text}",
            check(described, case.data, *arguments),
            check(image_of(series), case.data, *arguments),
        )


def compare(what: str, by_headers: Verdict, by_kernel: Verdict) -> None:
    if answer(by_headers) == answer(by_kernel):
        return
    said = " ".join(by_headers.unmade)
    assert said, f"{what}: {answer(by_headers)} by headers, {answer(by_kernel)} by the kernel"
    if not by_headers.ok:
        assert not by_kernel.ok, what
        assert by_headers.errno == by_kernel.errno or by_kernel.why in said, what
        assert [line for line in DIFFERENCES if line in said], f"{what}: {answer(by_headers)}, {answer(by_kernel)}"
        return
    lacking = [by_kernel.slug, *(record.text for record in by_kernel.log if record not in by_headers.log)]
    excused = [
        word for subject, words in EXCUSES.items() if subject in said for word in words if word in " ".join(lacking)
    ]
    assert excused or by_kernel.why in said or "the log would have" in said, f"{what}: {lacking} and only {said}"


def answer(verdict: Verdict) -> tuple[int, list[tuple[int, str]]]:
    return verdict.errno, [(record.level, record.text) for record in verdict.log]
