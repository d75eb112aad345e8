"""Small modules built against the distribution's headers, and checked against its kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kodojo.check.build.build import Settings, build_all
from kodojo.check.build.sandbox import Limits
from kodojo.check.build.sources import find_sources
from kodojo.check.matrix import Kernel, check_matrix
from kodojo.check.results import Matrix, Status
from kodojo.check.sources import Spool
from kodojo.check.work import run_here
from kodojo.errors import InputError
from kodojo.image.image import Image
from tests.conftest import image_of
from tests.support.distribution import kernel_of, tools
from tests.support.sources import CONF, GREETING, MISTAKEN, write_dkms_package, write_source

pytestmark = pytest.mark.kernel
SERIES = ("6.1", "6.12")
PATCH = b"""\
--- a/hello.c
+++ b/hello.c
@@ -2,2 +2,3 @@
 #include <linux/module.h>
+#include "extra.h"
 static int __init hello_init(void) { return 0; }
"""


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    """gcc and make, also where the machine has none."""
    for name, value in tools().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def check(tmp_path):
    """A function: the matrix of sources, for the kernels of both series or of some."""

    def function(*words: Path, series: tuple[str, ...] = ("6.1",), **settings) -> Matrix:
        work = tmp_path / "work"
        work.mkdir()
        kernels = [Kernel(name, image_of(name)) for name in series]
        settings.setdefault("headers", tuple(str(kernel_of(name).headers_root) for name in series))
        chosen = Settings(tmp_path / "store", **settings)
        sources, _ = find_sources(map(str, words), work)
        with Spool() as spool:
            built = build_all(sources, kernels, chosen, spool)
            return check_matrix(kernels, (), run_here, built=built)

    return function


def header_packages() -> list[Path]:
    """The packages that the headers of 6.1 came in."""
    kernel = kernel_of("6.1")
    names = (f"linux-headers-{kernel.release}", kernel.source_directory.name, "linux-kbuild-6.1")
    return [next(kernel.image_deb.parent.glob(f"{name}_*.deb")) for name in names]


def test_a_dkms_package_for_both_kernels(check, tmp_path):
    """Each kernel gets its own build, which it would load; its name is the package's and the module's."""
    package = write_dkms_package(tmp_path / "hello.deb")
    matrix = check(package, series=SERIES, jobs=2)
    assert matrix.modules == (f"{package}:hello.ko",)
    assert {result.kernel: result.status for result in matrix} == dict.fromkeys(SERIES, Status.OK)
    assert len({result.sha256 for result in matrix}) == 2
    assert matrix.exit_status == 0


def test_a_directory(check, tmp_path):
    """A directory with a Kbuild is built elsewhere: nothing is added to it; what was built there does not count."""
    source = write_source(tmp_path / "hello")
    (source / "stale.ko").write_bytes(b"old")
    before = sorted(source.iterdir())
    matrix = check(source)
    assert {result.module: result.status for result in matrix} == {f"{source}/hello.ko": Status.OK}
    assert sorted(source.iterdir()) == before


def test_a_mistake_in_the_source(check, tmp_path):
    """What does not build is a result of its own, with the compiler's first error; the rest is checked."""
    bad = write_dkms_package(tmp_path / "bad.deb", source=MISTAKEN)
    matrix = check(bad, write_source(tmp_path / "good"), logs=tmp_path / "logs")
    result, good = matrix
    assert (result.module, result.status, good.status) == (f"{bad}:hello.ko", Status.NOT_BUILT, Status.OK)
    assert result.why.startswith("hello.c:3:")
    assert "'nowhere_to_be_found' undeclared" in result.why
    assert "nowhere_to_be_found" in Path(result.not_built.log).read_text()
    assert matrix.exit_status == 1


def test_what_a_module_needs_of_another_one(check, tmp_path):
    """Modules of one source, and of several, see each other's exports."""
    text = GREETING + b"\nint given(void);\nint given(void) { return 1; }\nEXPORT_SYMBOL(given);\n"
    user = GREETING.replace(b"return 0;", b"return given();").replace(
        b"static int", b"int given(void);\nstatic int", 1
    )
    source = write_source(tmp_path / "two", text, kbuild="obj-m := hello.o user.o\n")
    (source / "user.c").write_bytes(user)
    results = {Path(result.module).name: result for result in check(source)}
    assert {name: result.status for name, result in results.items()} == {"hello.ko": Status.OK, "user.ko": Status.OK}
    assert results["user.ko"].first == (f"{source}/hello.ko",)


