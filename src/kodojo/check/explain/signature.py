"""Signatures: who signed, with what, and whom the kernel trusts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kodojo.errors import Detail, KodojoError
from kodojo.kmod.signature import signature_rows

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal
    from kodojo.image.x509 import Certificate
    from kodojo.loader.verdict import Verdict

__all__ = ["SLUGS", "signature", "unverified"]

TAINT_UNSIGNED_MODULE = 13

SLUGS = (
    "unsigned-module",
    "unsupported-signature-type",
    "malformed-signature",
    "unknown-signer",
    "unsupported-crypto",
    "bad-signature",
    "blacklisted-module",
    "locked-down",
)


def signature(case: Case, problem: Refusal) -> Refusal:
    """The signature as modinfo tells it, the keys that the kernel trusts, and how the two miss each other."""
    trusted = case.image.keyring
    details = [_signature(case), *(_key(certificate) for certificate in trusted)]
    if not trusted:
        details.append(Detail("trusted keys", "the kernel has none built in"))
    return replace(problem, details=tuple(details))


def unverified(case: Case, verdict: Verdict) -> tuple[Detail, ...]:
    """Whose signature it is that a kernel does not accept, but does not insist on either."""
    if not verdict.taints >> TAINT_UNSIGNED_MODULE & 1:
        return ()
    try:
        return (_signature(case),)
    except KodojoError:  # nobody knows whom this kernel trusts
        return ()


def _signature(case: Case) -> Detail:
    rows, trusted = dict(signature_rows(case.content)), case.image.keyring
    if not rows:
        return Detail("signature", "there is none at the end of the file")
    signer, key = rows["signer"], "".join(rows["sig_key"].split())
    text = f"made by '{signer}' with the key {key}, over a {rows['sig_hashalgo']} digest"
    more = []
    same_key = [one for one in trusted if _hex(one.serial) == key or (one.skid and _hex(one.skid) == key)]
    same_name = [one for one in trusted if signer and signer in one.subject]
    if same_key:
        more.append("the kernel trusts that key, so it is the signature or the file that is wrong")
    elif same_name:
        more.append("the kernel trusts a key of the same name, but another one: the module is of another build")
    else:
        more.append("the kernel trusts nobody of that name")
    facts: dict[str, int | str] = {"signer": signer, "key": key, "hash": rows["sig_hashalgo"]}
    return Detail("signature", text, facts, tuple(more))


def _key(certificate: Certificate) -> Detail:
    until = datetime.fromtimestamp(certificate.valid_to, UTC).date().isoformat()
    facts: dict[str, int | str] = {
        "serial": _hex(certificate.serial),
        "key identifier": _hex(certificate.skid or b""),
        "algorithm": certificate.pkey_algo,
    }
    text = f"'{certificate.subject}', {certificate.pkey_algo}, serial number {facts['serial']}, until {until}"
    return Detail("trusted key", text, facts)


def _hex(data: bytes) -> str:
    return data.lstrip(b"\0").hex(":").upper()
