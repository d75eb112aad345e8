"""Algorithms to ask the kernel's crypto API for: an instance of every template."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kodojo.image.image import Image
from kodojo.kmod.elf_parts import module_parts
from kodojo.kmod.index import ModuleIndex

__all__ = ["INSTANCES", "NONE_SUCH", "modules_for", "templates"]

ALIAS = "crypto_"  # as kmod folds it

INSTANCES: dict[str, tuple[str, str]] = {
    "adiantum": ("skcipher", "adiantum(xchacha12,aes)"),
    "authenc": ("aead", "authenc(hmac(sha256),cbc(aes))"),
    "authencesn": ("aead", "authencesn(hmac(sha1),cbc(aes))"),
    "cbc": ("skcipher", "cbc(twofish)"),
    "cbcmac": ("shash", "cbcmac(aes)"),
    "ccm": ("aead", "ccm(aes)"),
    "ccm_base": ("aead", "ccm_base(ctr(aes),cbcmac(aes))"),
    "cfb": ("skcipher", "cfb(aes)"),
    "cmac": ("shash", "cmac(aes)"),
    "cryptd": ("skcipher", "cryptd(ecb(aes))"),
    "ctr": ("skcipher", "ctr(serpent)"),
    "cts": ("skcipher", "cts(cbc(aes))"),
    "ecb": ("skcipher", "ecb(camellia)"),
    "echainiv": ("aead", "echainiv(authenc(hmac(sha256),cbc(aes)))"),
    "essiv": ("skcipher", "essiv(cbc(aes),sha256)"),
    "gcm": ("aead", "gcm(aes)"),
    "gcm_base": ("aead", "gcm_base(ctr(aes),ghash)"),
    "hmac": ("shash", "hmac(streebog256)"),
    "kw": ("skcipher", "kw(aes)"),
    "lrw": ("skcipher", "lrw(aes)"),
    "ofb": ("skcipher", "ofb(aes)"),
    "pcbc": ("skcipher", "pcbc(fcrypt)"),
    "pcrypt": ("aead", "pcrypt(rfc4106(gcm(aes)))"),
    "pkcs1pad": ("akcipher", "pkcs1pad(rsa,sha512)"),
    "rfc3686": ("skcipher", "rfc3686(ctr(aes))"),
    "rfc4106": ("aead", "rfc4106(gcm(aes))"),
    "rfc4309": ("aead", "rfc4309(ccm(aes))"),
    "rfc4543": ("aead", "rfc4543(gcm(aes))"),
    "rfc7539": ("aead", "rfc7539(chacha20,poly1305)"),
    "rfc7539esp": ("aead", "rfc7539esp(chacha20,poly1305)"),
    "seqiv": ("aead", "seqiv(rfc4106(gcm(aes)))"),
    "vmac64": ("shash", "vmac64(aes)"),
    "xcbc": ("shash", "xcbc(aes)"),
    "xts": ("skcipher", "xts(aes)"),
}
"""By template: what kind of algorithm an instance is, and its name."""

NONE_SUCH = (("shash", "cmac(kd)"), ("aead", "kd(aes)"), ("skcipher", "cmac(aes)"), ("shash", "cmac(aes"))
"""What is not had: no such cipher, no such template, another kind of algorithm, no name."""

_NEEDED = {
    "adiantum": ("nhpoly1305",), "ccm": ("ccm_base", "ctr", "cbcmac"), "ccm_base": ("ctr", "cbcmac"), "cts": ("cbc",),
    "gcm": ("gcm_base", "ctr", "ghash"), "gcm_base": ("ctr", "ghash"), "lrw": ("ecb", "gf128mul"), "xts": ("ecb",),
}  # fmt: skip
"""What a template itself asks for, besides what the name of the instance says."""


def templates(image: Image) -> list[str]:
    """The templates in modules of a tree, by the aliases of those modules."""
    index = ModuleIndex.of(image)
    found = set()
    for alias, name in index.aliases:
        if alias.startswith(ALIAS) and _has_templates(image, name):
            found.add(alias.removeprefix(ALIAS))
    return sorted(found)


def _has_templates(image: Image, name: str) -> bool:
    undefined = module_parts(image.modules[name].read()).undefined
    return any(symbol.startswith(b"crypto_register_template") for symbol in undefined)


def modules_for(image: Image, instance: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """By the names that the kernel may ask modprobe for: the modules to load, in order."""
    index = ModuleIndex.of(image)
    words = re.findall(r"[a-z0-9_]+", instance)
    wanted = dict.fromkeys([*words, *(other for word in words for other in _NEEDED.get(word, ()))])
    for alias in (f"{ALIAS}{word}{end}" for word in wanted for end in ("", "-all")):
        names = [one for name in index.by_alias(alias) for one in (*index.dependencies(name), name)]
        if names:
            yield alias.replace(ALIAS, "crypto-"), tuple(dict.fromkeys(names))
