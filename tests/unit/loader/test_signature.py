"""Module signatures: every way in which the kernel's check can end."""

from __future__ import annotations

import datetime as dt
import hashlib
import lzma
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from kodojo.errors import LogRecord
from kodojo.image.oids import NAMES, OidRegistry, encode
from kodojo.image.x509 import Dialect, x509_cert_parse
from kodojo.loader import public_key
from kodojo.loader.signature import (
    MODULE_SIG_STRING,
    SignatureCapabilities,
    TrustedKeys,
    classify,
    mod_verify_sig,
    module_sig_check,
)

MODULE = b"\x7fELF" + bytes(range(256)) * 8
CAPABILITIES = SignatureCapabilities(hashes=frozenset({"sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256"}))
EINVAL, ENODATA, ENOPKG, EBADMSG, EMSGSIZE, ENOKEY, EKEYREJECTED, ENOENT = 22, 61, 65, 74, 90, 126, 129, 2


@pytest.fixture(autouse=True, params=[0, 1 << 30], ids=["openssl", "python"])
def _verified_by(request, monkeypatch):
    """The first RSA signatures are verified in Python, later ones by OpenSSL: every answer is the same."""
    monkeypatch.setattr(public_key, "_FEW", request.param)


# A writer of DER


def tlv(tag, *parts):
    body = b"".join(parts)
    if len(body) < 128:
        return bytes((tag, len(body))) + body
    return bytes((tag, 0x82)) + len(body).to_bytes(2, "big") + body


def oid(name):
    return tlv(0x06, encode(NAMES.get(name, name)))


def integer(value):
    return tlv(0x02, bytes((value,)))


def algorithm(name):
    return tlv(0x30, oid(name), tlv(0x05))


# Keys, made once


class Signer:
    """A key and its certificate."""

    def __init__(self, key, name="Kernel key", issuer=None, hash_algorithm=None, skid=None):
        self.key = key
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
            .not_valid_after(dt.datetime(2040, 1, 1, tzinfo=dt.UTC))
            .add_extension(x509.SubjectKeyIdentifier(skid or hashlib.sha1(name.encode()).digest()), critical=False)
        )
        if issuer:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier(issuer.parsed.skid, None, None), critical=False
            )
        signing_key = issuer.key if issuer else key
        self.certificate = builder.sign(signing_key, hash_algorithm or hashes.SHA256())
        self.der = self.certificate.public_bytes(Encoding.DER)
        self.parsed = x509_cert_parse(self.der)

    def sign(self, data, hash_algorithm=None):
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hash_algorithm or hashes.SHA256())
        return self.key.sign(data, ec.ECDSA(hash_algorithm or hashes.SHA256()))

    @property
    def sid(self):
        issuer = self.certificate.issuer.public_bytes()
        return tlv(0x30, issuer, tlv(0x02, self.parsed.serial))


@pytest.fixture(scope="module")
def signer():
    return Signer(rsa.generate_private_key(65537, 2048))


@pytest.fixture(scope="module")
def stranger():
    return Signer(rsa.generate_private_key(65537, 2048), "Stranger")


@pytest.fixture(scope="module")
def keys(signer):
    return TrustedKeys([signer.parsed])


def signer_info(signer, data=MODULE, **parts):
    """A SignerInfo; every part can be replaced by its encoding."""
    default = {
        "version": integer(1),
        "sid": signer.sid,
        "digest": algorithm("sha256"),
        "authattrs": b"",
        "encryption": algorithm("rsaEncryption"),
        "signature": tlv(0x04, signer.sign(data)),
        "unauthattrs": b"",
    }
    return tlv(0x30, *(default | parts).values())


def message(*infos, **parts):
    """A PKCS#7 message; every part can be replaced by its encoding."""
    default = {
        "version": integer(1),
        "digests": tlv(0x31, algorithm("sha256")),
        "content": tlv(0x30, oid("data")),
        "certificates": b"",
        "crls": b"",
        "signers": tlv(0x31, *infos),
    }
    return tlv(0x30, oid("signed_data"), tlv(0xA0, tlv(0x30, *(default | parts).values())))


def trailer(size, algo=0, digest=0, id_type=2, signer_len=0, key_id_len=0, pad=bytes(3)):
    return bytes((algo, digest, id_type, signer_len, key_id_len)) + pad + size.to_bytes(4, "big")


