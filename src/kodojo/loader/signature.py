"""Module signatures: what ``module_sig_check()`` decides about a file, and why.

Source: ``kernel/module/signing.c``, ``kernel/module_signature.c``. Nothing is printed and nothing is asked
of a running kernel here: the result carries the lines to print, and the loader asks for lockdown itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kodojo.errors import LogRecord
from kodojo.image.asn1 import EBADMSG, EMSGSIZE
from kodojo.image.x509 import name_text
from kodojo.loader.pkcs7_verify import Verification
from kodojo.loader.public_key import (
    EKEYREJECTED,
    ENOENT,
    ENOKEY,
    ENOPKG,
    SignatureCapabilities,
    TrustedKeys,
    crypto_shash_digest,
)

__all__ = [
    "MODULE_SIG_STRING",
    "SignatureCapabilities",
    "SignatureResult",
    "TrustedKeys",
    "classify",
    "mod_verify_sig",
    "module_sig_check",
]

MODULE_SIG_STRING = b"~Module signature appended~\n"
ENODATA = 61

_ERROR = 3
_NOTICE = 5
_PKEY_ID_PKCS7 = 2
_SIGNATURE_SIZE = 12  # sizeof(struct module_signature)
_REASONS = {
    ENODATA: "unsigned module",
    ENOPKG: "module with unsupported crypto",
    ENOKEY: "module with unavailable key",
}
_SIGN_HINT = "Sign it with the key of the kernel's build (scripts/sign-file), or with a key that you have enrolled."


@dataclass(frozen=True, slots=True)
class SignatureResult:
    """What the kernel makes of a module's signature.

    :param errno: 0 if loading goes on; else positive.
    :param length: bytes of the file that are the module from here on (``info->len``).
    :param sig_ok: the signature is valid (``info->sig_ok``).
    :param log: the lines that the kernel prints, in order.
    :param slug: the reason why ``sig_ok`` is false; empty if it is true.
    :param why: the same in plain words.
    :param signer: the trusted certificate that vouches for the module, or who the signature names.
    :param verification: the errno of the verification itself: the kernel goes on with ENODATA, ENOPKG and
        ENOKEY if it may, and asks lockdown first (``LOCKDOWN_MODULE_SIGNATURE``).
    """

    errno: int
    length: int
    sig_ok: bool = False
    log: tuple[LogRecord, ...] = ()
    slug: str = ""
    why: str = ""
    hint: str = ""
    signer: str | None = None
    verification: int = 0

    @property
    def ask_lockdown(self) -> bool:
        """Whether ``security_locked_down(LOCKDOWN_MODULE_SIGNATURE)`` has the last word."""
        return not self.errno and not self.sig_ok


def classify(errno: int) -> str | None:
    """Return the reason text of an error that need not be fatal, None for one that is."""
    return _REASONS.get(errno)


def module_sig_check(
    data: bytes | memoryview,
    keys: TrustedKeys,
    capabilities: SignatureCapabilities,
    *,
    mangled: bool = False,
    sig_enforce: bool = False,
) -> SignatureResult:
    """Decide about the signature at the end of a module file.

    Source: ``kernel/module/signing.c: module_sig_check``.

    :param data: the whole file.
    :param mangled: the caller wants version information to be ignored (``MODULE_INIT_IGNORE_*``); the file
        then counts as unsigned.
    :param sig_enforce: ``module.sig_enforce``.
    :raises UnmodelledError: the signature uses an algorithm that the kernel has and kodojo hasn't.
    """
    marker = len(MODULE_SIG_STRING)
    if not mangled and len(data) > marker and data[-marker:] == MODULE_SIG_STRING:
        result = mod_verify_sig(data, keys, capabilities)
    else:
        result = _unsigned(data, mangled=mangled)
    if result.sig_ok:
        return result
    reason = classify(result.verification)
    if reason is None:
        return result
    if sig_enforce:
        return replace(
            result,
            errno=EKEYREJECTED,
            log=(*result.log, LogRecord(_NOTICE, f"Loading of {reason} is rejected")),
            hint=result.hint or _SIGN_HINT,
        )
    return replace(result, errno=0)


def _unsigned(data: bytes | memoryview, *, mangled: bool) -> SignatureResult:
    if mangled:
        why = "It is loaded with version checks off, and a signature does not count then."
        hint = "Load it without --force."
        return SignatureResult(ENODATA, len(data), slug="signature-ignored", why=why, hint=hint, verification=ENODATA)
    return SignatureResult(
        ENODATA,
        len(data),
        slug="unsigned-module",
        why="The file has no signature at its end.",
        hint=_SIGN_HINT,
        verification=ENODATA,
    )


def mod_verify_sig(
    data: bytes | memoryview, keys: TrustedKeys, capabilities: SignatureCapabilities
) -> SignatureResult:
    """Verify the signature of a file that ends with the marker.

    Source: ``kernel/module/signing.c: mod_verify_sig``, ``kernel/module_signature.c: mod_check_sig``.

    :param data: the whole file, marker included.
    :returns: ``errno`` is that of the verification: EBADMSG, ENOPKG, ENOKEY, EKEYREJECTED ...
    """
    length = len(data) - len(MODULE_SIG_STRING)
    if length <= _SIGNATURE_SIZE:
        return _malformed(length, "The file is too short to hold a signature.")
    trailer = bytes(data[length - _SIGNATURE_SIZE : length])
    size = int.from_bytes(trailer[8:], "big")
    if size >= length - _SIGNATURE_SIZE:
        why = f"The signature claims {size} bytes, which is not less than the file has before it."
        return _malformed(length, why)
    if trailer[2] != _PKEY_ID_PKCS7:
        text = "module: not signed with expected PKCS#7 message"
        return SignatureResult(
            ENOPKG,
            length,
            log=(LogRecord(_ERROR, text),),
            slug="unsupported-signature-type",
            why=f"The signature is of type {trailer[2]}, and only type 2 (PKCS#7) is known.",
            hint="Sign it with scripts/sign-file of a kernel from 4.3 on.",
            verification=ENOPKG,
        )
    if any(trailer[:2]) or any(trailer[3:8]):
        text = "module: PKCS#7 signature info has unexpected non-zero params"
        result = _malformed(length, "Fields of the signature's trailer that must be zero are not.")
        return replace(result, log=(LogRecord(_ERROR, text),))
    length -= _SIGNATURE_SIZE + size
    return _verify(data, length, bytes(data[length : length + size]), keys, capabilities)


def _verify(
    data: bytes | memoryview,
    length: int,
    blob: bytes,
    keys: TrustedKeys,
    capabilities: SignatureCapabilities,
) -> SignatureResult:
    log: list[LogRecord] = []

    def printk(level: int, text: str) -> None:
        log.append(LogRecord(level, text))

    verification = Verification(memoryview(data)[:length], blob, keys, capabilities, printk)
    errno = verification.verify_pkcs7_signature("certificates")
    if errno == ENOKEY and capabilities.platform_keyring:
        errno = verification.verify_pkcs7_signature("platform")
    digest = ""
    if not errno:
        errno, digest = mod_is_hash_blacklisted(data, keys, capabilities)
        if digest:
            printk(_ERROR, f"Module hash {digest} is blacklisted")
    slug, why, hint = _explain(errno, verification, log, blacklisted=bool(digest))
    signer = verification.signer.description if verification.signer else _named_signer(verification)
    return SignatureResult(errno, length, not errno, tuple(log), slug, why, hint, signer, errno)


def mod_is_hash_blacklisted(
    data: bytes | memoryview, keys: TrustedKeys, capabilities: SignatureCapabilities
) -> tuple[int, str]:
    """Look the digest of the whole file up in the blacklist; return the errno, and the digest if it is there.

    Source: ``kernel/module/signing.c: mod_is_hash_blacklisted``.
    """
    if "sha256" not in capabilities.hashes:
        return ENOENT, ""
    if not capabilities.blacklist_keyring or not keys.blacklist:
        return 0, ""
    digest = crypto_shash_digest("sha256", data).hex()
    return (EKEYREJECTED, digest) if f"bin:{digest}" in keys.blacklist else (0, "")


def _malformed(length: int, why: str) -> SignatureResult:
    hint = "The file is truncated or damaged: copy it again, or sign it again."
    return SignatureResult(EBADMSG, length, slug="malformed-signature", why=why, hint=hint, verification=EBADMSG)


def _explain(
    errno: int, verification: Verification, log: list[LogRecord], *, blacklisted: bool
) -> tuple[str, str, str]:
    """Return slug, why and hint."""
    if not errno:
        return "", "", ""
    if blacklisted:
        return "blacklisted-module", "The kernel's blacklist names exactly this file.", ""
    last = log[-1].text if log else ""
    if errno == ENOKEY:
        signer = _named_signer(verification) or "an unnamed key"
        return "unknown-signer", f"It is signed by {signer}, which this kernel does not trust.", _SIGN_HINT
    if errno == ENOPKG:
        detail = last or _hash_names(verification)
        why = f"The signature uses an algorithm that this kernel does not have at boot ({detail})."
        return "unsupported-crypto", why, "Sign it with RSA and SHA-256."
    if errno == EKEYREJECTED:
        why = "The file was changed after it had been signed, or the signature was."
        if last:
            why = f"The kernel rejects the signature: {last}."
        return "bad-signature", why, "Strip after building and before signing, never after; or sign it again."
    if errno == EMSGSIZE:
        return "malformed-signature", "The signature is longer than 65535 bytes.", "Sign it again."
    why = f"The signature is not a PKCS#7 message as the kernel wants it{f': {last}' if last else ''}."
    return "malformed-signature", why, "Sign it again with scripts/sign-file."


def _hash_names(verification: Verification) -> str:
    infos = verification.message.signed_infos if verification.message else []
    return ", ".join(sorted({info.sig.hash_algo for info in infos})) or "unknown"


def _named_signer(verification: Verification) -> str | None:
    """Return whom the first signature names as its signer."""
    if verification.message is None or not verification.message.signed_infos:
        return None
    info = verification.message.signed_infos[0]
    if not info.serial:
        key_id = info.sig.auth_ids[0]
        return f"the key {key_id.hex()}" if key_id else None
    name = name_text(info.issuer)
    return f"{name or 'an unnamed key'} (serial number {info.serial.hex()})"
