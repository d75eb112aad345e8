"""How a stage of the loader says no."""

from __future__ import annotations

from kodojo.errors import DamageError, LoadError, Refusal
from kodojo.loader.target import Errno

__all__ = ["SLUGS", "refuse", "would_damage"]

BUILD_AGAIN = "The file is damaged or was not made by the kernel's build system: build or fetch it again."
STRIPPED = "It was stripped too far: use the file as the build left it, or strip with --strip-debug only."

SLUGS = {
    # elf_checks.py, load_info.py
    "elf-too-short": "the file is shorter than an ELF header",
    "elf-magic": "the file is not an ELF file",
    "elf-type": "the file is an ELF file, but not a relocatable one",
    "elf-architecture": "the file is for another processor",
    "elf-section-header-size": "the section headers have an unknown size",
    "elf-section-table": "the table of sections is not inside the file",
    "elf-section-names": "the table of section names cannot be used",
    "elf-section-zero": "section 0 is not the empty one",
    "elf-section-bounds": "a section is not inside the file",
    "elf-section-name-offset": "the name of a section is not in the table of names",
    "elf-symbol-strings": "the symbol table has no table of names",
    "two-modinfo-sections": "there is more than one .modinfo section",
    "no-symbols": "there is not exactly one symbol table",
    "no-this-module": "there is not exactly one struct module in the file",
    "this-module-not-allocated": "struct module would not be loaded",
    "struct-module-size": "struct module has another size in this kernel",
    "would-damage-kernel": "the kernel would read or write where it must not",
    # modinfo.py, version.py
    "module-blacklisted": "the kernel's command line forbids the module",
    "vermagic-mismatch": "the module was built for another kernel",
    "vermagic-missing": "the module does not say for which kernel it was built",
    "module-layout-crc": "struct module and its friends have other types in this kernel",
    "livepatch-unsupported": "the kernel cannot be patched live",
    "exports-without-crc": "the module exports symbols without version checksums",
    # layout.py
    "writable-executable-section": "a section is both writable and executable",
    "out-of-memory": "the kernel has no memory left for the module",
}
"""The reasons for which the stages in elf_checks, modinfo, version and layout refuse, in plain words."""


def refuse(name: str, errno: int, slug: str, why: str, hint: str) -> LoadError:
    """The error to raise for a refusal; :func:`load_module` adds step and log to it.

    :param name: of the module or file.
    """
    return LoadError(f"{name}: {why}", Refusal(errno=errno, step="", slug=slug, why=why, hint=hint))


def would_damage(name: str, why: str) -> DamageError:
    """The error for a file that makes the kernel read or write outside it, which often ends in an oops."""
    refusal = Refusal(errno=Errno.ENOEXEC, step="", slug="would-damage-kernel", why=why, hint=BUILD_AGAIN)
    return DamageError(f"{name}: {why}", refusal)
