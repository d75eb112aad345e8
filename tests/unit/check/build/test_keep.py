"""Where built modules are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodojo.check.build.keep import keep, places_to_keep
from kodojo.check.build.sources import Source
from kodojo.errors import InputError


def source(title: str, label: str = "x.deb") -> Source:
    return Source(label, title, "dkms", Path("/nowhere"), packaged=True)


def files_below(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.fixture
def built(tmp_path):
    """A file that a build has left."""
    path = tmp_path / "1.ko"
    path.write_bytes(b"new")
    return path


def test_by_kernel_and_package(tmp_path, built):
    """A module lies below the kernel's name, and the package's with its version."""
    places = places_to_keep(tmp_path / "kept", [source("hello 1.0")], ["6.1", "6.12"])
    for place in places.values():
        keep(place, [("hello.ko", built)])
    assert files_below(tmp_path / "kept") == {"6.1/hello-1.0/hello.ko": b"new", "6.12/hello-1.0/hello.ko": b"new"}


@given(kernel=st.text(), title=st.text(), name=st.text())
def test_no_name_leads_out(tmp_path_factory, kernel, title, name):
    """Whatever kernels, packages and modules are called: the file is below the directory, and not hidden."""
    directory = tmp_path_factory.mktemp("any")
    content = directory / "content"
    content.write_bytes(b"new")
    (place,) = places_to_keep(directory / "kept", [source(title)], [kernel]).values()
    keep(place, [(name, content)])
    found = files_below(directory)
    assert len(found) == 2
    del found["content"]
    (path,) = found
    assert path.startswith("kept/")
    assert not any(part.startswith(".") for part in Path(path).parts)


@pytest.mark.parametrize("name", ["..", "../../hello.ko", "/etc/hello.ko", "a/../../../hello.ko", "."])
def test_hostile_names(tmp_path, built, name):
    """Names that are made to lead out do not."""
    keep(tmp_path / "kept" / "6.1" / "hello", [(name, built)])
    (path,) = files_below(tmp_path / "kept")
    assert path.startswith("6.1/hello/")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1.ko", "kept"]


def test_what_is_there(tmp_path, built):
    """A file of that name is replaced, as a whole: a link to it still has the old one; other files stay."""
    place = tmp_path / "kept"
    place.mkdir()
    (place / "hello.ko").write_bytes(b"old")
    (place / "other.ko").write_bytes(b"other")
    (tmp_path / "link").hardlink_to(place / "hello.ko")
    keep(place, [("hello.ko", built)])
    assert files_below(place) == {"hello.ko": b"new", "other.ko": b"other"}
    assert (tmp_path / "link").read_bytes() == b"old"


def test_a_link_is_not_followed(tmp_path, built):
    """Where a file of that name is a link, the link is replaced; what it leads to stays."""
    place = tmp_path / "kept"
    place.mkdir()
    (tmp_path / "mine").write_bytes(b"mine")
    (place / "hello.ko").symlink_to(tmp_path / "mine")
    keep(place, [("hello.ko", built)])
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert files_below(place) == {"hello.ko": b"new"}


def test_two_sources_of_one_name(tmp_path):
    """Two packages whose modules would come into one directory are refused, with both names."""
    both = [source("hello 1.0", "a.deb"), source("hello-1.0", "b.deb")]
    with pytest.raises(InputError, match=r"a\.deb and b\.deb: .*6\.1/hello-1\.0"):
        places_to_keep(tmp_path, both, ["6.1"])


def test_two_modules_of_one_name(tmp_path, built):
    """Two modules of one source that would become one file are refused, not one of them lost."""
    with pytest.raises(InputError, match="two of the modules"):
        keep(tmp_path / "kept", [("a b.ko", built), ("a_b.ko", built)])


def test_a_place_that_cannot_be_written(tmp_path, built):
    """A directory that cannot be made is named, and nothing half-written is left."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/6\.1/hello\.ko: cannot be written: Not a directory"):
        keep(tmp_path / "file" / "6.1", [("hello.ko", built)])
    (tmp_path / "kept" / "hello.ko" / "in").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        keep(tmp_path / "kept", [("hello.ko", built)])
    assert files_below(tmp_path / "kept") == {}
