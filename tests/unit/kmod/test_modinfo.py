from __future__ import annotations

import datetime as dt
import struct

import pytest

from kodojo.errors import InputError, ModuleFileError
from kodojo.kmod.modinfo import builtin_modinfo, is_module_filename, read_modinfo
from kodojo.kmod.signature import MARKER, signature_rows
from kodojo.report.modinfo import field_lines, modinfo_lines


def _info(tree, **info):
    return read_modinfo(tree.add("some-mod", **info))


def test_all_tags_are_shown_in_the_files_order(tree):
    info = _info(tree, author=["A", "B"], alias="x-y")
    keys = [key for key, _ in info.rows]
    assert keys == ["license", "retpoline", "intree", "name", "vermagic", "author", "author", "alias"]
    assert info.values("author") == ["A", "B"]
    assert info.values("alias") == ["x-y"]
    assert info.values("filename") == [str(tree.root / "kernel/some-mod.ko")]
    assert info.name == "some_mod"


def test_lines_have_their_values_in_one_column(tree):
    lines = modinfo_lines(_info(tree, a_tag_with_a_long_name="v"))
    assert lines[0] == f"filename:       {tree.root}/kernel/some-mod.ko"
    assert "license:        GPL" in lines
    assert f"a_tag_with_a_long_name:{' ' * 7}v" in lines


def test_parameters_are_put_together_and_the_last_one_comes_first(tree):
    info = _info(tree, parm=["a:what it does", "b:no type"], parmtype=["a:int", "c:bool"])
    assert field_lines(info, "parm") == ["c: (bool)", "b:no type", "a:what it does (int)"]
    assert modinfo_lines(info)[-3:] == [
        "parm:           c:bool",
        "parm:           b:no type",
        "parm:           a:what it does (int)",
    ]


def test_a_parameter_without_a_colon_is_named(tree):
    assert _info(tree, parm="nocolon").bad_parameters == [("parm", "nocolon")]


def test_control_characters_do_not_reach_the_terminal(tree):
    assert field_lines(_info(tree, description="a\x1b[2Jb"), "description") == ["a\\x1b[2Jb"]


def test_what_is_built_in_says_so(index):
    info = builtin_modinfo(index, "core")
    assert modinfo_lines(info) == [
        "name:           core",
        "filename:       (builtin)",
        "license:        GPL",
        "alias:          net-pf-1",
        "parm:           x:an x",
    ]
    assert info.values("name") == ["core"]


@pytest.mark.parametrize(
    ("content", "errno"),
    [(b"", 22), (b"junk" * 30, 8), (b"\x7fELF\x02\x01", 8), (b"\x7fELF\x01\x01" + bytes(100), 22)],
)
def test_what_is_no_module(tmp_path, content, errno):
    """A file without a module is refused with the errno that kmod gives up with."""
    path = tmp_path / "x.ko"
    path.write_bytes(content)
    with pytest.raises(ModuleFileError, match=r"x\.ko: ") as caught:
        read_modinfo(path)
    assert caught.value.errno == errno


def test_a_file_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_modinfo(tmp_path / "none.ko")


def test_only_an_existing_file_with_a_modules_suffix_is_taken_for_one(tree):
    assert is_module_filename(str(tree.add("m")))
    assert not is_module_filename("m.ko")
    assert not is_module_filename(str(tree.root))
    assert not is_module_filename("m\0.ko")


# -- signatures ---------------------------------------------------------------------------------------------


def _appended(
    signature: bytes, kind: int = 2, signer: bytes = b"", key: bytes = b"", size: int | None = None
) -> bytes:
    trailer = struct.pack(">5B3xI", 1, 4, kind, len(signer), len(key), len(signature) if size is None else size)
    return b"module" + signer + key + signature + trailer + MARKER


def _pkcs7() -> tuple[bytes, int]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import pkcs7

    key = ec.generate_private_key(ec.SECP256R1())
    organization = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Nobody")
    name = x509.Name([organization, x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test key")])
    day = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    serial = 0xF1234567
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial, day, day + dt.timedelta(days=9999))
    ).sign(key, hashes.SHA256())
    builder = pkcs7.PKCS7SignatureBuilder().set_data(b"module").add_signer(certificate, key, hashes.SHA512())
    options = [
        pkcs7.PKCS7Options.DetachedSignature,
        pkcs7.PKCS7Options.NoAttributes,
        pkcs7.PKCS7Options.NoCerts,
        pkcs7.PKCS7Options.Binary,
    ]
    return builder.sign(serialization.Encoding.DER, options), serial


def test_a_pkcs7_signature_tells_signer_key_and_hash():
    signature, serial = _pkcs7()
    rows = dict(signature_rows(_appended(signature)))
    assert rows["sig_id"] == "PKCS#7"
    assert rows["signer"] == "Test key"
    assert rows["sig_key"] == serial.to_bytes(4, "big").hex(":").upper()
    assert rows["sig_hashalgo"] == "sha512"
    assert bytes.fromhex(rows["signature"].replace("\n\t\t", "").replace(":", "")) in signature


def test_a_signature_is_printed_twenty_bytes_a_line():
    rows = dict(signature_rows(_appended(bytes(range(25)), kind=1, signer=b"me", key=b"\x01\xab")))
    assert rows["sig_key"] == "01:AB"
    assert rows["signer"] == "me"
    first, second = rows["signature"].split("\n")
    assert (first.count(":"), second) == (20, "\t\t14:15:16:17:18")


def test_every_truncated_or_damaged_signature_is_taken_or_left_without_a_fault():
    signature, _ = _pkcs7()
    for at in range(len(signature)):
        assert signature_rows(_appended(signature[:at])) == []
        damaged = signature[:at] + bytes([signature[at] ^ 0xFF]) + signature[at + 1 :]
        assert len(signature_rows(_appended(damaged))) in (0, 5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MARKER,
        b"x" * 12 + MARKER,
        _appended(b"abc", kind=3),
        _appended(b"abc", size=0),
        _appended(b"", size=1000),
    ],
)
def test_no_rows_for_what_is_no_signature(data):
    assert signature_rows(data) == []