def appended(blob, module=MODULE, **fields):
    return module + blob + trailer(len(blob), **fields) + MODULE_SIG_STRING


def check(blob, keys, capabilities=CAPABILITIES, **arguments):
    return module_sig_check(appended(blob), keys, capabilities, **arguments)


def texts(result):
    return [(record.level, record.text) for record in result.log]


# The good case


def test_a_valid_signature(signer, keys):
    """The module is cut to what is signed, and the signer is known by name."""
    result = check(message(signer_info(signer)), keys)
    assert (result.errno, result.sig_ok, result.length, result.log) == (0, True, len(MODULE), ())
    assert result.signer.startswith("Kernel key: ")
    assert not result.ask_lockdown


def test_a_signature_made_by_other_code(signer, keys):
    """What another implementation of PKCS#7 writes, without attributes and certificates, is valid."""
    options = [
        pkcs7.PKCS7Options.DetachedSignature,
        pkcs7.PKCS7Options.Binary,
        pkcs7.PKCS7Options.NoAttributes,
        pkcs7.PKCS7Options.NoCerts,
    ]
    builder = pkcs7.PKCS7SignatureBuilder().set_data(MODULE)
    blob = builder.add_signer(signer.certificate, signer.key, hashes.SHA256()).sign(Encoding.DER, options)
    assert check(blob, keys).sig_ok


def test_a_signer_named_by_key_identifier(signer, keys):
    """CMS version 3 names the key by its identifier."""
    info = signer_info(signer, version=integer(3), sid=tlv(0x80, signer.parsed.skid))
    assert check(message(info, version=integer(3)), keys).sig_ok


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sha1", hashes.SHA1()),
        ("sha224", hashes.SHA224()),
        ("sha384", hashes.SHA384()),
        ("sha512", hashes.SHA512()),
        ("sha3_256", hashes.SHA3_256()),
    ],
)
def test_digests(signer, keys, name, digest):
    """Each digest that the kernel has can be used with RSA."""
    signature = tlv(0x04, signer.sign(MODULE, digest))
    assert check(message(signer_info(signer, digest=algorithm(name), signature=signature)), keys).sig_ok


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_elliptic_curves(curve):
    """An ECDSA signature is valid, and no longer so when the module changes."""
    signer = Signer(ec.generate_private_key(curve))
    keys = TrustedKeys([signer.parsed])
    info = signer_info(signer, encryption=algorithm("id_ecdsa_with_sha256"))
    assert check(message(info), keys).sig_ok
    info = signer_info(signer, MODULE + b"x", encryption=algorithm("id_ecdsa_with_sha256"))
    assert check(message(info), keys).errno == EKEYREJECTED


@pytest.mark.parametrize("position", [0, 100, len(MODULE) - 1])
def test_a_changed_module_is_rejected(signer, keys, position):
    """A signature by a trusted key that does not fit is fatal, enforced or not."""
    data = bytearray(appended(message(signer_info(signer))))
    data[position] ^= 1
    result = module_sig_check(bytes(data), keys, CAPABILITIES)
    assert (result.errno, result.sig_ok, result.slug) == (EKEYREJECTED, False, "bad-signature")
    assert result.length == len(MODULE)


# Verdicts that need not be fatal


def test_a_module_without_a_signature(keys):
    """An unsigned module goes on to lockdown, uncut, and is refused if signatures are enforced."""
    result = module_sig_check(MODULE, keys, CAPABILITIES)
    assert (result.errno, result.verification, result.length) == (0, ENODATA, len(MODULE))
    assert result.ask_lockdown
    assert result.slug == "unsigned-module"
    enforced = module_sig_check(MODULE, keys, CAPABILITIES, sig_enforce=True)
    assert enforced.errno == EKEYREJECTED
    assert enforced.log == (LogRecord(5, "Loading of unsigned module is rejected"),)


@pytest.mark.parametrize("length", [0, 27, 28])
def test_a_file_no_longer_than_the_marker_is_unsigned(keys, length):
    """The marker alone, or a part of it, is no signature."""
    result = module_sig_check(MODULE_SIG_STRING[:length], keys, CAPABILITIES)
    assert (result.verification, result.length) == (ENODATA, length)


