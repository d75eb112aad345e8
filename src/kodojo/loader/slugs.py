"""The reasons for which a module is refused after its file was found to be good, in plain words.

Those of the stages that look at the file are in :data:`kodojo.loader.refusal.SLUGS`, those about
signatures come from :mod:`kodojo.loader.signature`.
"""

from __future__ import annotations

__all__ = ["SLUGS"]

SLUGS = {
    # syscalls.py
    "no-capability": "the caller may not load modules",
    "modules-disabled": "loading modules was switched off for good",
    "image-too-short": "the image is shorter than an ELF header",
    "unknown-flags": "finit_module was given flags that do not exist",
    # what the kernel answers where the loader asks it
    "out-of-memory": "the kernel has no memory left",
    "bad-address": "the caller's memory is not readable there",
    "bad-argument-pointer": "the argument string is not readable",
    "bad-descriptor": "the descriptor is not open for reading",
    "security-module": "a security module of the kernel forbids it",
    "not-permitted": "the kernel's policy forbids it",
    "no-decompression": "the kernel cannot decompress modules",
    "file-busy": "the file is open for writing",
    "file-too-large": "the file is larger than 2 GiB",
    "kernel-refused": "a part of the kernel that is not the loader refused",
    "locked-down": "the kernel is locked down and the module has no valid signature",
    # module_list.py
    "already-loaded": "a module of that name is loaded",
    "same-name-busy": "another module of that name is going, or has just failed",
    "wait-interrupted": "a signal ended the wait for another module",
    # load_module.py
    "per-cpu-memory": "the kernel has no per-CPU memory left for modules",
    "init-failed": "the module's init function returned an error",
    # module_sections.py
    "two-constructor-tables": "there are constructors in two tables",
    # symbols.py
    "common-symbol": "a variable belongs to no object file",
    "symbol-section-index": "a symbol is in a section that does not exist",
    "unknown-symbol": "nobody exports a symbol that the module needs",
    "gpl-only-symbol": "a proprietary module needs a GPL-only symbol",
    "gpl-and-proprietary": "the module needs GPL-only symbols and those of a proprietary module",
    "symbol-version": "a symbol had another type when the module was built",
    "namespace-not-imported": "a symbol is in a namespace that the module does not import",
    "provider-not-ready": "the module that exports a symbol is still being loaded",
    "provider-going": "the module that exports a symbol is being removed",
    "duplicate-export": "an exported symbol exists already",
    # relocate/
    "rel-relocations": "the relocations have no addends",
    "unknown-relocation": "there is a relocation that kernels do not know",
    "relocation-overflow": "a value does not fit into its place",
    "relocation-target-nonzero": "the place of a relocation is not empty",
    "livepatch-section-name": "a livepatch's relocation section has a name that says nothing",
    # parameters.py
    "parameter-without-value": "a parameter was given without a value",
    "parameter-invalid": "a parameter does not accept its value",
    "parameter-out-of-range": "a number is out of the range of its parameter",
    "parameter-too-long": "a text is too long for its parameter",
    "parameter-locked-down": "lockdown forbids to set a hardware parameter",
}
"""Slug -> what it says; each has a page in the docs."""
