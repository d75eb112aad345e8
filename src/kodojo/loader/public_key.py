"""Public-key signatures as the kernel verifies them, and the keys that it trusts.

Source: ``crypto/asymmetric_keys/public_key.c``, ``x509_public_key.c``, ``asymmetric_type.c``,
``crypto/rsa-pkcs1pad.c``, ``crypto/rsa.c``, ``crypto/ecdsa.c``. Where a function there returns ``-errno``,
the one here returns ``errno``.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import count
from typing import TYPE_CHECKING

from kodojo.errors import MissingInformationError, UnmodelledError
from kodojo.image.asn1 import EBADMSG, Asn1Error, Element, Primitive, asn1_ber_decoder, sequence
from kodojo.image.x509 import Certificate, Dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from kodojo.image.btf import Struct
    from kodojo.image.image import Image

__all__ = [
    "EINVAL",
    "EKEYREJECTED",
    "ENOENT",
    "ENOKEY",
    "ENOMEM",
    "ENOPKG",
    "LoadedCertificate",
    "PublicKeySignature",
    "SignatureCapabilities",
    "TrustedKeys",
    "crypto_shash_digest",
    "public_key_verify_signature",
    "x509_load",
]

ENOENT = 2
ENOMEM = 12
EINVAL = 22
ENOPKG = 65
ENOKEY = 126
EKEYREJECTED = 129

_ERROR = 3
_INFO = 6
_MAX_EXTERN_MPI_BITS = 16384
_RSA_KEY_BITS = frozenset({512, 1024, 1536, 2048, 3072, 4096})

# What makes an algorithm part of the kernel at boot: any of these options set to y.
_HASH_OPTIONS = {
    "md4": ("CRYPTO_MD4",),
    "md5": ("CRYPTO_MD5",),
    "sha1": ("CRYPTO_SHA1", "CRYPTO_SHA1_SSSE3", "CRYPTO_SHA1_ARM64_CE"),
    "sha224": ("CRYPTO_SHA256", "CRYPTO_SHA256_SSSE3", "CRYPTO_SHA256_ARM64", "CRYPTO_SHA2_ARM64_CE"),
    "sha256": ("CRYPTO_SHA256", "CRYPTO_SHA256_SSSE3", "CRYPTO_SHA256_ARM64", "CRYPTO_SHA2_ARM64_CE"),
    "sha384": ("CRYPTO_SHA512", "CRYPTO_SHA512_SSSE3", "CRYPTO_SHA512_ARM64", "CRYPTO_SHA512_ARM64_CE"),
    "sha512": ("CRYPTO_SHA512", "CRYPTO_SHA512_SSSE3", "CRYPTO_SHA512_ARM64", "CRYPTO_SHA512_ARM64_CE"),
    "sha3-256": ("CRYPTO_SHA3", "CRYPTO_SHA3_ARM64"),
    "sha3-384": ("CRYPTO_SHA3", "CRYPTO_SHA3_ARM64"),
    "sha3-512": ("CRYPTO_SHA3", "CRYPTO_SHA3_ARM64"),
    "sm3": ("CRYPTO_SM3_GENERIC", "CRYPTO_SM3_AVX_X86_64", "CRYPTO_SM3_NEON", "CRYPTO_SM3_ARM64_CE"),
    "streebog256": ("CRYPTO_STREEBOG",),
    "streebog512": ("CRYPTO_STREEBOG",),
}
_KEY_OPTIONS = {
    "rsa": "CRYPTO_RSA",
    "ecdsa-nist-p192": "CRYPTO_ECDSA",
    "ecdsa-nist-p256": "CRYPTO_ECDSA",
    "ecdsa-nist-p384": "CRYPTO_ECDSA",
    "ecdsa-nist-p521": "CRYPTO_ECDSA",
    "sm2": "CRYPTO_SM2",
    "ecrdsa": "CRYPTO_ECRDSA",
}
_ECDSA_HASHES = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
_SHA3 = frozenset({"sha3-256", "sha3-384", "sha3-512"})
# DigestInfo of RFC 8017, 9.2, without the digest itself.
_DIGEST_INFO = {
    "md5": "3020300c06082a864886f70d020505000410",
    "sha1": "3021300906052b0e03021a05000414",
    "sha224": "302d300d06096086480165030402040500041c",
    "sha256": "3031300d060960864801650304020105000420",
    "sha384": "3041300d060960864801650304020205000430",
    "sha512": "3051300d060960864801650304020305000440",
    "sha3-256": "3031300d060960864801650304020805000420",
    "sha3-384": "3041300d060960864801650304020905000430",
    "sha3-512": "3051300d060960864801650304020a05000440",
}


@dataclass(frozen=True, slots=True)
class SignatureCapabilities:
    """What the signature code of one kernel can do.

    :param hashes: digests that the kernel has at boot, by the kernel's names.
    :param public_keys: kinds of keys that it can verify with: ``rsa``, ``ecdsa-nist-p256`` ...
    :param platform_keyring: a signer that is unknown is looked for once more among the firmware's keys.
    :param blacklist_keyring: there is a blacklist of hashes.
    :param default_level: level of lines that the kernel prints without one.
    """

    dialect: Dialect = field(default_factory=Dialect)
    hashes: frozenset[str] = frozenset(_HASH_OPTIONS)
    public_keys: frozenset[str] = frozenset(_KEY_OPTIONS)
    platform_keyring: bool = False
    blacklist_keyring: bool = True
    default_level: int = 4

    @classmethod
    def from_image(cls, image: Image) -> SignatureCapabilities:
        """Ask a kernel image: its configuration, its registry of object identifiers, its types.

        An algorithm that is a module counts as absent: nothing loads it in a kernel that has just booted.
        """
        if "config" not in image.describes:
            return cls()
        config = image.config

        def built_in(option: str) -> bool:
            return bool(config.get(f"CONFIG_{option}") == "y")

        keys, signature = _struct(image, "public_key"), _struct(image, "public_key_signature")
        oids = image.oids
        public_keys = {name for name, option in _KEY_OPTIONS.items() if built_in(option)}
        if "id_ansip521r1" not in oids:
            public_keys.discard("ecdsa-nist-p521")
        return cls(
            Dialect(
                oids,
                # The member went with the parsers' support for SM2 (46b3ff73afc8, 6.10).
                sm2=signature is not None and signature.has("data"),
                key_eflags=keys is not None and keys.has("key_eflags"),
            ),
            frozenset(name for name, options in _HASH_OPTIONS.items() if any(map(built_in, options))),
            frozenset(public_keys),
            built_in("INTEGRITY_PLATFORM_KEYRING"),
            built_in("SYSTEM_BLACKLIST_KEYRING"),
            int(config.get("CONFIG_MESSAGE_LOGLEVEL_DEFAULT") or 4),
        )


def _struct(image: Image, name: str) -> Struct | None:
    with suppress(MissingInformationError):
        return image.btf.struct(name) if image.btf.has(name) else None
    return None


@dataclass(slots=True)
class PublicKeySignature:
    """``struct public_key_signature``: a signature, and what is known about its signer.

    :param auth_ids: the signer's identifiers: serial and issuer (or key identifier), key identifier.
    """

    s: bytes = b""
    hash_algo: str = ""
    pkey_algo: str = ""
    digest: bytes = b""
    auth_ids: tuple[bytes | None, bytes | None] = (None, None)


@dataclass(slots=True, eq=False)
class LoadedCertificate:
    """``struct x509_certificate``: a certificate, and what its verification has found so far."""

    certificate: Certificate
    sig: PublicKeySignature
    index: int = 0
    unsupported_sig: bool = False
    blacklisted: bool = False
    self_signed: bool = False
    signer: LoadedCertificate | None = None
    seen: bool = False
    verified: bool = False


class TrustedKeys:
    """The keyrings of one kernel, as far as they matter for modules.

    :param certificates: those built in, and what else is in the secondary keyring.
    :param blacklist: hashes such as ``bin:0123...`` (:func:`kodojo.image.keyring.blacklist_hashes`).
    :param platform: the firmware's keys.
    :param revoked: certificates on the revocation list.
    """

    def __init__(
        self,
        certificates: Iterable[Certificate] = (),
        *,
        blacklist: Iterable[str] = (),
        platform: Iterable[Certificate] = (),
        revoked: Iterable[Certificate] = (),
    ) -> None:
        self.certificates = tuple(certificates)
        self.blacklist = frozenset(blacklist)
        self.platform = tuple(platform)
        self.revoked = tuple(revoked)
        self._usable: dict[tuple[int, SignatureCapabilities], bool] = {}

    @classmethod
    def from_image(cls, image: Image) -> TrustedKeys:
        """Return the keys of a kernel that has just booted without firmware keys."""
        if "keys" not in image.describes:
            return cls()
        from kodojo.image import keyring  # noqa: PLC0415  (only needed here)

        return cls(
            image.keyring,
            blacklist=keyring.blacklist_hashes(image.elf, image.kallsyms),
            revoked=keyring.revocation_certificates(image.elf, image.kallsyms),
        )

    @cached_property
    def _by_id(self) -> dict[str, dict[bytes, Certificate]]:
        tables: dict[str, dict[bytes, Certificate]] = {}
        for ring in ("certificates", "platform", "revoked"):
            table = tables[ring] = {}
            for certificate in getattr(self, ring):
                for key_id in (certificate.id, certificate.skid):
                    if key_id is not None:
                        table.setdefault(key_id, certificate)
        return tables

    def find_asymmetric_key(
        self, ring: str, id_0: bytes | None, id_1: bytes | None, capabilities: SignatureCapabilities
    ) -> Certificate | int:
        """Find a key by either identifier; both must fit if both are given.

        Source: ``crypto/asymmetric_keys/asymmetric_type.c: find_asymmetric_key``.

        :param ring: ``certificates``, ``platform`` or ``revoked``.
        :returns: the certificate, or ENOKEY, EKEYREJECTED (the second identifier differs), EINVAL (empty).
        """
        wanted = id_0 if id_0 is not None else id_1
        if not wanted:
            return EINVAL
        found = self._by_id[ring].get(wanted)
        if found is None or not self._was_loaded(found, capabilities):
            return ENOKEY
        if id_0 is not None and id_1 is not None and found.skid != id_1:
            return EKEYREJECTED
        return found

    def _was_loaded(self, certificate: Certificate, capabilities: SignatureCapabilities) -> bool:
        """Tell whether the kernel took the certificate into its keyring at boot (``x509_key_preparse``)."""
        key = id(certificate), capabilities
        if key not in self._usable:
            try:
                loaded = x509_load(certificate, capabilities, self.blacklist, lambda _level, _text: None)
            except Asn1Error:
                self._usable[key] = False
            else:
                self._usable[key] = not loaded.blacklisted
        return self._usable[key]


def crypto_shash_digest(name: str, data: bytes | memoryview) -> bytes:
    """Return the digest of the data by the kernel's name of the algorithm.

    :raises UnmodelledError: this Python has no such digest.
    """
    try:
        return hashlib.new(name.replace("-", "_"), data, usedforsecurity=False).digest()
    except ValueError:
        raise UnmodelledError(f"the digest {name} is not available in this Python") from None


def x509_load(
    certificate: Certificate,
    capabilities: SignatureCapabilities,
    blacklist: frozenset[str],
    log: Callable[[int, str], None],
) -> LoadedCertificate:
    """Do what parsing a certificate includes in the kernel: digest it, and check whether it is self-signed.

    Source: ``x509_get_sig_params`` and ``x509_check_for_self_signed``.

    :raises Asn1Error: with the kernel's errno; the certificate is unusable.
    """
    sig = PublicKeySignature(
        certificate.signature,
        certificate.hash_algo,
        certificate.signature_algo,
        auth_ids=(certificate.authority_id, certificate.authority_skid),
    )
    loaded = LoadedCertificate(certificate, sig)
    if sig.hash_algo in capabilities.hashes:
        sig.digest = crypto_shash_digest(sig.hash_algo, certificate.tbs)
        if capabilities.blacklist_keyring and f"tbs:{sig.digest.hex()}" in blacklist:
            log(_ERROR, f"X.509: Cert {sig.digest.hex()} is blacklisted")
            loaded.blacklisted = True
    else:
        loaded.unsupported_sig = True
    x509_check_for_self_signed(loaded, capabilities, log)
    return loaded


def x509_check_for_self_signed(
    loaded: LoadedCertificate, capabilities: SignatureCapabilities, log: Callable[[int, str], None]
) -> None:
    certificate = loaded.certificate
    if certificate.raw_subject != certificate.raw_issuer:
        return
    authority_id, authority_skid = loaded.sig.auth_ids
    if authority_id is not None or authority_skid is not None:
        same_skid = certificate.skid is not None and certificate.skid == authority_skid
        same_id = certificate.id == authority_id
        if not same_skid and not same_id:
            return
        if same_skid != same_id and authority_id is not None and authority_skid is not None:
            raise Asn1Error(EKEYREJECTED)
    if loaded.unsupported_sig:
        return
    errno = public_key_verify_signature(certificate, loaded.sig, capabilities, log)
    if errno == ENOPKG:
        loaded.unsupported_sig = True
    elif errno:
        raise Asn1Error(errno)
    else:
        loaded.self_signed = True


def public_key_verify_signature(
    key: Certificate,
    sig: PublicKeySignature,
    capabilities: SignatureCapabilities,
    log: Callable[[int, str], None],
) -> int:
    """Verify a signature with the key of a certificate; return 0 or the errno.

    Source: ``crypto/asymmetric_keys/public_key.c: public_key_verify_signature``.

    :raises UnmodelledError: an algorithm that the kernel has and kodojo hasn't (SM2, EC-RDSA).
    """
    # A signature does not tell the curve, a key does.
    if sig.pkey_algo not in {key.pkey_algo, "ecdsa" if key.algorithm == "ecdsa" else key.pkey_algo}:
        return EKEYREJECTED
    sha3 = "sha3_256" in capabilities.dialect.oids
    if key.algorithm == "rsa":
        if "rsa" not in capabilities.public_keys or sig.hash_algo not in _DIGEST_INFO:
            return ENOENT
        if sig.hash_algo in _SHA3 and not sha3:
            return ENOENT
        return _rsa_pkcs1_verify(key.key, sig, log)
    hashes = {
        "ecdsa": _ECDSA_HASHES | (_SHA3 if sha3 else frozenset()),
        "sm2": frozenset({"sm3"}),
        "ecrdsa": frozenset({"streebog256", "streebog512"}),
    }
    if sig.hash_algo not in hashes[key.algorithm]:
        return EINVAL
    if key.pkey_algo not in capabilities.public_keys:
        return ENOENT
    if key.algorithm != "ecdsa":
        raise UnmodelledError(f"signatures by {key.pkey_algo} keys are not modelled")
    return _ecdsa_verify(key, sig)


# RSA

_FEW = 40
_verifications = count()


@lru_cache(maxsize=64)
def _rsa_parse_pub_key(key: bytes) -> tuple[bytes, bytes]:
    parts: list[bytes] = []

    def number(_context: object, element: Element) -> None:
        if not element.length or (parts and element.length > len(parts[0])):
            raise Asn1Error(EINVAL)
        parts.append(element.value)

    asn1_ber_decoder(sequence(Primitive(0x02, number), Primitive(0x02, number)), None, key)
    return parts[0], parts[1]


def _rsa_pkcs1_verify(key: bytes, sig: PublicKeySignature, log: Callable[[int, str], None]) -> int:
    try:
        raw_modulus, raw_exponent = _rsa_parse_pub_key(key)
    except Asn1Error as error:
        return error.errno
    exponent, modulus = int.from_bytes(raw_exponent, "big"), int.from_bytes(raw_modulus, "big")
    for number in (exponent, modulus):
        if number.bit_length() > _MAX_EXTERN_MPI_BITS:
            log(_INFO, f"MPI: mpi too large ({number.bit_length()} bits)")
            return ENOMEM
    size = (modulus.bit_length() + 63) // 64 * 8  # whole limbs
    if size * 8 not in _RSA_KEY_BITS:
        return EINVAL
    value = int.from_bytes(sig.s, "big")
    # Without a digest: the kernel has no code for the hash of a certificate's signature.
    if not sig.digest or len(sig.s) != size or value >= modulus:
        return EINVAL
    prefix = bytes.fromhex(_DIGEST_INFO[sig.hash_algo])
    if _recover(exponent, modulus, sig.s) == prefix + sig.digest:
        return 0
    padded = pow(value, exponent, modulus).to_bytes(size, "big")
    if padded[0]:
        return EINVAL
    separator = padded.find(b"\0", 1)
    if padded[1] != 1 or separator < 10 or padded[2:separator].strip(b"\xff"):
        return EBADMSG
    rest = padded[separator + 1 :]
    if not rest.startswith(prefix):
        return EBADMSG
    return 0 if rest[len(prefix) :] == sig.digest else EKEYREJECTED


def _recover(exponent: int, modulus: int, signature: bytes) -> bytes | None:
    """What was signed, by OpenSSL, which is ten times faster than Python; None: find out why it says nothing.

    To import it takes as long as Python takes for some dozen signatures, so the first ones are left to Python.
    """
    if next(_verifications) < _FEW:
        return None
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415

    key = _rsa_key(exponent, modulus)
    try:
        return key.recover_data_from_signature(signature, padding.PKCS1v15(), None) if key is not None else None
    except InvalidSignature:
        return None


@lru_cache(maxsize=64)
def _rsa_key(exponent: int, modulus: int) -> RSAPublicKey | None:
    """The key as the library has it; None if it does not take such numbers."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers  # noqa: PLC0415

    try:
        return RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        return None


