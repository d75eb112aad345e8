"""Whether a PKCS#7 message is consistent in itself, and whether a trusted key vouches for it.

Source: ``crypto/asymmetric_keys/pkcs7_verify.c``, ``pkcs7_trust.c`` and ``certs/system_keyring.c``. Where a
function there returns ``-errno``, the one here returns ``errno``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kodojo.errors import UnmodelledError
from kodojo.image.asn1 import EBADMSG, Asn1Error
from kodojo.image.x509 import Certificate
from kodojo.loader.pkcs7_parser import Pkcs7Message, SignedInfo, pkcs7_parse_message
from kodojo.loader.public_key import (
    EKEYREJECTED,
    ENOKEY,
    ENOMEM,
    ENOPKG,
    LoadedCertificate,
    PublicKeySignature,
    SignatureCapabilities,
    TrustedKeys,
    crypto_shash_digest,
    public_key_verify_signature,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Verification"]

_ERROR = 3
_WARNING = 4


@dataclass
class Verification:
    """The verification of one detached signature over one piece of data.

    :param data: what is signed.
    :param blob: the PKCS#7 message.
    :param log: called with level and text of each line that the kernel prints.
    :param signer: after success: the trusted certificate that vouches for the data.
    """

    data: bytes | memoryview
    blob: bytes
    keys: TrustedKeys
    capabilities: SignatureCapabilities
    log: Callable[[int, str], None]
    signer: Certificate | None = None
    message: Pkcs7Message | None = None
    _digests: dict[str, bytes] = field(default_factory=dict)

    def verify_pkcs7_signature(self, ring: str) -> int:
        """Parse the message and verify it against a keyring; return 0 or the errno.

        :param ring: ``certificates`` (the secondary keyring) or ``platform``.
        """
        try:
            message = pkcs7_parse_message(self.blob, self.capabilities, self.keys.blacklist, self.log)
        except Asn1Error as error:
            return error.errno
        self.message = message
        if message.has_data:
            self._warn("Data already supplied")
            self.log(_ERROR, "PKCS#7 signature with non-detached data")
            return EBADMSG
        errno = self.pkcs7_verify(message)
        if errno:
            return errno
        revoked = bool(self.keys.revoked) and self.pkcs7_validate_trust(message, "revoked") == 0
        if revoked and ring == "platform":
            return EKEYREJECTED
        errno = self.pkcs7_validate_trust(message, ring)
        if revoked and not errno:
            # Refused since 6.8, accepted before; the image does not tell which.
            raise UnmodelledError("the signer is both trusted and on the revocation list")
        return errno

    def pkcs7_verify(self, message: Pkcs7Message) -> int:
        """Check the message for itself, for use as a module's signature."""
        if message.data_type != "data":
            self._warn("Invalid module sig (not pkcs7-data)")
            return EKEYREJECTED
        if message.have_authattrs:
            self._warn("Invalid module sig (has authattrs)")
            return EKEYREJECTED
        actual = ENOPKG
        for info in message.signed_infos:
            errno = self.pkcs7_verify_one(message, info)
            if info.blacklisted:
                actual = EKEYREJECTED if actual == ENOPKG else actual
            elif errno == ENOPKG:
                info.unsupported_crypto = True
            elif errno:
                return errno
            else:
                actual = 0
        return actual

    def pkcs7_verify_one(self, message: Pkcs7Message, info: SignedInfo) -> int:
        """Check the data's digest and one signature of it: 0 or an errno."""
        name = info.sig.hash_algo
        if name not in self.capabilities.hashes:
            return ENOPKG
        if name not in self._digests:
            self._digests[name] = crypto_shash_digest(name, self.data)
        info.sig.digest = self._digests[name]
        for cert in message.certs:
            if cert.certificate.id == info.sig.auth_ids[0]:
                info.signer = cert
                break
        else:
            return 0
        signer = info.signer.certificate
        if "signingTime" in info.attributes and not (signer.valid_from <= info.signing_time <= signer.valid_to):
            self._warn("Message signed outside of X.509 validity window")
            return EKEYREJECTED
        errno = self._verify_signature(signer, info.sig)
        return errno or self.pkcs7_verify_sig_chain(message, info)

    def pkcs7_verify_sig_chain(self, message: Pkcs7Message, info: SignedInfo) -> int:
        """Follow the signer's certificate to its issuers, as far as they are in the message."""
        for other in message.certs:
            other.seen = False
        cert = info.signer
        while cert is not None:
            cert.seen = True
            if cert.blacklisted:
                info.blacklisted = True
                _mark(info.signer, cert, "blacklisted")
                return 0
            if cert.self_signed:
                # One with unsupported crypto is not marked self-signed.
                cert.signer = cert
                return 0
            issuer = self._issuer(message, cert)
            if issuer is None:
                return 0
            authority_id, authority_skid = cert.sig.auth_ids
            if authority_id is not None and authority_skid is not None and issuer.certificate.skid != authority_skid:
                self._warn(
                    f"Sig {info.index}: X.509 chain contains auth-skid nonmatch ({cert.index}->{issuer.index})"
                )
                return EKEYREJECTED
            if issuer.seen:
                self._warn(f"Sig {info.index}: X.509 chain contains loop")
                return 0
            errno = self._verify_signature(issuer.certificate, cert.sig)
            if errno:
                return errno
            cert.signer = issuer
            cert = issuer
        return 0

    @staticmethod
    def _issuer(message: Pkcs7Message, cert: LoadedCertificate) -> LoadedCertificate | None:
        authority_id, authority_skid = cert.sig.auth_ids
        for other in message.certs:
            if authority_id is not None:
                if other.certificate.id == authority_id:
                    return other
            elif authority_skid is not None and other.certificate.skid == authority_skid:
                return other
        return None

    def pkcs7_validate_trust(self, message: Pkcs7Message, ring: str) -> int:
        """Look for a trusted key in the chain of any signature."""
        for cert in message.certs:
            cert.seen = False
        cached = ENOKEY
        for info in message.signed_infos:
            errno = self.pkcs7_validate_trust_one(info, ring)
            if errno == ENOKEY:
                continue
            if errno == ENOPKG:
                cached = ENOPKG if cached == ENOKEY else cached
            elif errno:
                return errno
            else:
                cached = 0
        return cached

    def pkcs7_validate_trust_one(self, info: SignedInfo, ring: str) -> int:
        """Look for a trusted key on the way from a signature up its chain of certificates: 0 or an errno."""
        if info.unsupported_crypto:
            return ENOPKG
        sig, last, cert = info.sig, None, info.signer
        while cert is not None:
            if cert.seen:
                return self._trusted(info, cert) if cert.verified else ENOKEY
            cert.seen = True
            key = self._find(ring, cert.certificate.id, cert.certificate.skid)
            if isinstance(key, Certificate):
                return self._matched(info, key, sig, cert)
            if cert.signer is cert:
                return ENOKEY
            last, sig = cert, cert.sig
            cert = cert.signer
        if last is not None and last.sig.auth_ids != (None, None):
            key = self._find(ring, *last.sig.auth_ids)
            if isinstance(key, Certificate):
                return self._matched(info, key, sig, last)
            if key != ENOKEY:
                return key
        key = self._find(ring, info.sig.auth_ids[0], None)
        if isinstance(key, Certificate):
            return self._matched(info, key, info.sig, None)
        return key

    def _find(self, ring: str, id_0: bytes | None, id_1: bytes | None) -> Certificate | int:
        return self.keys.find_asymmetric_key(ring, id_0, id_1, self.capabilities)

    def _matched(
        self, info: SignedInfo, key: Certificate, sig: PublicKeySignature, cert: LoadedCertificate | None
    ) -> int:
        errno = self._verify_signature(key, sig)
        if errno:
            return errno if errno == ENOMEM else EKEYREJECTED
        self.signer = key
        return self._trusted(info, cert)

    @staticmethod
    def _trusted(info: SignedInfo, cert: LoadedCertificate | None) -> int:
        if cert is not None:
            cert.verified = True
            _mark(info.signer, cert, "verified")
        return 0

    def _verify_signature(self, key: Certificate, sig: PublicKeySignature) -> int:
        return public_key_verify_signature(key, sig, self.capabilities, self.log)

    def _warn(self, text: str) -> None:
        self.log(_WARNING, f"PKCS7: {text}")


def _mark(first: LoadedCertificate | None, last: LoadedCertificate, flag: str) -> None:
    """Set a flag on each certificate of a chain before the last."""
    cert = first
    while cert is not None and cert is not last:
        setattr(cert, flag, True)
        cert = cert.signer