def test_a_signature_does_not_count_with_version_checks_off(signer, keys):
    """A module whose version information is ignored is unsigned, and keeps its tail."""
    data = appended(message(signer_info(signer)))
    result = module_sig_check(data, keys, CAPABILITIES, mangled=True)
    assert (result.errno, result.sig_ok, result.verification, result.length) == (0, False, ENODATA, len(data))
    assert result.slug == "signature-ignored"


def test_an_unknown_signer(stranger, keys):
    """Nobody can say whether the module was changed; it stays cut, and the signer is named."""
    for data in (MODULE, b"changed"):
        result = check(message(signer_info(stranger, data)), keys)
        assert (result.errno, result.verification, result.length) == (0, ENOKEY, len(MODULE))
    assert "Stranger" in result.signer
    assert result.slug == "unknown-signer"
    enforced = check(message(signer_info(stranger)), keys, sig_enforce=True)
    assert texts(enforced) == [(5, "Loading of module with unavailable key is rejected")]


def test_a_digest_that_the_kernel_lacks(signer, keys):
    """A digest known by name but not built in is unsupported crypto."""
    capabilities = replace(CAPABILITIES, hashes=frozenset({"sha1"}))
    result = check(message(signer_info(signer)), keys, capabilities, sig_enforce=True)
    assert (result.errno, result.verification) == (EKEYREJECTED, ENOPKG)
    assert texts(result) == [(5, "Loading of module with unsupported crypto is rejected")]


def test_classify():
    """Three errors have a reason text; all others are fatal."""
    assert [classify(errno) for errno in (ENODATA, ENOPKG, ENOKEY, EKEYREJECTED, EBADMSG)] == [
        "unsigned module",
        "module with unsupported crypto",
        "module with unavailable key",
        None,
        None,
    ]


# The trailer


@pytest.mark.parametrize(
    ("tail", "errno", "log"),
    [
        (trailer(4)[:11], EBADMSG, []),
        (trailer(4), EBADMSG, []),
        (b"blob" + trailer(4), EBADMSG, []),
        (b"xblob" + trailer(0xFFFFFFFF), EBADMSG, []),
        (b"xblob" + trailer(4, id_type=1), ENOPKG, ["module: not signed with expected PKCS#7 message"]),
        (
            b"xblob" + trailer(4, algo=1, id_type=0),
            ENOPKG,
            ["module: not signed with expected PKCS#7 message"],
        ),
    ],
)
def test_a_malformed_trailer_cuts_only_the_marker(keys, tail, errno, log):
    """Too short, a size that leaves no module, another type of signature: in this order."""
    result = mod_verify_sig(tail + MODULE_SIG_STRING, keys, CAPABILITIES)
    assert (result.errno, result.length) == (errno, len(tail))
    assert texts(result) == [(3, text) for text in log]


@pytest.mark.parametrize(
    "field", [{"algo": 1}, {"digest": 1}, {"signer_len": 1}, {"key_id_len": 1}, {"pad": b"\0\0\1"}]
)
def test_trailer_fields_must_be_zero(signer, keys, field):
    """Any other field than type and size is refused with a line."""
    data = appended(message(signer_info(signer)), **field)
    result = module_sig_check(data, keys, CAPABILITIES)
    assert (result.errno, result.length) == (EBADMSG, len(data) - len(MODULE_SIG_STRING))
    assert texts(result) == [(3, "module: PKCS#7 signature info has unexpected non-zero params")]


# The message


def attribute(name, *values):
    return tlv(0x30, oid(name), tlv(0x31, *values))


def authattrs(*attributes, tag=0xA0):
    return tlv(tag, *attributes)


CONTENT_TYPE = attribute("contentType", oid("data"))
DIGEST = attribute("messageDigest", tlv(0x04, hashlib.sha256(MODULE).digest()))
UTC_TIME = tlv(0x17, b"300101000000Z")


