"""The keys that a kernel trusts from birth: X.509 certificates built into its image.

Source: ``certs/system_keyring.c``, ``certs/system_certificates.S``, ``certs/blacklist_hashes.c``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, MissingInformationError
from kodojo.image.asn1 import Asn1Error
from kodojo.image.x509 import Certificate, Dialect, x509_cert_parse

if TYPE_CHECKING:
    from kodojo.image.elf import ElfFile
    from kodojo.image.kallsyms import Kallsyms

__all__ = [
    "Certificate",
    "blacklist_hashes",
    "revocation_certificates",
    "trusted_certificates",
    "x509_load_certificate_list",
]

_MAX_LIST = 1 << 24
_MAX_HASHES = 1 << 16
_POINTER_SIZE = 8
_HASH = re.compile(r"(?:tbs|bin):(?:[0-9a-f]{2}){1,64}", re.ASCII)


def trusted_certificates(elf: ElfFile, kallsyms: Kallsyms, dialect: Dialect | None = None) -> tuple[Certificate, ...]:
    """Return the certificates of ``.builtin_trusted_keys``, the key of the kernel's own build first.

    Empty for a kernel without a trusted keyring.

    :raises ImageError: the list is damaged.
    """
    return _certificate_list(elf, kallsyms, "system_certificate_list", dialect)


def revocation_certificates(
    elf: ElfFile, kallsyms: Kallsyms, dialect: Dialect | None = None
) -> tuple[Certificate, ...]:
    """Return the certificates that the kernel distrusts (CONFIG_SYSTEM_REVOCATION_LIST); usually none.

    :raises ImageError: the list is damaged.
    """
    return _certificate_list(elf, kallsyms, "revocation_certificate_list", dialect)


def blacklist_hashes(elf: ElfFile, kallsyms: Kallsyms) -> tuple[str, ...]:
    """Return the hashes built into the kernel's blacklist, such as ``bin:0123...`` and ``tbs:4567...``.

    What the kernel would not take into its keyring is left out (``blacklist_vet_description``).

    :raises ImageError: the list is damaged.
    """
    address = kallsyms.get("blacklist_hashes")
    if address is None:
        return ()
    hashes: list[str] = []
    for number in range(_MAX_HASHES):
        pointer = int.from_bytes(elf.read(address + number * _POINTER_SIZE, _POINTER_SIZE), "little")
        if not pointer:
            return tuple(hashes)
        text = elf.string(pointer).decode("ascii", "replace")
        if _HASH.fullmatch(text):
            hashes.append(text)
    raise ImageError("the kernel's list of blacklisted hashes has no end")


def x509_load_certificate_list(data: bytes, dialect: Dialect | None = None) -> tuple[Certificate, ...]:
    """Parse concatenated certificates as the kernel does at boot: one that it cannot use is passed over.

    Source: ``crypto/asymmetric_keys/x509_loader.c: x509_load_certificate_list``.

    :raises ImageError: the list is damaged; the kernel would stop reading there with a line in its log.
    """
    certificates: list[Certificate] = []
    offset = 0
    while offset < len(data):
        # A SEQUENCE whose length has two bytes.
        if data[offset : offset + 2] != b"\x30\x82" or len(data) - offset < 4:
            raise ImageError(f"the kernel's list of certificates is damaged at offset {offset}")
        end = offset + 4 + int.from_bytes(data[offset + 2 : offset + 4])
        if end > len(data):
            raise ImageError("the kernel's list of certificates is truncated")
        with suppress(Asn1Error):  # at boot: "Problem loading in-kernel X.509 certificate"
            certificates.append(x509_cert_parse(data[offset:end], dialect))
        offset = end
    return tuple(certificates)


def _certificate_list(
    elf: ElfFile, kallsyms: Kallsyms, name: str, dialect: Dialect | None
) -> tuple[Certificate, ...]:
    address = kallsyms.get(name)
    if address is None:
        return ()
    size_address = kallsyms.get(f"{name}_size")
    if size_address is None:
        raise MissingInformationError(f"the kernel has {name} but not its size")
    size = int.from_bytes(elf.read(size_address, 8), "little")
    if size > _MAX_LIST:
        raise ImageError(f"the kernel's {name} is damaged: {size} bytes long")
    return x509_load_certificate_list(bytes(elf.read(address, size)), dialect)
