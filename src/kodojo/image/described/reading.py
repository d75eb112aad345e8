"""Reading a kernel's description: everything that is found out once and kept then."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kodojo.errors import MissingInformationError, encode
from kodojo.image.architecture import architecture_of_config
from kodojo.image.config import config_lines, parse_config
from kodojo.image.described.contradictions import contradictions
from kodojo.image.described.evidence import evidence
from kodojo.image.described.files import DescriptionFiles, read_small
from kodojo.image.described.release import Release, release_of
from kodojo.image.exports import VMLINUX, Exports
from kodojo.image.symvers import parse_symvers, read_symvers
from kodojo.image.vermagic import compose_vermagic

if TYPE_CHECKING:
    from kodojo.image.config import Config

__all__ = ["describe", "make_export_tables"]

_RANDSTRUCT = re.compile(rb'RANDSTRUCT_HASHED_SEED\s+"(\w+)"')

# Addresses are not known, but each export needs one of its own, where relocations reach it.
_ADDRESS_STEP = 16


def describe(files: DescriptionFiles) -> tuple[dict[str, bytes], dict[str, Exports]]:
    """Read all files: facts by name, and the tables of :func:`make_export_tables`.

    :raises InputError: a file cannot be read.
    :raises ImageError: a file is damaged.
    """
    tables = make_export_tables(files)
    exports, module_exports = tables["exports"], tables["module_exports"]
    lines = config_lines(read_small(files.config)) if files.config else b""
    generated = config_lines(read_small(files.auto_conf)) if files.auto_conf else b""
    config = parse_config((lines or generated).decode("utf-8", "replace"))
    release = release_of(files)
    architecture = architecture_of_config(config)
    found = evidence(files)
    warnings = contradictions(
        files, release, config, parse_config(generated.decode("utf-8", "replace")), exports, module_exports
    )
    facts = {
        "release": encode(release.name),
        "architecture": architecture.name.encode() if architecture else b"",
        "vermagic": encode(_vermagic(files, release, config)),
        "config": lines or generated,
        "warnings": encode("\n".join(warnings)),
        "present": b"\0".join(found.present),
        "absent": b"\0".join(found.absent),
        "sources": found.sources,
        "oids": "\n".join(found.oids).encode(),
    }
    return facts, tables


def make_export_tables(files: DescriptionFiles) -> dict[str, Exports]:
    """Parse Module.symvers: ``exports`` of the kernel, ``module_exports`` of the modules of its tree.

    The addresses are invented, and count from the beginning of the kernel's code.

    :raises InputError: it cannot be read.
    :raises ImageError: it is damaged.
    """
    entries = [
        export._replace(address=_ADDRESS_STEP * number)
        for number, export in enumerate(parse_symvers(read_symvers(files.symvers), str(files.symvers)), start=1)
    ]
    return {
        "exports": Exports.of(export for export in entries if export.owner == VMLINUX),
        "module_exports": Exports.of(export for export in entries if export.owner != VMLINUX),
    }


def _vermagic(files: DescriptionFiles, release: Release, config: Config) -> str:
    """Composed from what the build generated; empty if a part of it is not known."""
    seed = _RANDSTRUCT.search(read_small(files.directory / "include/generated/randstruct_hash.h"))
    if not release.certain or not config:
        return ""
    try:
        return compose_vermagic(release.name, config, seed[1].decode() if seed else "")
    except MissingInformationError:
        return ""
