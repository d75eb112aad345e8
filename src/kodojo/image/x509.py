"""X.509 certificates as the kernel parses them (``crypto/asymmetric_keys/x509_cert_parser.c``).

Only what the kernel looks at is looked at here: no path lengths, no policies, no dates against the clock.
Nothing is verified; that is :mod:`kodojo.loader.public_key`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kodojo.image.asn1 import (
    EBADMSG,
    After,
    AnyValue,
    Asn1Error,
    Choice,
    Element,
    Primitive,
    asn1_ber_decoder,
    explicit,
    optional,
    sequence,
    sequence_of,
    set_of,
)
from kodojo.image.oids import OidRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Certificate", "Dialect", "name_text", "x509_cert_parse", "x509_decode_time"]

_EINVAL = 22
_ENOPKG = 65
_WARNING = 4

_INTEGER, _BIT_STRING, _OCTET_STRING, _OID, _BOOLEAN = 0x02, 0x03, 0x04, 0x06, 0x01
_IA5_STRING, _UTC_TIME, _GENERAL_TIME = 0x16, 0x17, 0x18
_CURVES = {
    "sm2": "sm2",
    "id_prime192v1": "ecdsa-nist-p192",
    "id_prime256v1": "ecdsa-nist-p256",
    "id_ansip384r1": "ecdsa-nist-p384",
    "id_ansip521r1": "ecdsa-nist-p521",
}
_SIGNATURE_ALGORITHMS = {
    **{f"{name}WithRSAEncryption": (name, "rsa") for name in ("md4", "sha1", "sha224", "sha256", "sha384", "sha512")},
    **{f"id_rsassa_pkcs1_v1_5_with_sha3_{bits}": (f"sha3-{bits}", "rsa") for bits in (256, 384, 512)},
    **{f"id_ecdsa_with_{name}": (name, "ecdsa") for name in ("sha1", "sha224", "sha256", "sha384", "sha512")},
    **{f"id_ecdsa_with_sha3_{bits}": (f"sha3-{bits}", "ecdsa") for bits in (256, 384, 512)},
    **{f"gost2012Signature{bits}": (f"streebog{bits}", "ecrdsa") for bits in (256, 512)},
    "SM2_with_SM3": ("sm3", "sm2"),
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the parsers of one kernel know; by default all that any kernel knows.

    :param oids: the registered object identifiers.
    :param sm2: SM2 keys and signatures, which left the parsers in 6.7.
    :param key_eflags: the extensions keyUsage and basicConstraints are looked at, and must be well formed.
    """

    oids: OidRegistry = field(default_factory=OidRegistry.default)
    sm2: bool = True
    key_eflags: bool = False


