"""PKCS#7 messages as the kernel parses them.

Source: ``crypto/asymmetric_keys/pkcs7_parser.c`` and its grammar ``pkcs7.asn1``. The actions bear the names
that they have there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
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
from kodojo.image.oids import sprint_oid
from kodojo.image.x509 import x509_cert_parse, x509_decode_time
from kodojo.loader.public_key import (
    EINVAL,
    EKEYREJECTED,
    ENOPKG,
    LoadedCertificate,
    PublicKeySignature,
    SignatureCapabilities,
    x509_load,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pkcs7Message", "SignedInfo", "pkcs7_parse_message"]

_WARNING = 4
_INTEGER, _OCTET_STRING, _OID, _SEQUENCE = 0x02, 0x04, 0x06, 0x30

_RSA_SIGNATURE_SIZES = (256, 384, 512)

_DIGESTS = {
    **{name: name for name in ("md4", "md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sm3")},
    **{f"sha3_{bits}": f"sha3-{bits}" for bits in (256, 384, 512)},
    **{f"gost2012Digest{bits}": f"streebog{bits}" for bits in (256, 512)},
}
_PUBLIC_KEYS = {
    "rsaEncryption": "rsa",
    **{
        f"id_ecdsa_with_{name}": "ecdsa"
        for name in ("sha1", "sha224", "sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512")
    },
    "SM2_with_SM3": "sm2",
    "gost2012PKey256": "ecrdsa",
    "gost2012PKey512": "ecrdsa",
}


@dataclass(slots=True, eq=False)
class SignedInfo:
    """``struct pkcs7_signed_info``: one signature of a message."""

    sig: PublicKeySignature = field(default_factory=PublicKeySignature)
    signer: LoadedCertificate | None = None
    index: int = 0
    unsupported_crypto: bool = False
    blacklisted: bool = False
    has_authattrs: bool = False
    attributes: set[str] = field(default_factory=set)
    signing_time: int = 0
    issuer: bytes = b""
    serial: bytes = b""


@dataclass(slots=True, eq=False)
class Pkcs7Message:
    """``struct pkcs7_message``.

    :param data_type: name of the content's type: ``data`` or ``msIndirectData``.
    :param has_data: the message carries its content, an empty one included.
    """

    certs: list[LoadedCertificate] = field(default_factory=list)
    signed_infos: list[SignedInfo] = field(default_factory=list)
    version: int = 0
    have_authattrs: bool = False
    data_type: str = ""
    data_type_number: int = 0
    has_data: bool = False


def pkcs7_parse_message(
    data: bytes,
    capabilities: SignatureCapabilities,
    blacklist: frozenset[str],
    log: Callable[[int, str], None],
) -> Pkcs7Message:
    """Parse a message and the certificates in it.

    :param blacklist: hashes of certificates, with their prefix ``tbs:``.
    :param log: called with level and text of each line that the kernel prints.
    :raises Asn1Error: with the kernel's errno.
    """
    for size in _RSA_SIGNATURE_SIZES:
        if data[-size - 4 : -size] == bytes((_OCTET_STRING, 0x82, *size.to_bytes(2, "big"))):
            template = _template(data[:-size], size, capabilities)
            if template is not None:
                return _with_signature(template, data[-size:])
    return _parse(data, capabilities, blacklist, log)


@lru_cache(maxsize=64)
def _template(head: bytes, size: int, capabilities: SignatureCapabilities) -> Pkcs7Message | None:
    """What all messages with this beginning and a signature of ``size`` bytes as their end have in common.

    Modules of one build differ in these bytes alone, and parsing does not look at them. None where it is not so
    simple: certificates come along, or the kernel prints something, or refuses.
    """
    lines: list[str] = []
    try:
        message = _parse(head + bytes(size), capabilities, frozenset(), lambda _level, text: lines.append(text))
    except Asn1Error:
        return None
    plain = not (lines or message.certs) and [len(info.sig.s) for info in message.signed_infos] == [size]
    return message if plain else None


def _with_signature(template: Pkcs7Message, signature: bytes) -> Pkcs7Message:
    info = template.signed_infos[0]
    own = replace(info, sig=replace(info.sig, s=signature), attributes=set(info.attributes))
    return replace(template, certs=[], signed_infos=[own])


def _parse(
    data: bytes,
    capabilities: SignatureCapabilities,
    blacklist: frozenset[str],
    log: Callable[[int, str], None],
) -> Pkcs7Message:
    context = _Context(capabilities, blacklist, log)
    asn1_ber_decoder(_CONTENT_INFO, context, data)
    message = context.message
    want = bool(message.signed_infos) and message.signed_infos[0].has_authattrs
    if not message.signed_infos or any(info.has_authattrs != want for info in message.signed_infos):
        context.warn("Inconsistently supplied authAttrs")
        raise Asn1Error(EINVAL)
    message.have_authattrs = want
    return message


@dataclass(slots=True)
class _Context:
    """``struct pkcs7_parse_context``. What one signature leaves unset is still that of the one before."""

    capabilities: SignatureCapabilities
    blacklist: frozenset[str]
    log: Callable[[int, str], None]
    message: Pkcs7Message = field(default_factory=Pkcs7Message)
    info: SignedInfo = field(default_factory=SignedInfo)
    certs: list[LoadedCertificate] = field(default_factory=list)
    last_oid: int = 0
    serial: bytes = b""
    issuer: bytes = b""
    skid: bytes = b""
    expect_skid: bool = False
    certificate_count: int = 0

    def warn(self, text: str) -> None:
        self.log(_WARNING, f"PKCS7: {text}")

    def oid_name(self) -> str:
        return self.capabilities.dialect.oids.name(self.last_oid)


def pkcs7_note_OID(context: _Context, element: Element) -> None:  # noqa: N802
    oids = context.capabilities.dialect.oids
    context.last_oid = oids.look_up(element.value)
    if context.last_oid == oids.unknown:
        text = f"PKCS7: Unknown OID: [{element.start}] {sprint_oid(element.value)}"
        context.log(context.capabilities.default_level, text)


def pkcs7_sig_note_digest_algo(context: _Context, _element: Element) -> None:
    algorithm = _DIGESTS.get(context.oid_name())
    if algorithm is None:
        context.log(context.capabilities.default_level, f"Unsupported digest algo: {context.last_oid}")
        raise Asn1Error(ENOPKG)
    context.info.sig.hash_algo = algorithm


def pkcs7_sig_note_pkey_algo(context: _Context, _element: Element) -> None:
    algorithm = _PUBLIC_KEYS.get(context.oid_name())
    if algorithm is None or (algorithm == "sm2" and not context.capabilities.dialect.sm2):
        context.log(context.capabilities.default_level, f"Unsupported pkey algo: {context.last_oid}")
        raise Asn1Error(ENOPKG)
    context.info.sig.pkey_algo = algorithm


def pkcs7_check_content_type(context: _Context, _element: Element) -> None:
    if context.oid_name() != "signed_data":
        context.warn("Only support pkcs7_signedData type")
        raise Asn1Error(EINVAL)


def pkcs7_note_signeddata_version(context: _Context, element: Element) -> None:
    if element.value not in {b"\1", b"\3"}:
        context.warn("Unsupported SignedData version")
        raise Asn1Error(EINVAL)
    context.message.version = element.value[0]


def pkcs7_note_signerinfo_version(context: _Context, element: Element) -> None:
    if element.value not in {b"\1", b"\3"}:
        context.warn("Unsupported SignerInfo version")
        raise Asn1Error(EINVAL)
    version = element.value[0]
    if (version == 1) != (context.message.version == 1):
        context.warn("SignedData-SignerInfo version mismatch")
        raise Asn1Error(EBADMSG)
    context.expect_skid = version == 3


def pkcs7_extract_cert(context: _Context, element: Element) -> None:
    if element.tag != _SEQUENCE:
        raise Asn1Error(EBADMSG)
    certificate = x509_cert_parse(element.whole, context.capabilities.dialect, context.log)
    loaded = x509_load(certificate, context.capabilities, context.blacklist, context.log)
    context.certificate_count += 1
    loaded.index = context.certificate_count
    context.certs.append(loaded)


def pkcs7_note_certificate_list(context: _Context, _element: Element) -> None:
    context.message.certs = context.certs + context.message.certs
    context.certs = []


def pkcs7_note_content(context: _Context, _element: Element) -> None:
    name = context.oid_name()
    if name not in {"data", "msIndirectData"}:
        context.warn(f"Unsupported data type {context.last_oid}")
        raise Asn1Error(EINVAL)
    context.message.data_type = name
    context.message.data_type_number = context.last_oid


def pkcs7_note_data(context: _Context, _element: Element) -> None:
    context.message.has_data = True


_ATTRIBUTES = {
    "contentType",
    "signingTime",
    "messageDigest",
    "smimeCapabilites",
    "msSpOpusInfo",
    "msStatementType",
}


def pkcs7_sig_note_authenticated_attr(context: _Context, element: Element) -> None:
    name = context.oid_name()
    if name not in _ATTRIBUTES:
        return
    info, message = context.info, context.message
    if name in info.attributes:
        context.warn("Repeated/multivalue AuthAttrs not permitted")
        raise Asn1Error(EKEYREJECTED)
    info.attributes.add(name)
    authenticode = message.data_type == "msIndirectData"
    if name == "contentType":
        number = context.capabilities.dialect.oids.look_up(element.value)
        if number != message.data_type_number:
            context.warn(
                f"Mismatch between global data type ({message.data_type_number}) and sinfo {info.index} ({number})"
            )
            raise Asn1Error(EBADMSG)
    elif name == "signingTime":
        info.signing_time = x509_decode_time(element)
    elif name == "messageDigest":
        if element.tag != _OCTET_STRING:
            raise Asn1Error(EBADMSG)
    elif not authenticode:
        what = "S/MIME Caps" if name == "smimeCapabilites" else "Authenticode AuthAttrs"
        context.warn(f"{what} only allowed with Authenticode")
        raise Asn1Error(EKEYREJECTED)


def pkcs7_sig_note_set_of_authattrs(context: _Context, _element: Element) -> None:
    attributes = context.info.attributes
    if not {"contentType", "messageDigest"} <= attributes:
        context.warn("Missing required AuthAttr")
        raise Asn1Error(EBADMSG)
    if context.message.data_type != "msIndirectData" and "msSpOpusInfo" in attributes:
        context.warn("Unexpected Authenticode AuthAttr")
        raise Asn1Error(EBADMSG)
    context.info.has_authattrs = True


def pkcs7_sig_note_serial(context: _Context, element: Element) -> None:
    context.serial = element.value


def pkcs7_sig_note_issuer(context: _Context, element: Element) -> None:
    context.issuer = element.value


def pkcs7_sig_note_skid(context: _Context, element: Element) -> None:
    context.skid = element.value


def pkcs7_sig_note_signature(context: _Context, element: Element) -> None:
    context.info.sig.s = element.value


def pkcs7_note_signed_info(context: _Context, _element: Element) -> None:
    info, message = context.info, context.message
    if message.data_type == "msIndirectData" and not info.has_authattrs:
        context.warn("Authenticode requires AuthAttrs")
        raise Asn1Error(EBADMSG)
    key_id = context.skid if context.expect_skid else context.serial + context.issuer
    info.sig.auth_ids = (key_id, None)
    if not context.expect_skid:
        info.issuer, info.serial = context.issuer, context.serial
    message.signed_infos.append(info)
    info.index = len(message.signed_infos)
    context.info = SignedInfo()


_NAMED = Primitive(_OID, pkcs7_note_OID)
# Used for two fields, each with an action of its own after the type's.
_CONTENT_TYPE = _NAMED
_ALGORITHM = sequence(_NAMED, optional(AnyValue()), shared=True)
_CERTIFICATE = AnyValue(pkcs7_extract_cert)
_CERTIFICATE_LIST = sequence_of(_CERTIFICATE, shared=True)
_NAME = sequence_of(set_of(sequence(_NAMED, AnyValue())))
_AUTHENTICATED_ATTRIBUTE = sequence(_NAMED, set_of(AnyValue(pkcs7_sig_note_authenticated_attr)), shared=True)
_UNAUTHENTICATED_ATTRIBUTE = sequence(Primitive(_OID), set_of(AnyValue()), shared=True)
_SIGNER_INFO = sequence(
    Primitive(_INTEGER, pkcs7_note_signerinfo_version),
    Choice.of(
        sequence(After(_NAME, pkcs7_sig_note_issuer), Primitive(_INTEGER, pkcs7_sig_note_serial)),
        Primitive(0x80, pkcs7_sig_note_skid),
    ),
    After(_ALGORITHM, pkcs7_sig_note_digest_algo),
    optional(
        Choice.of(
            After(set_of(_AUTHENTICATED_ATTRIBUTE, tag=0xA0), pkcs7_sig_note_set_of_authattrs),
            explicit(2, sequence_of(_AUTHENTICATED_ATTRIBUTE)),
        )
    ),
    After(sequence(_NAMED, optional(AnyValue())), pkcs7_sig_note_pkey_algo),
    Primitive(_OCTET_STRING, pkcs7_sig_note_signature),
    optional(
        Choice.of(
            set_of(_UNAUTHENTICATED_ATTRIBUTE, tag=0xA1),
            sequence_of(_UNAUTHENTICATED_ATTRIBUTE, tag=0xA3),
        )
    ),
    action=pkcs7_note_signed_info,
    shared=True,
)
_SIGNED_DATA = sequence(
    Primitive(_INTEGER, pkcs7_note_signeddata_version),
    Choice.of(set_of(_ALGORITHM), sequence_of(_ALGORITHM)),
    After(
        sequence(
            # The action of the type runs, and then that of the field, which is the same one.
            After(_CONTENT_TYPE, pkcs7_note_OID),
            optional(explicit(0, AnyValue(pkcs7_note_data))),
        ),
        pkcs7_note_content,
    ),
    optional(
        Choice.of(
            # An extended certificate is decoded as a certificate ("cheating", says the grammar).
            set_of(Choice.of(_CERTIFICATE, _CERTIFICATE), tag=0xA0),
            sequence_of(_CERTIFICATE, tag=0xA2),
            action=pkcs7_note_certificate_list,
        )
    ),
    optional(
        Choice.of(
            set_of(_CERTIFICATE_LIST, tag=0xA1),
            sequence_of(_CERTIFICATE_LIST, tag=0xA3),
        )
    ),
    Choice.of(set_of(_SIGNER_INFO), sequence_of(_SIGNER_INFO)),
)
_CONTENT_INFO = sequence(After(_CONTENT_TYPE, pkcs7_check_content_type), optional(explicit(0, _SIGNED_DATA)))
