"""Which of the user's kernels a module is for that another one refused."""

from dataclasses import dataclass

import pytest

from kodojo.check.suitable import Origin, StoreKernels
from kodojo.errors import ImageError, MissingInformationError, Refusal
from kodojo.loader.verdict import Verdict
from tests.support.architectures import module


@dataclass
class Opened:
    architecture: str
    known_release: str

    @property
    def release(self):
        if not self.known_release:
            raise MissingInformationError("nothing says it")
        return self.known_release


class Store:
    """A store of kernels, one of them damaged, one without a release."""

    def __init__(self):
        self.kernels = {
            "6.1-amd64": Opened("x86_64", "6.1-amd64"),
            "6.1-arm64": Opened("aarch64", "6.1-arm64"),
            "6.12-arm64+headers": Opened("arm64", "6.12-arm64"),
            "6.13-arm64": Opened("aarch64", ""),
            "6.1-damaged": None,
        }
        self.opened = 0

    def names(self):
        return list(self.kernels)

    def open(self, name):
        self.opened += 1
        if self.kernels[name] is None:
            raise ImageError("damaged")
        return self.kernels[name]


X86 = Opened("x86_64", "6.12-amd64")


def suitable(origin, image=X86, slug="vermagic-mismatch", store=None):
    return StoreKernels(store or Store()).suitable(lambda: Origin(*origin), image, ["ok-so-far", slug])


@pytest.mark.parametrize("slug", ["elf-architecture", "vermagic-mismatch"])
@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("6.12-arm64", ("6.12-arm64+headers", "6.1-arm64", "6.13-arm64")),
        ("", ("6.1-arm64", "6.12-arm64+headers", "6.13-arm64")),
    ],
)
def test_architecture(slug, release, names):
    """Kernels of the module's architecture, by whichever of its names; that of its release first."""
    assert suitable(("aarch64", release), slug=slug).names == names


def test_no_such_architecture():
    """Where the store has no kernel of the architecture, that is said."""
    found = suitable(("s390x", ""))
    assert found.names == ()
    assert found.sentence.startswith("No kernel in the store has its architecture")


def test_release():
    """The kernel that it was built for, of its architecture; nothing if the store has none, or it is the same."""
    assert suitable(("x86_64", "6.1-amd64")).names == ("6.1-amd64",)
    assert suitable(("x86_64", "6.1-arm64")).sentence == ""
    assert suitable(("x86_64", "6.1-amd64"), Opened("x86_64", "6.1-amd64")).sentence == ""
    assert suitable(("x86_64", "")).sentence == ""


def test_other_reasons():
    """Other refusals have nothing to do with the kernel; neither the store nor the module is looked at."""
    store = Store()
    found = StoreKernels(store).suitable(lambda: pytest.fail("asked"), X86, ["elf-type", "parameter-invalid"])
    assert (found.names, found.sentence, store.opened) == ((), "", 0)


def test_opened_once():
    """However many modules are asked for, each kernel is opened once."""
    store = Store()
    stored = StoreKernels(store)
    for _ in range(3):
        stored.suitable(lambda: Origin("aarch64", ""), X86, ["elf-architecture"])
    assert store.opened == len(store.kernels)


def test_origin():
    """A module's architecture and release are read from it; what is no module has neither."""
    content = module("s390x", bytes(4)).build().replace(b"vermagic=9.9-paper", b"vermagic=6.1-s390x")
    assert Origin.of(content) == ("s390x", "6.1-s390x")
    assert Origin.of(content[:80]) == ("s390x", "")
    assert Origin.of(b"no module") == ("", "")


def test_told():
    """The sentence is in the hint of the problem that it is about, and in the verdict's if that is the first one."""

    def problem(slug):
        return Refusal(errno=8, step="", slug=slug, why="", hint=f"Mend {slug}.")

    def told(*slugs):
        problems = tuple(map(problem, slugs))
        verdict = Verdict(ok=False, hint=problems[0].hint, problems=problems)
        return suitable(("x86_64", "6.1-amd64"), slug=slugs[-1]).told(verdict)

    first = told("vermagic-mismatch", "symbol-version")
    assert (
        first.hint
        == first.problems[0].hint
        == ("Mend vermagic-mismatch. The store has the kernel that it was built for: 6.1-amd64.")
    )
    assert first.problems[1].hint == "Mend symbol-version."
    second = told("unsigned-module", "symbol-version")
    assert second.hint == "Mend unsigned-module."
    assert second.problems[1].hint.endswith("built for: 6.1-amd64.")
