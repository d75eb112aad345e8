"""dkms.conf, as bash evaluates it and DKMS reads it."""

from __future__ import annotations

import os

import pytest

from kodojo.check.build.dkms import EVALUATE, MAKE, Conf, Record, read_answers
from kodojo.check.build.sandbox import Limits, Sandbox
from kodojo.errors import InputError

START = 'PACKAGE_NAME="hello"\nPACKAGE_VERSION="1.0"\nDEST_MODULE_LOCATION="/updates"\n'

ASKS = """
[ -f $kernel_source_dir/.config ] && . $kernel_source_dir/.config
[ "$CONFIG_USB" = m ] && BUILD_EXCLUSIVE_KERNEL="no USB please"
"""


@pytest.fixture
def evaluate(tmp_path):
    """A function: what a dkms.conf says for a kernel whose configuration has these lines."""

    def function(text: str, release: str = "6.1.0-5-amd64", config: str = "") -> Conf:
        sandbox = Sandbox(tmp_path.resolve(), limits=Limits(time=30.0))
        headers = sandbox.work / "headers"
        headers.mkdir()
        (headers / ".config").write_text(config)
        (sandbox.work / "dkms.conf").write_text(text)
        variables = {"kernelver": release, "arch": "x86_64", "kernel_source_dir": str(headers), "dkms_tree": "/tree"}
        paths = [str(sandbox.work / name) for name in ("dkms.conf", "answers")]
        done = sandbox.run(["bash", "--norc", "-c", EVALUATE, "-", *paths], {"PATH": os.environ["PATH"]} | variables)
        assert not done.stopped
        return read_answers((sandbox.work / "answers").read_bytes())

    return function


def test_the_least(evaluate):
    """A package with a name, a version and one place for its module builds a module of its name, as kbuild does."""
    conf = evaluate(START)
    assert conf == Conf("hello", "1.0", (Record("hello", "", "hello"),), MAKE, f"{MAKE} clean")


def test_several_modules(evaluate):
    """Each record has its name, its directory, and the name under which it would be installed."""
    text = """
    PACKAGE_NAME=p; PACKAGE_VERSION=2
    BUILT_MODULE_NAME[0]=one; DEST_MODULE_LOCATION[0]=/updates; BUILT_MODULE_LOCATION[0]=./src/
    BUILT_MODULE_NAME[1]=two; DEST_MODULE_LOCATION[1]=/updates; DEST_MODULE_NAME[1]=zwei
    """
    assert evaluate(text).modules == (Record("one", "src", "one"), Record("two", "", "zwei"))


def test_variables(evaluate):
    """Commands see the variables of dkms.conf and DKMS's own; MAKE need not be an array."""
    conf = evaluate(
        START + 'MAKE="make -C $kernel_source_dir M=$dkms_tree/$PACKAGE_NAME/${PACKAGE_VERSION} K=$kernelver"'
    )
    assert conf.make.endswith("/headers M=/tree/hello/1.0 K=6.1.0-5-amd64")


@pytest.mark.parametrize(("release", "make"), [("6.1.0-5-amd64", "old"), ("6.12.1-amd64", "new"), ("5.10", "usual")])
def test_make_match(evaluate, release, make):
    """The last command whose MAKE_MATCH fits the release, else the first one."""
    text = START + 'MAKE[0]=usual; MAKE[1]=old; MAKE_MATCH[1]="^6\\.1\\."; MAKE[2]=new; MAKE_MATCH[2]="^6\\.1[0-9]"'
    assert evaluate(text, release).make == make


def test_patches(evaluate):
    """Patches are those without PATCH_MATCH, and those whose PATCH_MATCH fits."""
    text = START + 'PATCH[0]=a.patch; PATCH[1]=b.patch; PATCH_MATCH[1]="^5"; PATCH[2]=c.patch; PATCH_MATCH[2]="^6"'
    assert evaluate(text).patches == ("a.patch", "c.patch")


@pytest.mark.parametrize(
    ("line", "excluded"),
    [
        ('BUILD_EXCLUSIVE_KERNEL="^6"', ""),
        ('BUILD_EXCLUSIVE_KERNEL="^5\\.(4|10)"', 'BUILD_EXCLUSIVE_KERNEL="^5\\.(4|10)"'),
        ('BUILD_EXCLUSIVE_KERNEL_MIN="5.10"', ""),
        ('BUILD_EXCLUSIVE_KERNEL_MIN="6.2"', 'BUILD_EXCLUSIVE_KERNEL_MIN="6.2"'),
        ('BUILD_EXCLUSIVE_KERNEL_MAX="6.2"', ""),
        ('BUILD_EXCLUSIVE_KERNEL_MAX="5.10"', 'BUILD_EXCLUSIVE_KERNEL_MAX="5.10"'),
        ('BUILD_EXCLUSIVE_ARCH="x86_64|i.86"', ""),
        ('BUILD_EXCLUSIVE_ARCH="aarch64"', 'BUILD_EXCLUSIVE_ARCH="aarch64"'),
        ('BUILD_EXCLUSIVE_CONFIG="CONFIG_USB !CONFIG_RT"', ""),
        ('BUILD_EXCLUSIVE_CONFIG="CONFIG_PCI"', 'BUILD_EXCLUSIVE_CONFIG="CONFIG_PCI"'),
        ('BUILD_EXCLUSIVE_CONFIG="!CONFIG_USB"', 'BUILD_EXCLUSIVE_CONFIG="!CONFIG_USB"'),
        (ASKS, 'BUILD_EXCLUSIVE_KERNEL="no USB please"'),
    ],
)  # fmt: skip
def test_exclusions(evaluate, line, excluded):
    """A package may not want a kernel, by its release, architecture or configuration; which line says so is known."""
    assert evaluate(START + line, config="CONFIG_USB=m\n# CONFIG_PCI is not set\n").excluded == excluded


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("PACKAGE_VERSION=1; DEST_MODULE_LOCATION=/updates", "it has no PACKAGE_NAME"),
        ("PACKAGE_NAME=../../etc; PACKAGE_VERSION=1; DEST_MODULE_LOCATION=/updates", "PACKAGE_NAME is '../../etc'"),
        ("PACKAGE_NAME=a; DEST_MODULE_LOCATION=/updates", "it has no PACKAGE_VERSION"),
        ("PACKAGE_NAME=a; PACKAGE_VERSION=1", "it names no module"),
        (START + "BUILT_MODULE_NAME=x.ko", "ends in '.o' or '.ko'"),
        (START + "BUILT_MODULE_NAME=../x", "no BUILT_MODULE_NAME for record #0"),
        (START + "BUILT_MODULE_LOCATION=../../home", "leads out of the package"),
        (START + "PATCH[0]=../../x", "leads out of the package"),
        (START + "exit 0", "did not come to its end"),
        ("if", "it has no PACKAGE_NAME"),
    ],
)
def test_nonsense(evaluate, text, complaint):
    """What DKMS refuses, and what leads elsewhere, is refused with the reason."""
    with pytest.raises(InputError, match=r"dkms\.conf: ") as caught:
        evaluate(text)
    assert complaint in str(caught.value)


def test_answers_that_were_tampered_with():
    """Whatever dkms.conf writes in the place of the answers, there is a Conf or an InputError."""
    for data in (b"", b"\0" * 9, b"END\0x\0\0", b"PACKAGE_NAME\x000\0a\0" * 3, bytes(range(256)), b"END\x000\0\0"):
        with pytest.raises(InputError):
            read_answers(data)
