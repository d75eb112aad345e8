"""Which of the user's kernels a module of another architecture is for."""

from dataclasses import dataclass

import pytest

from kodojo.cli.suitable import name_suitable_kernels, suitable_kernels
from kodojo.errors import ImageError, LoadError, Refusal
from tests.support.architectures import module


@dataclass
class Opened:
    architecture: str


class Store:
    """A store of kernels, one of them damaged."""

    def __init__(self):
        self.kernels = {"6.1-amd64": "x86_64", "6.1-arm64": "arm64", "6.12-arm64": "aarch64", "6.1-damaged": ""}

    def names(self):
        return list(self.kernels)

    def open(self, name):
        if not self.kernels[name]:
            raise ImageError("damaged")
        return Opened(self.kernels[name])


@pytest.mark.parametrize(
    ("architecture", "names"), [("aarch64", ["6.1-arm64", "6.12-arm64"]), ("x86_64", ["6.1-amd64"]), ("s390x", [])]
)
def test_suitable(architecture, names):
    """Kernels of the module's architecture, by whichever of its names."""
    assert suitable_kernels(Store(), module(architecture, bytes(4)).build()) == names
    assert suitable_kernels(Store(), b"no module") == []


@pytest.mark.parametrize(
    ("architecture", "hint"), [("aarch64", "6.1-arm64, 6.12-arm64"), ("s390x", "No kernel in the store")]
)
def test_hint(architecture, hint, tmp_path):
    """The hint of a refusal for the architecture names them; other refusals keep theirs."""
    file = tmp_path / "module.ko"
    file.write_bytes(module(architecture, bytes(4)).build())
    for slug in ("elf-architecture", "elf-type"):
        error = LoadError("no", Refusal(errno=8, step="", slug=slug, why="", hint="Take another."))
        name_suitable_kernels(error, Store(), str(file))
        assert error.hint.startswith("Take another.")
        assert (hint in error.hint) == (slug == "elf-architecture")
