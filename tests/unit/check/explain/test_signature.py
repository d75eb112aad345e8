from __future__ import annotations

import pytest

from kodojo.check.explain import Case, explain
from kodojo.check.explain.signature import signature, unverified
from kodojo.loader.verdict import Verdict, check
from tests.conftest import image_of
from tests.unit.check.explain.conftest import case, problem

MARKER = b"~Module signature appended~\n"


def test_no_signature():
    """A module without a signature, on a kernel that trusts nobody."""
    subjects = [detail.subject for detail in signature(case(), problem("unsigned-module")).details]
    assert subjects == ["signature", "trusted keys"]


def test_remark():
    """A module that loads without a valid signature is remarked on, another one is not."""
    assert [detail.subject for detail in unverified(case(), Verdict(ok=True, taints=1 << 13))] == ["signature"]
    assert unverified(case(), Verdict(ok=True)) == ()


@pytest.mark.kernel
def test_changed_module(image):
    """A module that was changed after signing: the kernel trusts the key, and says so."""
    content = bytearray(image.modules["dummy"].read())
    content[content.index(b"\0license=") + 1] ^= 1
    verdict = explain(Case(image, bytes(content)), check(image, bytes(content)))
    assert verdict.slug == "bad-signature"
    signed, *keys = verdict.problems[0].details
    assert "the kernel trusts that key" in signed.more[0]
    assert signed.facts["key"] in {key.facts["serial"] for key in keys}
    assert len(keys) == len(image.keyring)


@pytest.mark.kernel
def test_key_of_another_build():
    """A module of another kernel: the kernel does not trust its key, and says which ones it trusts."""
    old, new = image_of("6.1"), image_of("6.12")
    content = old.modules["dummy"].read()
    signed, *keys = signature(Case(new, content), problem("unknown-signer")).details
    serials = {key.facts["serial"] for key in keys}
    assert (signed.facts["key"] in serials) == ("trusts that key" in signed.more[0])
    assert signed.facts["hash"] == "sha256"


@pytest.mark.kernel
def test_damaged_signature(image):
    """What is no signature has none to tell of."""
    content = image.modules["dummy"].read()
    trailer = bytes([0, 0, 2, 0, 0, 0, 0, 0, 0x7F, 0, 0, 0])  # struct module_signature: PKCS#7, 2 GiB of it
    broken = content[: -len(MARKER) - len(trailer)] + trailer + MARKER
    verdict = explain(Case(image, broken), check(image, broken))
    assert verdict.slug == "malformed-signature"
    assert verdict.problems[0].details[0].text == "there is none at the end of the file"
