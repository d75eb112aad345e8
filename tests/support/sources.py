"""Sources of small modules, in directories and in packages for DKMS."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.support.archives import deb, entry

GREETING = b"""
#include <linux/module.h>
static int __init hello_init(void) { return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
"""
MISTAKEN = GREETING.replace(b"return 0;", b"return nowhere_to_be_found;")
CONF = """\
PACKAGE_NAME="hello"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="hello"
DEST_MODULE_LOCATION[0]="/updates/dkms"
AUTOINSTALL="yes"
"""


def write_source(
    directory: Path, source: bytes = GREETING, conf: str = "", kbuild: str = "obj-m := hello.o\n"
) -> Path:
    """A directory with the source of hello.ko, for kbuild, or for DKMS if there is a ``dkms.conf``."""
    directory.mkdir(parents=True)
    (directory / "hello.c").write_bytes(source)
    (directory / "Kbuild").write_text(kbuild)
    if conf:
        (directory / "dkms.conf").write_text(conf)
    return directory


def write_dkms_package(
    path: Path, conf: str = CONF, source: bytes = GREETING, scripts: dict[str, bytes] | None = None
) -> Path:
    """A package as Debian's are, with the source of hello.ko.

    :param scripts: further files that may be executed.
    """
    contents = {"hello.c": source, "Kbuild": b"obj-m := hello.o\n", "dkms.conf": conf.encode()} | (scripts or {})
    entries = [entry("./usr/src/hello-1.0/", tarfile.DIRTYPE)]
    for name, data in contents.items():
        info, content = entry(f"./usr/src/hello-1.0/{name}", data=data)
        info.mode = 0o755 if name in (scripts or {}) else 0o644
        entries.append((info, content))
    path.write_bytes(deb(entries))
    return path