@dataclass(frozen=True, slots=True)
class Certificate:
    """An X.509 certificate.

    :param subject: the name that the kernel makes of it: common name, or ``organisation: common name``.
    :param serial: raw bytes of the number, as in the certificate.
    :param skid: the subject key identifier, None if there is none.
    :param pkey_algo: the kernel's name of the key's algorithm: ``rsa``, ``ecdsa-nist-p256`` ...
    :param key: the public key: a DER ``RSAPublicKey``, or a point of the curve.
    :param tbs: the part that is signed.
    :param signature: raw; ``hash_algo`` and ``signature_algo`` (``rsa``, ``ecdsa`` ...) tell how it was made.
    :param authority_id: serial and issuer of the certificate that signed this one, if it says so.
    :param authority_skid: the key identifier of that one, if it says so.
    :param valid_from: seconds since 1970; ``valid_to`` too.
    """

    der: bytes = field(repr=False)
    subject: str
    issuer: str
    serial: bytes
    raw_issuer: bytes = field(repr=False)
    raw_subject: bytes = field(repr=False)
    skid: bytes | None
    pkey_algo: str
    key: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    hash_algo: str
    signature_algo: str
    authority_id: bytes | None
    authority_skid: bytes | None
    valid_from: int
    valid_to: int

    @property
    def id(self) -> bytes:
        """What a signature names its signer by: the serial number, followed by the raw issuer."""
        return self.serial + self.raw_issuer

    @property
    def algorithm(self) -> str:
        """``rsa``, ``ecdsa``, ``sm2`` or ``ecrdsa``."""
        return self.pkey_algo.partition("-")[0]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The public numbers: modulus and exponent of an RSA key, x and y of a point; else empty."""
        if self.algorithm == "rsa":
            numbers: list[int] = []
            integer = Primitive(_INTEGER, lambda _context, element: numbers.append(int.from_bytes(element.value)))
            try:
                asn1_ber_decoder(sequence(integer, integer), None, self.key)
            except Asn1Error:
                return ()
            return tuple(numbers)
        half = len(self.key) // 2
        if self.algorithm == "ecdsa" and len(self.key) % 2 and self.key[0] == 4:
            return int.from_bytes(self.key[1 : 1 + half]), int.from_bytes(self.key[1 + half :])
        return ()

    @property
    def description(self) -> str:
        """What ``/proc/keys`` and the boot log call it: the subject and the hexadecimal identifier."""
        return f"{self.subject}: {(self.skid or self.serial).hex()}"


def x509_cert_parse(
    data: bytes, dialect: Dialect | None = None, log: Callable[[int, str], None] | None = None
) -> Certificate:
    """Parse a certificate.

    Source: ``crypto/asymmetric_keys/x509_cert_parser.c: x509_cert_parse``, up to the digest.

    :param dialect: what the kernel's parser knows; all that it could know if not given.
    :param log: called with level and text of each line that the kernel prints.
    :raises Asn1Error: with the kernel's errno: EBADMSG, EINVAL or ENOPKG.
    """
    context = _Context(dialect or Dialect(), log or (lambda _level, _text: None))
    asn1_ber_decoder(_CERTIFICATE, context, data)
    if context.raw_akid is not None:
        try:
            asn1_ber_decoder(_AUTHORITY_KEY_IDENTIFIER, context, context.raw_akid)
        except Asn1Error:
            context.log(_WARNING, "X.509: Couldn't decode AuthKeyIdentifier")
            raise
    return context.certificate(data)


def name_text(raw: bytes) -> str:
    """Return the text that the kernel would make of a raw name; empty if it is malformed."""
    context = _Context(Dialect(), lambda _level, _text: None)
    try:
        asn1_ber_decoder(_NAME, context, b"\x30\x82" + len(raw).to_bytes(2, "big") + raw)
    except (Asn1Error, OverflowError):
        return ""
    return x509_fabricate_name(context)


@dataclass(slots=True)
class _Context:
    """What the actions have found so far."""

    dialect: Dialect
    log: Callable[[int, str], None]
    last_oid: int = -1
    signature_oid: int = -1
    common_name: bytes = b""
    organization: bytes = b""
    email: bytes = b""
    subject: str | None = None
    issuer: str | None = None
    serial: bytes = b""
    raw_issuer: bytes = b""
    raw_subject: bytes | None = None
    skid: bytes | None = None
    raw_akid: bytes | None = None
    akid_issuer: bytes | None = None
    authority_id: bytes | None = None
    authority_skid: bytes | None = None
    params: bytes = b""
    key: bytes | None = None
    pkey_algo: str = ""
    tbs: bytes = b""
    signature: bytes = b""
    hash_algo: str = ""
    signature_algo: str = ""
    times: dict[str, int] = field(default_factory=dict)

    def certificate(self, der: bytes) -> Certificate:
        return Certificate(
            der=der,
            subject=self.subject or "",
            issuer=self.issuer or "",
            serial=self.serial,
            raw_issuer=self.raw_issuer,
            raw_subject=self.raw_subject or b"",
            skid=self.skid,
            pkey_algo=self.pkey_algo,
            key=self.key or b"",
            tbs=self.tbs,
            signature=self.signature,
            hash_algo=self.hash_algo,
            signature_algo=self.signature_algo,
            authority_id=self.authority_id,
            authority_skid=self.authority_skid,
            valid_from=self.times["from"],
            valid_to=self.times["to"],
        )

    def oid_name(self) -> str:
        return self.dialect.oids.name(self.last_oid)


def x509_note_OID(context: _Context, element: Element) -> None:  # noqa: N802
    context.last_oid = context.dialect.oids.look_up(element.value)


def x509_note_tbs_certificate(context: _Context, element: Element) -> None:
    context.tbs = element.whole


def x509_note_serial(context: _Context, element: Element) -> None:
    context.serial = element.value


def x509_note_sig_algo(context: _Context, _element: Element) -> None:
    algorithm = _SIGNATURE_ALGORITHMS.get(context.oid_name())
    if algorithm is None or (algorithm[1] == "sm2" and not context.dialect.sm2):
        raise Asn1Error(_ENOPKG)
    context.hash_algo, context.signature_algo = algorithm
    context.signature_oid = context.last_oid


def x509_note_signature(context: _Context, element: Element) -> None:
    if context.last_oid != context.signature_oid:
        context.log(
            _WARNING,
            f"X.509: signatureAlgorithm ({context.last_oid}) differs from"
            f" tbsCertificate.signature ({context.signature_oid})",
        )
        raise Asn1Error(_EINVAL)
    context.signature = _bit_string(element)


def _bit_string(element: Element) -> bytes:
    value = element.value
    if not value or value[0]:
        raise Asn1Error(EBADMSG)
    return value[1:]


def x509_extract_name_segment(context: _Context, element: Element) -> None:
    # The kernel keeps these lengths in a byte.
    value = element.value[: element.length & 0xFF]
    match context.oid_name():
        case "commonName":
            context.common_name = value
        case "organizationName":
            context.organization = value
        case "email_address":
            context.email = value


def x509_fabricate_name(context: _Context) -> str:
    """Make one text of a name; what is left of it counts for the next name, as in the kernel."""
    common, organization = context.common_name, context.organization
    if common and organization:
        same = common.startswith(organization)
        similar = len(common) >= 7 and len(organization) >= 7 and common[:7] == organization[:7]
        name = common if same or similar else organization + b": " + common
    else:
        name = common or organization or context.email
    context.common_name = context.organization = context.email = b""
    return name.decode("utf-8", "replace")


def x509_note_issuer(context: _Context, element: Element) -> None:
    context.raw_issuer = element.value
    context.issuer = x509_fabricate_name(context)


def x509_note_subject(context: _Context, element: Element) -> None:
    context.raw_subject = element.value
    context.subject = x509_fabricate_name(context)


def x509_note_params(context: _Context, element: Element) -> None:
    # Three times in a certificate; the second, between subject and key, is that of the key.
    if context.raw_subject is not None and context.key is None:
        context.params = element.whole


def x509_extract_key_data(context: _Context, element: Element) -> None:
    name = context.oid_name()
    if name == "rsaEncryption":
        context.pkey_algo = "rsa"
    elif name in {"gost2012PKey256", "gost2012PKey512"}:
        context.pkey_algo = "ecrdsa"
    elif name == "sm2" and context.dialect.sm2:
        context.pkey_algo = "sm2"
    elif name == "id_ecPublicKey":
        context.pkey_algo = _curve(context)
    else:
        raise Asn1Error(_ENOPKG)
    context.key = _bit_string(element)


def _curve(context: _Context) -> str:
    params = context.params
    if len(params) < 3 or params[0] != _OID or params[1] != len(params) - 2:
        raise Asn1Error(EBADMSG)
    oids = context.dialect.oids
    curve = _CURVES.get(oids.name(oids.look_up(params[2:])))
    if curve is None or (curve == "sm2" and not context.dialect.sm2):
        raise Asn1Error(_ENOPKG)
    return curve


def x509_process_extension(context: _Context, element: Element) -> None:
    value = element.value
    match context.oid_name():
        case "subjectKeyIdentifier":
            if context.skid is not None or len(value) < 3:
                raise Asn1Error(EBADMSG)
            if value[0] != _OCTET_STRING or value[1] != len(value) - 2:
                raise Asn1Error(EBADMSG)
            context.skid = value[2:]
        case "authorityKeyIdentifier":
            context.raw_akid = value
        case "keyUsage" if context.dialect.key_eflags:
            if len(value) < 4 or value[0] != _BIT_STRING or value[2] >= 8:
                raise Asn1Error(EBADMSG)
        case "basicConstraints" if context.dialect.key_eflags:
            _check_basic_constraints(value)


def _check_basic_constraints(value: bytes) -> None:
    if len(value) < 2 or value[0] != 0x30 or value[1] != len(value) - 2:
        raise Asn1Error(EBADMSG)
    if len(value) > 2 and value[2:5] != bytes((_BOOLEAN, 1, 0xFF)):
        raise Asn1Error(EBADMSG)


def x509_note_not_before(context: _Context, element: Element) -> None:
    context.times["from"] = x509_decode_time(element)


def x509_note_not_after(context: _Context, element: Element) -> None:
    context.times["to"] = x509_decode_time(element)


def x509_akid_note_kid(context: _Context, element: Element) -> None:
    if context.authority_skid is None:
        context.authority_skid = element.value


def x509_akid_note_name(context: _Context, element: Element) -> None:
    context.akid_issuer = element.value


def x509_akid_note_serial(context: _Context, element: Element) -> None:
    if context.akid_issuer is not None and context.authority_id is None:
        context.authority_id = element.value + context.akid_issuer


def x509_decode_time(element: Element) -> int:
    """Return the seconds since 1970 of a UTCTime or GeneralizedTime.

    Source: ``crypto/asymmetric_keys/x509_cert_parser.c: x509_decode_time``.

    :raises Asn1Error: EBADMSG, for instance for a year before 1970.
    """
    text = element.value
    century = 2 if element.tag == _GENERAL_TIME else 0
    if element.tag not in {_UTC_TIME, _GENERAL_TIME} or len(text) != 13 + century or text[-1:] != b"Z":
        raise Asn1Error(EBADMSG)
    if not (text[:-1].isascii() and text[:-1].isdigit()):
        raise Asn1Error(EBADMSG)
    year = int(text[: 2 + century])
    if not century:
        year += 1900 if year >= 50 else 2000
    elif 1950 <= year <= 2049:
        raise Asn1Error(EBADMSG)
    rest = text[2 + century : -1]
    month, day, hour, minute, second = (int(rest[at : at + 2]) for at in range(0, 10, 2))
    # Midnight as 24:00 and leap seconds are allowed.
    if year < 1970 or hour > 24 or minute > 59 or second > 60:
        raise Asn1Error(EBADMSG)
    try:
        days = dt.date(year, month, day).toordinal() - dt.date(1970, 1, 1).toordinal()
    except ValueError:
        raise Asn1Error(EBADMSG) from None
    return ((days * 24 + hour) * 60 + minute) * 60 + second


_NAMED = Primitive(_OID, x509_note_OID)
_NAME = sequence_of(set_of(sequence(_NAMED, AnyValue(x509_extract_name_segment))), shared=True)
_ALGORITHM_IDENTIFIER = sequence(_NAMED, optional(AnyValue(x509_note_params)), shared=True)
_TIME = Choice.of(Primitive(_UTC_TIME), Primitive(_GENERAL_TIME))
_EXTENSION = sequence(_NAMED, optional(Primitive(_BOOLEAN)), Primitive(_OCTET_STRING, x509_process_extension))
_TBS_CERTIFICATE = sequence(
    optional(explicit(0, Primitive(_INTEGER))),
    Primitive(_INTEGER, x509_note_serial),
    After(_ALGORITHM_IDENTIFIER, x509_note_sig_algo),
    After(_NAME, x509_note_issuer),
    sequence(After(_TIME, x509_note_not_before), After(_TIME, x509_note_not_after)),
    After(_NAME, x509_note_subject),
    sequence(_ALGORITHM_IDENTIFIER, Primitive(_BIT_STRING, x509_extract_key_data)),
    optional(Primitive(0x81)),
    optional(Primitive(0x82)),
    optional(explicit(3, sequence_of(_EXTENSION))),
)
_CERTIFICATE = sequence(
    After(_TBS_CERTIFICATE, x509_note_tbs_certificate),
    _ALGORITHM_IDENTIFIER,
    Primitive(_BIT_STRING, x509_note_signature),
)
_GENERAL_NAME = Choice.of(
    explicit(0, AnyValue()),
    explicit(1, Primitive(_IA5_STRING)),
    explicit(2, Primitive(_IA5_STRING)),
    explicit(3, AnyValue()),
    explicit(
        4,
        After(sequence_of(set_of(sequence(_NAMED, AnyValue(x509_extract_name_segment)))), x509_akid_note_name),
    ),
    explicit(5, AnyValue()),
    explicit(6, Primitive(_IA5_STRING)),
    explicit(7, Primitive(_OCTET_STRING)),
    explicit(8, Primitive(_OID)),
)
_AUTHORITY_KEY_IDENTIFIER = sequence(
    optional(Primitive(0x80, x509_akid_note_kid)),
    optional(sequence_of(_GENERAL_NAME, tag=0xA1)),
    optional(Primitive(0x82, x509_akid_note_serial)),
)