def test_commands_of_a_package(check, tmp_path):
    """MAKE, PRE_BUILD and PATCH are run in the directory of the build, as by DKMS; a name at the end may differ."""
    conf = CONF + (
        'MAKE[0]="make -C /lib/modules/$kernelver/build M=$dkms_tree/hello/1.0/build modules"\n'
        'PRE_BUILD="prepare.sh now"\nPATCH[0]="extra.patch"\nDEST_MODULE_NAME[0]="hallo"\n'
    )
    scripts = {"prepare.sh": b'#!/bin/sh\necho "/* $1 */" > extra.h\n', "patches/extra.patch": PATCH}
    package = write_dkms_package(tmp_path / "hello.deb", conf, scripts=scripts)
    (result,) = check(package)
    assert (result.module, result.status) == (f"{package}:hallo.ko", Status.OK)


@pytest.mark.parametrize(
    ("conf", "why"),
    [
        (CONF + 'BUILD_EXCLUSIVE_KERNEL="^5"', 'dkms.conf excludes this kernel: BUILD_EXCLUSIVE_KERNEL="^5"'),
        ("PACKAGE_NAME=x", "dkms.conf: it has no PACKAGE_VERSION"),
        (CONF + "MAKE='echo a.c:1:1: error: odd; true'", "a.c:1:1: error: odd"),
        (CONF + "MAKE=true", "it was built, but hello.ko: cannot be read: No such file or directory"),
        (CONF + 'PATCH[0]="nothing.patch"', "error: patch nothing.patch cannot be applied"),
        (CONF + "MAKE='ln -s /etc/passwd hello.ko'", "it was built, but hello.ko: leads out of the directory"),
        (CONF + "MAKE='while :; do :; done'", "the build was stopped: it was not done after 10 s"),
        ("while :; do :; done", "dkms.conf: its evaluation was stopped: it was not done after 10 s"),
        (CONF + "MAKE='echo configure: error: no; exit 3'", "configure: error: no"),
    ],
)
def test_what_does_not_build(check, tmp_path, conf, why):
    """Whatever a package is like, there is one result that says why there is no module."""
    limits = Limits(time=10.0) if "while" in conf else Limits()
    (result,) = check(write_dkms_package(tmp_path / "hello.deb", conf), limits=limits)
    assert result.status is Status.NOT_BUILT
    assert result.why.startswith(why)


def test_without_a_sandbox(check, tmp_path):
    """With this user's own rights a module is built, too, against headers from packages."""
    package = write_dkms_package(tmp_path / "hello.deb")
    (result,) = check(package, sandbox=False, headers=tuple(map(str, header_packages())))
    assert result.status is Status.OK


def test_without_a_sandbox_headers_must_be_in_place(check, tmp_path):
    """Debian's headers, only unpacked, look for each other where they would be installed: that is said."""
    (result,) = check(write_dkms_package(tmp_path / "hello.deb"), sandbox=False)
    assert result.status is Status.UNCHECKED
    assert "-common/Makefile, which is not there" in result.why


def test_no_compiler(check, tmp_path, monkeypatch):
    """Where the compiler is not here, that is said, with what brings it; it is not the source's fault."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("make", "bash"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    (result,) = check(write_dkms_package(tmp_path / "hello.deb"))
    assert (result.status, result.why) == (
        Status.UNCHECKED,
        "there is no gcc here, which the kernel's headers ask for",
    )
    assert result.hint == "apt-get install gcc"


def test_headers_that_are_none(tmp_path):
    """What is given as headers and is none ends the command, with what to give."""
    (tmp_path / "empty").mkdir()
    with Spool() as spool, pytest.raises(InputError, match="has no headers"):
        build_all([], [], Settings(tmp_path / "store", headers=(str(tmp_path / "empty"),)), spool)


def test_headers_in_packages(tmp_path):
    """Headers are given as packages; where one of them is missing, the refusal names it."""
    packages = [str(path) for path in header_packages() if "kbuild" not in path.name]
    with Spool() as spool, pytest.raises(InputError, match=r"they need linux-kbuild-6\.1, too"):
        build_all([], [], Settings(tmp_path / "store", headers=tuple(packages)), spool)


def test_another_architecture(tmp_path, monkeypatch):
    """A kernel for arm64 is built for by the cross compiler; where that is missing, its package is named."""
    kernel = kernel_of("6.1-arm64")
    source = write_source(tmp_path / "hello")
    (tmp_path / "work").mkdir()
    sources, _ = find_sources([str(source)], tmp_path / "work")
    kernels = [Kernel("arm", Image.open(str(kernel.build_directory)))]
    settings = Settings(tmp_path / "store", headers=(str(kernel.headers_root),))
    with Spool() as spool:
        lonely = os.pathsep.join(["/usr/bin", "/bin"])
        if not Path("/usr/bin/aarch64-linux-gnu-gcc").exists():
            monkeypatch.setenv("PATH", lonely)
            (missing,) = build_all(sources, kernels, settings, spool)["arm"].others
            assert missing.hint == "apt-get install gcc-aarch64-linux-gnu"
        for name, value in tools("arm64").items():
            monkeypatch.setenv(name, value)
        (module,) = build_all(sources, kernels, settings, spool)["arm"].modules
    assert module.architecture == "aarch64"