@pytest.mark.parametrize(
    ("parts", "errno", "log"),
    [
        ({"version": integer(2)}, EINVAL, ["PKCS7: Unsupported SignedData version"]),
        ({"version": tlv(0x02, b"\0\1")}, EINVAL, ["PKCS7: Unsupported SignedData version"]),
        ({"version": integer(3)}, EBADMSG, ["PKCS7: SignedData-SignerInfo version mismatch"]),
        ({"digests": tlv(0x31)}, EBADMSG, []),
        ({"digests": b""}, EBADMSG, []),
        ({"signers": b""}, EINVAL, ["PKCS7: Inconsistently supplied authAttrs"]),
        ({"signers": tlv(0x31)}, EBADMSG, []),
        ({"content": tlv(0x30, oid("msIndirectData"))}, EBADMSG, ["PKCS7: Authenticode requires AuthAttrs"]),
        (
            {"content": tlv(0x30, oid("data"), tlv(0xA0, tlv(0x04)))},
            EBADMSG,
            ["PKCS7: Data already supplied", "PKCS#7 signature with non-detached data"],
        ),
        ({"certificates": tlv(0xA0, tlv(0x30))}, EBADMSG, []),
        ({"certificates": tlv(0xA0, integer(1))}, EBADMSG, []),
    ],
)
def test_messages_that_are_refused(signer, keys, parts, errno, log):
    """Each row of the specification's table that concerns the message as a whole."""
    result = check(message(signer_info(signer), **parts), keys)
    assert result.errno == errno
    assert [record.text for record in result.log] == log
    assert [record.level for record in result.log] == [4, 3][: len(log)]


@pytest.mark.parametrize(
    ("parts", "errno", "log"),
    [
        ({"version": integer(2)}, EINVAL, ["PKCS7: Unsupported SignerInfo version"]),
        ({"version": integer(3)}, EBADMSG, ["PKCS7: SignedData-SignerInfo version mismatch"]),
        ({"authattrs": authattrs(CONTENT_TYPE)}, EBADMSG, ["PKCS7: Missing required AuthAttr"]),
        (
            {"authattrs": authattrs(CONTENT_TYPE, CONTENT_TYPE)},
            EKEYREJECTED,
            ["PKCS7: Repeated/multivalue AuthAttrs not permitted"],
        ),
        (
            {"authattrs": authattrs(CONTENT_TYPE, DIGEST)},
            EKEYREJECTED,
            ["PKCS7: Invalid module sig (has authattrs)"],
        ),
        (
            {"authattrs": authattrs(attribute("smimeCapabilites", tlv(0x30)))},
            EKEYREJECTED,
            ["PKCS7: S/MIME Caps only allowed with Authenticode"],
        ),
        (
            {"authattrs": authattrs(attribute("msStatementType", tlv(0x30)))},
            EKEYREJECTED,
            ["PKCS7: Authenticode AuthAttrs only allowed with Authenticode"],
        ),
        ({"authattrs": authattrs(attribute("messageDigest", integer(1)))}, EBADMSG, []),
        ({"authattrs": authattrs(attribute("signingTime", integer(1)))}, EBADMSG, []),
        # Without a serial number the signer's identifier is empty, and looking for that is an error.
        ({"sid": tlv(0x80, b"\1" * 20)}, EINVAL, []),
        ({"signature": tlv(0x04)}, EKEYREJECTED, []),
        ({"signature": b""}, EBADMSG, []),
    ],
)
def test_signer_infos_that_are_refused(signer, keys, parts, errno, log):
    """Each row of the specification's table that concerns one signature."""
    result = check(message(signer_info(signer, **parts)), keys)
    assert result.errno == errno
    assert texts(result) == [(4, text) for text in log]


def test_not_signed_data(keys):
    """A message of another type is refused, and one without content has no signers."""
    result = check(tlv(0x30, oid("data")), keys)
    assert (result.errno, texts(result)) == (EINVAL, [(4, "PKCS7: Only support pkcs7_signedData type")])
    result = check(tlv(0x30, oid("signed_data")), keys)
    assert (result.errno, texts(result)) == (EINVAL, [(4, "PKCS7: Inconsistently supplied authAttrs")])


def test_authenticode_is_not_for_modules(signer, keys):
    """A message about a PE image may be well-formed, but is refused."""
    attributes = authattrs(attribute("contentType", oid("msIndirectData")), DIGEST)
    content = tlv(0x30, oid("msIndirectData"))
    result = check(message(signer_info(signer, authattrs=attributes), content=content), keys)
    assert (result.errno, texts(result)) == (
        EKEYREJECTED,
        [(4, "PKCS7: Invalid module sig (not pkcs7-data)")],
    )


