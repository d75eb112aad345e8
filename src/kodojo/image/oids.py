"""Object identifiers: those that the kernel's code asks for by name, and the registry of one kernel.

A kernel knows the identifiers of its ``lib/oid_registry.c`` and no others: an unknown one is worth a line
in its log, a known one has a number that other lines print. Both are read from the image, where the
registry lies as two arrays.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from kodojo.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kodojo.image.elf import ElfFile
    from kodojo.image.kallsyms import Kallsyms

__all__ = ["NAMES", "OidRegistry", "encode", "sprint_oid"]

# Names as in ``enum OID`` (include/linux/oid_registry.h), without the prefix.
NAMES = {
    "id_ecPublicKey": "1.2.840.10045.2.1",
    "id_prime192v1": "1.2.840.10045.3.1.1",
    "id_prime256v1": "1.2.840.10045.3.1.7",
    "id_ansip384r1": "1.3.132.0.34",
    "id_ansip521r1": "1.3.132.0.35",
    "id_ecdsa_with_sha1": "1.2.840.10045.4.1",
    "id_ecdsa_with_sha224": "1.2.840.10045.4.3.1",
    "id_ecdsa_with_sha256": "1.2.840.10045.4.3.2",
    "id_ecdsa_with_sha384": "1.2.840.10045.4.3.3",
    "id_ecdsa_with_sha512": "1.2.840.10045.4.3.4",
    "id_ecdsa_with_sha3_256": "2.16.840.1.101.3.4.3.10",
    "id_ecdsa_with_sha3_384": "2.16.840.1.101.3.4.3.11",
    "id_ecdsa_with_sha3_512": "2.16.840.1.101.3.4.3.12",
    "rsaEncryption": "1.2.840.113549.1.1.1",
    "md4WithRSAEncryption": "1.2.840.113549.1.1.4",
    "sha1WithRSAEncryption": "1.2.840.113549.1.1.5",
    "sha256WithRSAEncryption": "1.2.840.113549.1.1.11",
    "sha384WithRSAEncryption": "1.2.840.113549.1.1.12",
    "sha512WithRSAEncryption": "1.2.840.113549.1.1.13",
    "sha224WithRSAEncryption": "1.2.840.113549.1.1.14",
    "id_rsassa_pkcs1_v1_5_with_sha3_256": "2.16.840.1.101.3.4.3.14",
    "id_rsassa_pkcs1_v1_5_with_sha3_384": "2.16.840.1.101.3.4.3.15",
    "id_rsassa_pkcs1_v1_5_with_sha3_512": "2.16.840.1.101.3.4.3.16",
    "data": "1.2.840.113549.1.7.1",
    "signed_data": "1.2.840.113549.1.7.2",
    "email_address": "1.2.840.113549.1.9.1",
    "contentType": "1.2.840.113549.1.9.3",
    "messageDigest": "1.2.840.113549.1.9.4",
    "signingTime": "1.2.840.113549.1.9.5",
    "smimeCapabilites": "1.2.840.113549.1.9.15",
    "msIndirectData": "1.3.6.1.4.1.311.2.1.4",
    "msStatementType": "1.3.6.1.4.1.311.2.1.11",
    "msSpOpusInfo": "1.3.6.1.4.1.311.2.1.12",
    "md4": "1.2.840.113549.2.4",
    "md5": "1.2.840.113549.2.5",
    "sha1": "1.3.14.3.2.26",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
    "sha224": "2.16.840.1.101.3.4.2.4",
    "sha3_256": "2.16.840.1.101.3.4.2.8",
    "sha3_384": "2.16.840.1.101.3.4.2.9",
    "sha3_512": "2.16.840.1.101.3.4.2.10",
    "commonName": "2.5.4.3",
    "organizationName": "2.5.4.10",
    "subjectKeyIdentifier": "2.5.29.14",
    "keyUsage": "2.5.29.15",
    "basicConstraints": "2.5.29.19",
    "authorityKeyIdentifier": "2.5.29.35",
    "gost2012PKey256": "1.2.643.7.1.1.1.1",
    "gost2012PKey512": "1.2.643.7.1.1.1.2",
    "gost2012Digest256": "1.2.643.7.1.1.2.2",
    "gost2012Digest512": "1.2.643.7.1.1.2.3",
    "gost2012Signature256": "1.2.643.7.1.1.3.2",
    "gost2012Signature512": "1.2.643.7.1.1.3.3",
    "sm2": "1.2.156.10197.1.301",
    "sm3": "1.2.156.10197.1.401",
    "SM2_with_SM3": "1.2.156.10197.1.501",
}
_NEIGHBOURS = ("id_ecPublicKey", "id_prime192v1")  # one behind the other in every kernel's registry
_NEAR = 1 << 12
_LONGEST = 32  # bytes of an identifier
_SPRINT_SIZE = 50  # the buffer that the kernel's parsers print an identifier into


def encode(dotted: str) -> bytes:
    """Return the contents of the DER encoding of an identifier given as ``1.2.840``."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    encoded = bytearray()
    for arc in (40 * first + second, *rest):
        group = [arc & 0x7F]
        while arc := arc >> 7:
            group.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(group))
    return bytes(encoded)