# ECDSA


def _ecdsa_verify(key: Certificate, sig: PublicKeySignature) -> int:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  (slow, and rarely needed)
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, utils  # noqa: PLC0415

    curves: dict[str, ec.EllipticCurve] = {
        "ecdsa-nist-p192": ec.SECP192R1(),
        "ecdsa-nist-p256": ec.SECP256R1(),
        "ecdsa-nist-p384": ec.SECP384R1(),
        "ecdsa-nist-p521": ec.SECP521R1(),
    }
    curve = curves[key.pkey_algo]
    size = (curve.key_size + 63) // 64 * 8  # whole digits of 64 bits
    half = len(key.key) // 2
    if len(key.key) % 2 == 0 or key.key[0] != 4 or (half + 7) // 8 * 8 != size:
        return EINVAL
    x, y = key.numbers
    try:
        public_key = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError:  # not a point of the curve
        return EINVAL
    try:
        r, s = _ecdsa_signature(sig.s, size)
    except Asn1Error as error:
        return error.errno
    if not r or not s:
        return EBADMSG
    algorithms: dict[int, hashes.HashAlgorithm] = {
        20: hashes.SHA1(),  # noqa: S303  (by length only: nothing is hashed here)
        28: hashes.SHA224(),
        32: hashes.SHA256(),
        48: hashes.SHA384(),
        64: hashes.SHA512(),
    }
    digest = sig.digest or bytes(32)  # the kernel fills up a missing digest with zeros
    algorithm = ec.ECDSA(utils.Prehashed(algorithms[len(digest)]))
    try:
        public_key.verify(utils.encode_dss_signature(r, s), digest, algorithm)
    except InvalidSignature:
        return EKEYREJECTED
    return 0


def _ecdsa_signature(data: bytes, size: int) -> tuple[int, int]:
    """Return r and s (``crypto/ecdsa.c: ecdsa_get_signature_rs``)."""
    numbers: list[int] = []

    def number(_context: object, element: Element) -> None:
        value = element.value
        if len(value) == size + 1 and not value[0]:
            value = value[1:]
        if not 0 < len(value) <= size:
            raise Asn1Error(EINVAL)
        numbers.append(int.from_bytes(value, "big"))

    asn1_ber_decoder(sequence(Primitive(0x02, number), Primitive(0x02, number)), None, data)
    return numbers[0], numbers[1]