def test_attributes_must_be_consistent(signer, keys):
    """Either all signatures have attributes or none."""
    infos = (signer_info(signer), signer_info(signer, authattrs=authattrs(CONTENT_TYPE, DIGEST)))
    result = check(message(*infos), keys)
    assert (result.errno, texts(result)) == (EINVAL, [(4, "PKCS7: Inconsistently supplied authAttrs")])


def test_the_content_type_attribute_must_agree(signer, keys):
    """The line has the numbers of both types."""
    attributes = authattrs(attribute("contentType", oid("signed_data")))
    result = check(message(signer_info(signer, authattrs=attributes)), keys)
    numbers = [OidRegistry.default().look_up(encode(NAMES[name])) for name in ("data", "signed_data")]
    assert result.errno == EBADMSG
    assert texts(result) == [
        (4, f"PKCS7: Mismatch between global data type ({numbers[0]}) and sinfo 0 ({numbers[1]})")
    ]


def test_unknown_identifiers_are_logged_with_their_place(signer, keys):
    """An unknown digest is named with its offset in the message and refused as unsupported."""
    unknown = algorithm("1.2.3.4")
    blob = message(signer_info(signer, digest=unknown), digests=tlv(0x31, unknown))
    body = encode("1.2.3.4")
    first = blob.index(body)
    result = check(blob, keys, sig_enforce=True)
    number = OidRegistry.default().unknown
    assert result.verification == ENOPKG
    assert texts(result) == [
        (4, f"PKCS7: Unknown OID: [{first}] 1.2.3.4"),
        (4, f"PKCS7: Unknown OID: [{blob.index(body, first + 1)}] 1.2.3.4"),
        (4, f"Unsupported digest algo: {number}"),
        (5, "Loading of module with unsupported crypto is rejected"),
    ]


def test_an_unknown_content_type_is_logged_twice(signer, keys):
    """The grammar notes the inner type two times."""
    blob = message(signer_info(signer), content=tlv(0x30, oid("1.2.3")))
    place = blob.index(encode("1.2.3") + b"\x31")
    result = check(blob, keys)
    line = (4, f"PKCS7: Unknown OID: [{place}] 1.2.3")
    unsupported = (4, f"PKCS7: Unsupported data type {OidRegistry.default().unknown}")
    assert (result.errno, texts(result)) == (EINVAL, [line, line, unsupported])


@pytest.mark.parametrize("sm2", [True, False])
def test_sm2_is_known_to_some_kernels(signer, keys, sm2):
    """Where the parser knows it, it is a mismatch with an RSA key; elsewhere it is unsupported."""
    capabilities = replace(CAPABILITIES, dialect=Dialect(sm2=sm2))
    info = signer_info(signer, encryption=algorithm("SM2_with_SM3"))
    result = check(message(info), keys, capabilities)
    assert result.verification == (EKEYREJECTED if sm2 else ENOPKG)
    number = OidRegistry.default().look_up(encode(NAMES["SM2_with_SM3"]))
    assert texts(result) == ([] if sm2 else [(4, f"Unsupported pkey algo: {number}")])


def test_an_unknown_signer_is_looked_for_among_the_keys_of_the_firmware(stranger, keys):
    """With a platform keyring the message is parsed twice, and so are its lines printed."""
    capabilities = replace(CAPABILITIES, platform_keyring=True)
    unknown = tlv(0x31, algorithm("sha256"), algorithm("1.2.3"))
    blob = message(signer_info(stranger), digests=unknown)
    result = check(blob, keys, capabilities)
    place = blob.index(encode("1.2.3") + b"\x05")
    line = (4, f"PKCS7: Unknown OID: [{place}] 1.2.3")
    assert (result.verification, texts(result)) == (ENOKEY, [line, line])
    enrolled = TrustedKeys(keys.certificates, platform=[stranger.parsed])
    assert check(blob, enrolled, capabilities).sig_ok
    assert not check(blob, enrolled).sig_ok


def test_a_long_message_is_refused_for_its_length(signer, keys):
    """The decoder takes 65535 bytes."""
    blob = message(signer_info(signer))
    assert check(blob + bytes(65535 - len(blob)), keys).sig_ok
    assert check(blob + bytes(65536 - len(blob)), keys).errno == EMSGSIZE


