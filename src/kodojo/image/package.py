"""Kernel packages (.deb, .rpm) unpacked, without the package manager and without trust in the archive.

Only what a kernel image needs is written: the members below ``boot/``, ``lib/modules/`` and
``usr/lib/modules/`` (written to ``lib/modules/``, so that every package looks alike). What is in a
package is recognised by content, never by name, and these are refused, each with the member's name:

- a member with an absolute path or with ``..`` in its path, wherever it would go;
- a symbolic or hard link that leaves the package, devices, FIFOs and sockets;
- an archive that is truncated, damaged, or larger than any kernel (a decompression bomb).

Symbolic links are never written, so nothing can be written or read through one. Real packages have a
few: ``lib/modules/RELEASE/build`` and ``source``, mostly absolute, and links of documentation and
headers below ``usr/``; they are left out. A link inside the tree to a file that is unpacked becomes
a hard link to it.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kodojo.errors import InputError, PackageError
from kodojo.image.durable import Progress, disk_error
from kodojo.image.rpm import rpm_members

__all__ = ["KernelFiles", "find_kernel", "is_package", "packages_in", "unpack"]
