"""What modinfo tells about the signature at a module's end (``libkmod/libkmod-signature.c``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kodojo.errors import decode
from kodojo.image.oids import encode

__all__ = ["MARKER", "signature_rows"]

MARKER = b"~Module signature appended~\n"
_TRAILER = struct.Struct(">5B3xI")  # struct module_signature
_KEY_TYPES = ("PGP", "X509", "PKCS#7")
_PKCS7 = 2
_KEY_ALGORITHMS = 2  # DSA, RSA
_HASHES = ("md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224", "sm3")
_HASH_OIDS = {
    encode(dotted): name
    for name, dotted in {
        "md4": "1.2.840.113549.2.4",
        "md5": "1.2.840.113549.2.5",
        "sha1": "1.3.14.3.2.26",
        "rmd160": "1.3.36.3.2.1",
        "sha256": "2.16.840.1.101.3.4.2.1",
        "sha384": "2.16.840.1.101.3.4.2.2",
        "sha512": "2.16.840.1.101.3.4.2.3",
        "sha224": "2.16.840.1.101.3.4.2.4",
        "sm3": "1.2.156.10197.1.401",
    }.items()
}
_COMMON_NAME = encode("2.5.4.3")
_INTEGER, _OCTETS, _SEQUENCE, _SET, _CONTEXT_0 = 0x02, 0x04, 0x30, 0x31, 0xA0
_BYTES_A_LINE = 20


class _Facts(NamedTuple):
    signer: bytes
    key_id: bytes
    hash: str
    signature: bytes


def signature_rows(data: bytes) -> list[tuple[str, str]]:
    """The rows ``sig_id``, ``signer``, ``sig_key``, ``sig_hashalgo`` and ``signature``; none without a good one."""
    if not data.endswith(MARKER) or len(data) < len(MARKER) + _TRAILER.size:
        return []
    end = len(data) - len(MARKER) - _TRAILER.size
    algorithm, hash_number, kind, signer_size, key_size, size = _TRAILER.unpack_from(data, end)
    if algorithm >= _KEY_ALGORITHMS or hash_number >= len(_HASHES) or kind >= len(_KEY_TYPES):
        return []
    if size == 0 or end < size + signer_size + key_size:
        return []
    signature = data[end - size : end]
    if kind == _PKCS7:
        facts = _pkcs7(signature)
        if facts is None:
            return []
    else:
        key_at = end - size - key_size
        facts = _Facts(
            data[key_at - signer_size : key_at], data[key_at : end - size], _HASHES[hash_number], signature
        )
    return [
        ("sig_id", _KEY_TYPES[kind]),
        ("signer", decode(facts.signer)),
        ("sig_key", _hex(facts.key_id)),
        ("sig_hashalgo", facts.hash),
        ("signature", _hex(facts.signature)),
    ]


def _hex(data: bytes) -> str:
    """Bytes as modinfo prints them: twenty a line, the lines indented by two tabs."""
    lines = [data[at : at + _BYTES_A_LINE].hex(":").upper() for at in range(0, len(data), _BYTES_A_LINE)]
    return ":\n\t\t".join(lines)


class _DamagedError(ValueError):
    pass


def _pkcs7(data: bytes) -> _Facts | None:
    """What the first signer of a PKCS#7 message says; None if it is damaged or names its key another way."""
    try:
        return _signed_info(data)
    except (_DamagedError, StopIteration):
        return None


def _signed_info(data: bytes) -> _Facts:
    content_info = _walk(_only(data, _SEQUENCE))
    next(content_info)  # contentType
    signed_data = [*_walk(_only(_expect(content_info, _CONTEXT_0), _SEQUENCE))]
    signer_infos = signed_data[-1]
    if signer_infos[0] != _SET:
        raise _DamagedError
    signer = _walk(_expect(_walk(signer_infos[1]), _SEQUENCE))
    _expect(signer, _INTEGER)
    issuer_and_serial = _walk(_expect(signer, _SEQUENCE))
    issuer = _expect(issuer_and_serial, _SEQUENCE)
    serial = _expect(issuer_and_serial, _INTEGER)
    digest = next(_walk(_expect(signer, _SEQUENCE)))[1]
    signature = next(value for tag, value in signer if tag == _OCTETS)
    return _Facts(_common_name(issuer), serial.lstrip(b"\0"), _HASH_OIDS.get(digest, "unknown"), signature)


def _common_name(issuer: bytes) -> bytes:
    for _, relative in _walk(issuer):
        for _, attribute in _walk(relative):
            kind, value, *_ = [*_walk(attribute), (0, b""), (0, b"")]
            if kind[1] == _COMMON_NAME:
                return value[1]
    return b""


def _only(data: bytes, tag: int) -> bytes:
    return _expect(_walk(data), tag)


def _expect(elements: Iterator[tuple[int, bytes]], tag: int) -> bytes:
    found, value = next(elements)
    if found != tag:
        raise _DamagedError
    return value


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements in a stretch of DER, one after the other: identifier byte and content."""
    at = 0
    while at + 2 <= len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 0 < count <= 4:
                raise _DamagedError
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + size > len(data):
            raise _DamagedError
        yield tag, data[at : at + size]
        at += size