def test_several_signatures(signer, stranger, keys):
    """One trusted signature is enough, whoever else has signed; a wrong one by a trusted key is too much."""
    good, unknown, bad = signer_info(signer), signer_info(stranger), signer_info(signer, b"other")
    assert check(message(unknown, good), keys).sig_ok
    assert check(message(unknown), keys).verification == ENOKEY
    assert check(message(good, bad), keys).errno == EKEYREJECTED
    lacking = signer_info(signer, digest=algorithm("md5"))
    assert check(message(lacking, good), keys).sig_ok
    assert check(message(lacking, unknown), keys).verification == ENOPKG


# Certificates in the message


def with_certificates(*certificates):
    return {"certificates": tlv(0xA0, *(certificate.der for certificate in certificates))}


def test_a_chain_of_certificates_up_to_a_trusted_key(signer, stranger, keys):
    """The message may carry the certificate of its signer, vouched for by a trusted key."""
    child = Signer(stranger.key, "Child", issuer=signer)
    assert check(message(signer_info(child), **with_certificates(child)), keys).sig_ok
    assert check(message(signer_info(child)), keys).verification == ENOKEY


def test_a_chain_without_a_trusted_key(stranger, keys):
    """The signature is verified with the certificate that comes along: good is unknown, bad is fatal."""
    good = message(signer_info(stranger), **with_certificates(stranger))
    bad = message(signer_info(stranger, b"other"), **with_certificates(stranger))
    assert check(good, keys).verification == ENOKEY
    assert check(bad, keys).errno == EKEYREJECTED


def test_a_chain_that_was_not_signed_by_its_issuer(signer, stranger, keys):
    """A certificate that claims a trusted issuer is checked against that issuer's key."""
    impostor = Signer(stranger.key, "Kernel key", skid=signer.parsed.skid)
    child = Signer(stranger.key, "Child", issuer=impostor)
    assert check(message(signer_info(child), **with_certificates(child)), keys).errno == EKEYREJECTED


def test_a_self_signed_certificate_with_a_bad_signature(stranger, keys):
    """Such a certificate is refused when the message is parsed."""
    damaged = stranger.der[:-1] + bytes((stranger.der[-1] ^ 1,))
    result = check(message(signer_info(stranger), certificates=tlv(0xA0, damaged)), keys)
    assert result.errno in {EKEYREJECTED, EBADMSG, EINVAL}


def test_a_certificate_of_a_kind_that_the_kernel_lacks(keys):
    """An algorithm that is not there is ENOENT as soon as it is needed, and that is fatal."""
    signer = Signer(ec.generate_private_key(ec.SECP256R1()))
    info = signer_info(signer, encryption=algorithm("id_ecdsa_with_sha256"))
    capabilities = replace(CAPABILITIES, public_keys=frozenset({"rsa"}))
    assert check(message(info, **with_certificates(signer)), keys, capabilities).errno == ENOENT
    # A trusted certificate of that kind was not loaded at boot.
    assert check(message(info), TrustedKeys([signer.parsed]), capabilities).verification == ENOKEY


def test_the_time_of_signing_must_be_within_the_validity(stranger, keys):
    """Attributes of the second form are not attributes to the kernel, but their time counts."""
    for text, log in (
        ("300101000000Z", []),
        ("450101000000Z", ["PKCS7: Message signed outside of X.509 validity window"]),
    ):
        when = attribute("signingTime", tlv(0x17, text.encode()))
        info = signer_info(stranger, authattrs=tlv(0xA2, tlv(0x30, when)))
        result = check(message(info, **with_certificates(stranger)), keys)
        assert result.verification == (EKEYREJECTED if log else ENOKEY)
        assert texts(result) == [(4, line) for line in log]


# The blacklist


def test_a_blacklisted_module(signer):
    """The digest of the whole file, marker included, is looked up after the signature was found good."""
    data = appended(message(signer_info(signer)))
    digest = hashlib.sha256(data).hexdigest()
    keys = TrustedKeys([signer.parsed], blacklist=[f"bin:{digest}"])
    result = module_sig_check(data, keys, CAPABILITIES)
    assert (result.errno, result.slug) == (EKEYREJECTED, "blacklisted-module")
    assert texts(result) == [(3, f"Module hash {digest} is blacklisted")]
    assert module_sig_check(data, keys, replace(CAPABILITIES, blacklist_keyring=False)).sig_ok