def sprint_oid(data: bytes) -> str:
    """Spell the contents of an OBJECT IDENTIFIER as the kernel's log shows it.

    Source: ``lib/oid_registry.c: sprint_oid``, into a buffer of 50 bytes.
    """
    if not data:
        return "(bad)"
    text = f"{data[0] // 40}.{data[0] % 40}"
    number, unfinished = 0, False
    for byte in data[1:]:
        number = (number << 7 | byte & 0x7F) & 0xFFFF_FFFF_FFFF_FFFF
        unfinished = bool(byte & 0x80)
        if not unfinished:
            text += f".{number}"
            number = 0
            if len(text) >= _SPRINT_SIZE:
                break
    if unfinished:
        text += "(bad)"
    return text[: _SPRINT_SIZE - 1]


class OidRegistry:
    """The identifiers that one kernel knows.

    :param encoded: their DER contents in the order of ``enum OID``.
    """

    def __init__(self, encoded: Iterable[bytes]) -> None:
        names = _names_by_encoding()
        self._numbers: dict[bytes, int] = {}
        self._names: dict[int, str] = {}
        for number, data in enumerate(encoded):
            self._numbers[data] = number
            if data in names:
                self._names[number] = names[data]
        #: The number of an identifier that is not registered, ``OID__NR``.
        self.unknown = len(self._numbers)
        self._known_names = frozenset(self._names.values())

    @classmethod
    def default(cls) -> OidRegistry:
        """Return a registry of all that the parsers know; its numbers are not those of any kernel."""
        return _default()

    @classmethod
    def from_kernel(cls, elf: ElfFile, kallsyms: Kallsyms) -> OidRegistry:
        """Read the registry of a kernel.

        :raises MissingInformationError: the kernel has none.
        :raises ImageError: it is damaged.
        """
        address = kallsyms.address("oid_index")
        located = kallsyms.symbol_at(address)
        size = min(located.size if located else 0, 4096) // 2 * 2
        raw = elf.read(address, size)
        index = [int.from_bytes(raw[at : at + 2], "little") for at in range(0, size, 2)]
        count = 0
        while count + 1 < len(index) and index[count + 1] > index[count]:  # padding follows
            count += 1
        if not count or index[0]:
            raise ImageError("the kernel's registry of object identifiers is damaged")
        data = elf.read(kallsyms.address("oid_data"), index[count])
        return cls(data[index[at] : index[at + 1]] for at in range(count))

    @classmethod
    def recognised(cls, data: bytes) -> OidRegistry | None:
        """Find the registry of a kernel whose symbol table does not list it by its form.

        ``oid_index`` is near ``oid_data``, and leads from each identifier to the next.

        :param data: the kernel's read-only data, whatever else is in it.
        """
        first, second = (encode(NAMES[name]) for name in _NEIGHBOURS)
        at = data.find(first + second)
        while at >= 0:
            start = max(0, at - _NEAR) // 2 * 2
            near = data[start : at + _NEAR]
            words = [int.from_bytes(near[i : i + 2], "little") for i in range(0, len(near) - 1, 2)]
            for position, (here, middle, behind) in enumerate(zip(words, words[1:], words[2:], strict=False)):
                fits = (middle - here, behind - middle) == (len(first), len(second))
                if fits and (found := _registered(data, at - here, words, position)):
                    return cls(found)
            at = data.find(first + second, at + 1)
        return None

    def __len__(self) -> int:
        return self.unknown

    def __contains__(self, name: str) -> bool:
        """Tell whether this kernel knows the identifier of that name."""
        return name in self._known_names

    def look_up(self, data: bytes) -> int:
        """Return the number of an identifier, :attr:`unknown` if it has none (``look_up_OID``)."""
        return self._numbers.get(data, self.unknown)

    def name(self, number: int) -> str:
        """Return the name, empty for one that no parser asks for."""
        return self._names.get(number, "")


def _registered(data: bytes, start: int, words: Sequence[int], position: int) -> list[bytes]:
    """The identifiers of a registry; empty if the words around this position are not its index.

    :param start: where ``oid_data`` begins if they are.
    """
    first = last = position
    while first and 0 < words[first] - words[first - 1] <= _LONGEST:
        first -= 1
    while last + 1 < len(words) and 0 < words[last + 1] - words[last] <= _LONGEST:
        last += 1
    if words[first] or start < 0:
        return []
    found = [data[start + here : start + behind] for here, behind in pairwise(words[first : last + 1])]
    return [] if any(sprint_oid(one).endswith("(bad)") for one in found) else found


@cache
def _names_by_encoding() -> dict[bytes, str]:
    return {encode(dotted): name for name, dotted in NAMES.items()}


@cache
def _default() -> OidRegistry:
    return OidRegistry(_names_by_encoding())
