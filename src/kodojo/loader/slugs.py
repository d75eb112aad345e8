"""The reasons for which a module is refused, in plain words.

Each has a page in ``kodojo/check/reasons``, which ``kodojo explain SLUG`` shows.
"""

from __future__ import annotations

__all__ = ["SLUGS"]

SLUGS = {
    # enter.py: what kmod does not get out of the file
    "file-too-short": "the file is too short for kmod to look at",
    "damaged-compression": "kmod cannot unpack the compressed file",
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
    "empty-file": "the file is empty, or is no regular file",
    "file-busy": "the file is open for writing",
    "file-too-large": "the file is larger than 2 GiB",
    "kernel-refused": "a part of the kernel that is not the loader refused",
    "locked-down": "the kernel is locked down and the module has no valid signature",
    # decompress.py
    "bad-compression": "the compressed file is damaged, or packed in a way that the kernel cannot unpack",
    # signature.py
    "unsigned-module": "the module is not signed, and this kernel wants a signature",
    "signature-ignored": "the module is loaded by force, which makes its signature worthless",
    "unsupported-signature-type": "the signature is not a PKCS#7 message",
    "malformed-signature": "what should be the signature cannot be read",
    "unknown-signer": "the module is signed with a key that the kernel does not trust",
    "unsupported-crypto": "the signature needs an algorithm that the kernel does not have",
    "bad-signature": "the signature does not fit the module",
    "blacklisted-module": "the kernel's blacklist names the module or its key",
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
    # module_list.py
    "already-loaded": "a module of that name is loaded",
    "same-name-busy": "another module of that name is going, or has just failed",
    "wait-interrupted": "a signal ended the wait for another module",
    # load_module.py
    "per-cpu-memory": "the kernel has no per-CPU memory left for modules",
    "init-failed": "the module's init function returned an error",
    # module_sections.py
    "module-memory-misaligned": "the module's memory does not consist of whole pages",
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
    "relocation-bounds": "a relocation is outside its section, or for no symbol",
    "relocation-without-partner": "half of an address is to be relocated without the other",
    "interworking-call": "code calls code of the other instruction set",
    "call-without-restore": "a call to the kernel leaves no place for what has to follow it",
    "no-plt-section": "there is no section for the veneers that branches may need",
    "no-veneer-left": "there is no room for the veneers that branches need",
    "unknown-relocation": "there is a relocation that kernels do not know",
    "relocation-overflow": "a value does not fit into its place",
    "relocation-target-nonzero": "the place of a relocation is not empty",
    "livepatch-symbol": "a livepatch refers to a symbol that the kernel has not, or has several times",
    "livepatch-section-name": "a livepatch's relocation section has a name that says nothing",
    # parameters.py
    "parameter-without-value": "a parameter was given without a value",
    "parameter-invalid": "a parameter does not accept its value",
    "parameter-out-of-range": "a number is out of the range of its parameter",
    "parameter-too-long": "a text is too long for its parameter",
    "parameter-locked-down": "lockdown forbids to set a hardware parameter",
}
"""Slug -> what it says, as the rest of a sentence."""