def test_a_blacklisted_certificate(signer, stranger):
    """A trusted certificate on the blacklist is not trusted, one in the message makes its signature bad."""
    keys = TrustedKeys(
        [signer.parsed],
        blacklist=[f"tbs:{hashlib.sha256(each.parsed.tbs).hexdigest()}" for each in (signer, stranger)],
    )
    assert check(message(signer_info(signer)), keys).verification == ENOKEY
    result = check(message(signer_info(stranger), **with_certificates(stranger)), keys)
    assert result.errno == EKEYREJECTED
    digest = hashlib.sha256(stranger.parsed.tbs).hexdigest()
    assert texts(result) == [(3, f"X.509: Cert {digest} is blacklisted")]


# RSA


def test_rsa_padding(signer, keys):
    """A signature of the right key over the wrong padding or digest is rejected."""
    numbers = signer.key.private_numbers()
    modulus, private = numbers.public_numbers.n, numbers.d
    digest = hashlib.sha256(MODULE).digest()
    info = bytes.fromhex("3031300d060960864801650304020105000420")
    good = b"\0\1" + b"\xff" * (256 - 3 - len(info) - 32) + b"\0" + info + digest
    variants = {
        good: True,
        b"\0\2" + good[2:]: False,
        good[:10] + b"\xfe" + good[11:]: False,
        b"\0\1" + b"\xff" * 7 + b"\0" + info + digest + bytes(256 - 10 - len(info) - 32): False,
        b"\0\1" + b"\xff" * (256 - 3 - 32) + b"\0" + digest: False,
        good[:-1] + b"\0": good[-1] == 0,
    }
    for padded, valid in variants.items():
        signature = pow(int.from_bytes(padded, "big"), private, modulus).to_bytes(256, "big")
        result = check(message(signer_info(signer, signature=tlv(0x04, signature))), keys)
        assert result.sig_ok is valid
        assert result.verification == (0 if valid else EKEYREJECTED)


# Robustness


def test_any_damage_to_the_message_is_an_errno(signer, keys):
    """Whatever byte of a message with a certificate is changed: a verdict, never a Python exception."""
    blob = message(signer_info(signer), **with_certificates(signer))
    verdicts = set()
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 0x01 if position % 2 else 0xFF
        verdicts.add(check(bytes(damaged), keys).verification)
    assert {EBADMSG, EKEYREJECTED, ENOPKG} <= verdicts


def test_a_truncated_message_is_refused(signer, keys):
    """A message that ends early is not decodable."""
    blob = message(signer_info(signer))
    for size in range(0, len(blob), 7):
        assert check(blob[:size], keys).errno == EBADMSG


# Distribution kernels


def module_files(image, count):
    names = sorted(image.modules)
    for name in names[:: max(1, len(names) // count)][:count]:
        data = image.modules[name].path.read_bytes()
        yield lzma.decompress(data) if data[:6] == b"\xfd7zXZ\0" else data


@pytest.mark.kernel
def test_the_modules_of_a_distribution_kernel_are_validly_signed(image):
    """Fifty modules are vouched for by the certificate in their kernel's image."""
    keys, capabilities = TrustedKeys.from_image(image), SignatureCapabilities.from_image(image)
    results = [module_sig_check(data, keys, capabilities) for data in module_files(image, 50)]
    assert len(results) == 50
    assert all(result.sig_ok and not result.log for result in results)


@pytest.mark.kernel
def test_a_changed_module_of_a_distribution_kernel_is_rejected(image):
    """One byte is enough; without the tail the module is unsigned, without the key its signer unknown."""
    keys, capabilities = TrustedKeys.from_image(image), SignatureCapabilities.from_image(image)
    data = next(module_files(image, 1))
    changed = bytearray(data)
    changed[200] ^= 1
    assert module_sig_check(bytes(changed), keys, capabilities).errno == EKEYREJECTED
    assert module_sig_check(data[:-1], keys, capabilities).verification == ENODATA
    assert module_sig_check(data, TrustedKeys(), capabilities).verification == ENOKEY
