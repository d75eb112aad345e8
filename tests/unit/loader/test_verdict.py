from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import pytest

from kodojo.errors import InputError
from kodojo.image.exports import Export
from kodojo.image.payload import Payload, unpacked
from kodojo.loader.verdict import check
from tests.support.loading import SpyTarget, export, finish, loadable, module, parameters


@dataclass
class File:
    """A module of a tree that is written down in a test."""

    content: bytes
    depends: tuple[str, ...] = ()

    def payload(self) -> Payload:
        return unpacked(self.content, "file")


def paper(*exports: Export, late: bool = False, **modules: File):
    image = SpyTarget(*exports, late=late).image
    image.modules = modules
    return image


def importer(depends: str = "provider") -> bytes:
    writer = loadable(info={"depends": depends})
    writer.symbol("provided")
    return finish(writer).build()


def provider() -> bytes:
    writer = loadable(name="provider")
    export(writer, "provided", crc=None)
    return finish(writer).build()


def test_good_module(tmp_path):
    """A good file has a verdict without a reason, whether it comes as bytes or as a path."""
    content = module().build()
    (tmp_path / "paper.ko").write_bytes(content)
    for file in (content, tmp_path / "paper.ko", str(tmp_path / "paper.ko")):
        verdict = check(paper(), file)
        assert (verdict.ok, verdict.errno, verdict.slug, verdict.why, verdict.log) == (True, 0, "ok", "", ())
        assert verdict.steps[-1].name == "free_copy"


def test_bad_module():
    """A refusal is an answer: errno, reason, lines, and the step where it stopped."""
    verdict = check(paper(), importer(depends=""))
    assert (verdict.ok, verdict.errno, verdict.slug) == (False, 2, "unknown-symbol")
    assert [record.text for record in verdict.log] == ["paper: Unknown symbol provided (err -2)"]
    assert verdict.steps[-1].name == "simplify_symbols"
    assert "provided" in verdict.why


def test_dependencies_are_loaded_first():
    """What the module depends on comes from the image's tree, unless that is not wanted."""
    image = paper(provider=File(provider()))
    assert check(image, importer()).ok
    assert check(image, importer(), dependencies=False).slug == "unknown-symbol"
    assert check(image, importer(depends="gone")).slug == "unknown-symbol"


def test_dependencies_that_fail():
    """A dependency that cannot be loaded is missing, and none of its lines are in the verdict."""
    verdict = check(paper(provider=File(b"not a module")), importer())
    assert [record.text for record in verdict.log] == ["paper: Unknown symbol provided (err -2)"]


def test_arguments():
    """Arguments are tried; those that only the module's own code can judge are named."""
    writer = loadable()
    parameters(writer, {"number": ("int", 0)})
    content = finish(writer).build()
    assert check(paper(), content, "number=1", "other=2").ok
    assert check(paper(), content, "number=1", "number=x").slug == "parameter-invalid"
    assert check(paper(), content, "number=1").unchecked == ()


def test_unreadable_file(tmp_path):
    """A file that cannot be read is the user's problem."""
    with pytest.raises(InputError, match=r"gone\.ko"):
        check(paper(), tmp_path / "gone.ko")


def test_damaged_compression():
    """A compressed file that kmod cannot unpack would not be loaded: that is an answer, too."""
    verdict = check(paper(), b"\xfd7zXZ\x00damaged")
    assert (verdict.ok, verdict.errno, verdict.slug, verdict.log) == (False, 22, "damaged-compression", ())
    assert verdict.problems[0].step == verdict.steps[-1].name == "insmod"


# -- real kernels -------------------------------------------------------------------------------------

SAMPLE = 60
"""Modules of the distribution's tree that are loaded, evenly spread."""


@pytest.mark.kernel
def test_distribution_modules_load(image):
    """Modules that were built with the kernel load, silently, with their dependencies."""
    names = sorted(image.modules)
    for name in names[:: len(names) // SAMPLE]:
        verdict = check(image, image.modules[name].path)
        assert (name, verdict.ok, verdict.why) == (name, True, "")
        expected = ["is from the staging directory"] if "/staging/" in str(image.modules[name].path) else []
        assert [text for text in expected if text in " ".join(r.text for r in verdict.log)] == expected


@pytest.mark.kernel
def test_distribution_module_with_arguments(image):
    """dummy's only parameter is an int."""
    path = image.modules["dummy"].path
    assert check(image, path, "numdummies=3").ok
    verdict = check(image, path, "numdummies=three", "nothing=1")
    assert (verdict.errno, verdict.slug) == (22, "parameter-invalid")
    assert [record.text for record in verdict.log] == [
        "dummy: `three' invalid for parameter `numdummies'",
        "dummy: unknown parameter 'nothing' ignored",
    ]


@pytest.mark.kernel
def test_distribution_module_without_its_dependencies(image):
    """ext4 needs jbd2: each symbol of it has a line."""
    verdict = check(image, image.modules["ext4"].path, dependencies=False)
    assert (verdict.errno, verdict.slug) == (2, "unknown-symbol")
    assert any(record.text.startswith("ext4: Unknown symbol jbd2_") for record in verdict.log)
    assert {record.level for record in verdict.log} == {4}


@pytest.mark.kernel
def test_damaged_modules_have_a_verdict(image):
    """Whatever bytes are changed, there is a verdict and no other exception."""
    content = image.modules["dummy"].read()
    end = content.rindex(b"~Module signature appended~")
    content = content[: end - 12 - struct.unpack(">I", content[end - 4 : end])[0]]
    headers = struct.unpack_from("<Q", content, 40)[0]
    source = random.Random(20)
    for _ in range(150):
        damaged = bytearray(content)
        for start in source.choices([0, headers, headers, 0], k=source.randint(1, 3)):
            stop = 64 if start == 0 and source.random() < 0.3 else len(damaged)
            damaged[source.randrange(start, stop)] = source.choice([0, 1, 0x7F, 0xFF, source.randrange(256)])
        verdict = check(image, bytes(damaged), "numdummies=1")
        assert verdict.ok == (verdict.errno == 0)
