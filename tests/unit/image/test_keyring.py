"""The certificates that are built into a kernel, and how the kernel reads a certificate."""

from __future__ import annotations

import datetime as dt
import struct
from itertools import accumulate

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from kodojo.errors import ImageError
from kodojo.image import keyring
from kodojo.image.asn1 import Asn1Error, Element
from kodojo.image.elf import EHDR, PHDR, ElfFile
from kodojo.image.kallsyms import Located
from kodojo.image.oids import OidRegistry, encode, sprint_oid
from kodojo.image.x509 import Dialect, name_text, x509_cert_parse, x509_decode_time

BASE = 0xFFFFFFFF82000000


class Symbols:
    """Names and addresses, as ``Kallsyms`` has them; a symbol ends where the next begins."""

    def __init__(self, addresses):
        self.addresses = addresses

    def get(self, name):
        return self.addresses.get(name)

    def address(self, name):
        return self.addresses[name]

    def symbol_at(self, address):
        name = next(name for name, value in self.addresses.items() if value == address)
        end = min((other for other in self.addresses.values() if other > address), default=address)
        return Located(name, address, end - address)


def kernel(**contents):
    """A kernel with these contents in one segment, and its symbols; ``name__at`` refers to an address."""
    data, addresses = bytearray(), {}
    for name, content in contents.items():
        addresses[name] = BASE + len(data)
        data += content(addresses) if callable(content) else content
        data += bytes(-len(data) % 8)
    header = bytearray(EHDR.itemsize)
    struct.pack_into("<16sHHIQQQIHHH", header, 0, b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1)
    offset = EHDR.itemsize + PHDR.itemsize
    program = struct.pack("<IIQQQQQQ", 1, 4, offset, BASE, 0, len(data), len(data), 8)
    return ElfFile(bytes(header) + program + bytes(data), "vmlinux"), Symbols(addresses)


def certificate(key, *attributes, skid=True, issuer=None, signer=None):
    """A certificate made by somebody else's code."""
    subject = x509.Name([x509.NameAttribute(*attribute) for attribute in attributes])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(0x1234567890)
        .not_valid_before(dt.datetime(2020, 2, 29, 12, 30, 5, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2060, 1, 1, tzinfo=dt.UTC))
    )
    if skid:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(b"\xab" * 20), critical=False)
    return builder.sign(signer or key, hashes.SHA256())


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def ec_key():
    return ec.generate_private_key(ec.SECP384R1())


def test_the_certificates_of_a_kernel(rsa_key, ec_key):
    """Concatenated certificates are read with subject, issuer, serial, key identifier and key numbers."""
    first = certificate(rsa_key, (NameOID.COMMON_NAME, "Kernel key"))
    second = certificate(ec_key, (NameOID.COMMON_NAME, "Shop key"), skid=False)
    encoded = first.public_bytes(Encoding.DER) + second.public_bytes(Encoding.DER)
    elf, symbols = kernel(
        system_certificate_list=first.public_bytes(Encoding.DER) + second.public_bytes(Encoding.DER),
        system_certificate_list_size=struct.pack("<Q", len(encoded)),
    )
    rsa_certificate, ec_certificate = keyring.trusted_certificates(elf, symbols)
    assert rsa_certificate.der == first.public_bytes(Encoding.DER)
    assert rsa_certificate.numbers == (rsa_key.public_key().public_numbers().n, 65537)
    assert rsa_certificate.description == f"Kernel key: {'ab' * 20}"
    assert (rsa_certificate.algorithm, rsa_certificate.pkey_algo) == ("rsa", "rsa")
    assert rsa_certificate.serial == bytes.fromhex("1234567890")
    assert rsa_certificate.raw_issuer == rsa_certificate.raw_subject
    assert name_text(rsa_certificate.raw_issuer) == "Kernel key"
    point = ec_key.public_key().public_numbers()
    assert ec_certificate.numbers == (point.x, point.y)
    assert (ec_certificate.algorithm, ec_certificate.pkey_algo) == ("ecdsa", "ecdsa-nist-p384")
    assert ec_certificate.skid is None
    assert ec_certificate.description == "Shop key: 1234567890"


def test_a_certificate_that_the_kernel_cannot_use_is_passed_over(rsa_key):
    """An Ed25519-like key algorithm costs only that certificate."""
    good = certificate(rsa_key, (NameOID.COMMON_NAME, "Good")).public_bytes(Encoding.DER)
    unknown = good.replace(encode("1.2.840.113549.1.1.1"), encode("1.2.840.113549.1.1.9"))
    assert len(keyring.x509_load_certificate_list(unknown + good)) == 1


def test_a_damaged_list_is_an_image_error(rsa_key):
    """A list that ends within a certificate, or holds something else, is damaged."""
    good = certificate(rsa_key, (NameOID.COMMON_NAME, "Good")).public_bytes(Encoding.DER)
    for data in (good[:-1], good + b"\x30\x82", good + bytes(8), b"\x30\x80\x00\x00"):
        with pytest.raises(ImageError):
            keyring.x509_load_certificate_list(data)
    elf, symbols = kernel(system_certificate_list=good, system_certificate_list_size=struct.pack("<Q", 1 << 40))
    with pytest.raises(ImageError):
        keyring.trusted_certificates(elf, symbols)


def test_a_kernel_without_a_keyring_trusts_nobody():
    """No symbols, no certificates, no hashes."""
    elf, symbols = kernel(something=b"else")
    assert keyring.trusted_certificates(elf, symbols) == ()
    assert keyring.revocation_certificates(elf, symbols) == ()
    assert keyring.blacklist_hashes(elf, symbols) == ()


def test_the_blacklisted_hashes():
    """The texts behind the pointers, without those that the kernel's keyring would refuse."""
    hashes_built_in = {"a": "bin:" + "0f" * 32, "b": "tbs:" + "AB" * 32, "c": "tbs:" + "ab" * 32, "d": "x:00"}

    def pointers(addresses):
        return struct.pack("<5Q", *(addresses[name] for name in "abcd"), 0)

    elf, symbols = kernel(
        **{name: text.encode() + b"\0" for name, text in hashes_built_in.items()}, blacklist_hashes=pointers
    )
    assert keyring.blacklist_hashes(elf, symbols) == (hashes_built_in["a"], hashes_built_in["c"])


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ([(NameOID.COMMON_NAME, "Module key"), (NameOID.ORGANIZATION_NAME, "Debian")], "Debian: Module key"),
        ([(NameOID.COMMON_NAME, "Debian key"), (NameOID.ORGANIZATION_NAME, "Debian")], "Debian key"),
        ([(NameOID.COMMON_NAME, "Example CA"), (NameOID.ORGANIZATION_NAME, "Example Ltd")], "Example CA"),
        ([(NameOID.ORGANIZATION_NAME, "Debian"), (NameOID.EMAIL_ADDRESS, "a@b.c")], "Debian"),
        ([(NameOID.EMAIL_ADDRESS, "a@b.c")], "a@b.c"),
        ([(NameOID.COUNTRY_NAME, "CH")], ""),
    ],
)
def test_the_kernel_makes_one_name_of_many_parts(rsa_key, attributes, name):
    """Common name, organisation or mail address, and both of the first two if they differ."""
    encoded = certificate(rsa_key, *attributes).public_bytes(Encoding.DER)
    assert x509_cert_parse(encoded).subject == name


def test_validity_is_seconds_since_1970(rsa_key):
    """A date before 2050 and one after, which are encoded in different ways."""
    parsed = x509_cert_parse(certificate(rsa_key, (NameOID.COMMON_NAME, "x")).public_bytes(Encoding.DER))
    assert parsed.valid_from == dt.datetime(2020, 2, 29, 12, 30, 5, tzinfo=dt.UTC).timestamp()
    assert parsed.valid_to == dt.datetime(2060, 1, 1, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (0x17, b"700230000000Z"),
        (0x17, b"210229000000Z"),
        (0x17, b"691231000000Z"),
        (0x17, b"200101000000+"),
        (0x17, b"2001010000Z"),
        (0x17, b"200101250000Z"),
        (0x17, b"2001 1000000Z"),
        (0x18, b"20200101000000Z"),
        (0x04, b"200101000000Z"),
    ],
)
def test_a_malformed_time_is_refused(tag, text):
    """Dates that do not exist, other formats, years before 1970, the long form where the short one is due."""
    with pytest.raises(Asn1Error) as caught:
        x509_decode_time(Element(text, 0, len(text), 2, tag))
    assert caught.value.errno == 74


def test_any_damage_to_a_certificate_is_an_errno(ec_key):
    """Whatever byte is changed: a certificate, or the errno of the kernel's parser."""
    good = certificate(ec_key, (NameOID.COMMON_NAME, "x")).public_bytes(Encoding.DER)
    errnos = set()
    for position in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(good)
            damaged[position] ^= flip
            try:
                x509_cert_parse(bytes(damaged))
            except Asn1Error as error:
                errnos.add(error.errno)
    assert errnos == {22, 65, 74}


def test_the_registry_of_a_kernel_gives_the_numbers():
    """Identifiers have the kernel's own numbers; one that is not registered has the number behind them."""
    known = [encode(text) for text in ("1.2.840.10040.4.1", "2.16.840.1.101.3.4.2.1", "1.2.840.113549.1.7.2")]
    index = [0]
    for data in known:
        index.append(index[-1] + len(data))
    elf, symbols = kernel(oid_index=struct.pack("<4H", *index) + bytes(16), oid_data=b"".join(known), next_symbol=b"")
    registry = OidRegistry.from_kernel(elf, symbols)
    assert len(registry) == 3
    assert [registry.look_up(data) for data in known] == [0, 1, 2]
    assert [registry.name(number) for number in range(4)] == ["", "sha256", "signed_data", ""]
    assert registry.look_up(encode("1.2.3")) == registry.unknown == 3
    assert "sha256" in registry
    assert "md4" not in registry


@pytest.mark.parametrize("behind", [False, True])
def test_a_registry_without_symbols_is_recognised(behind):
    """Identifiers have the same numbers where only the form of the arrays tells where they are."""
    known = [encode(text) for text in ("1.2.840.10040.4.1", "1.2.840.10045.2.1", "1.2.840.10045.3.1.1", "2.5.4.3")]
    ends = list(accumulate(map(len, known), initial=0))
    arrays = [struct.pack("<5H", *ends), b"".join(known) + b"\0"]  # aligned, as a compiler does
    data = bytes(range(255, 155, -1)) + (bytes(30) + b"\xff\xff").join(arrays[::-1] if behind else arrays)
    registry = OidRegistry.recognised(data)
    assert [registry.look_up(one) for one in known] == [0, 1, 2, 3]
    assert registry.look_up(encode("1.2.3")) == registry.unknown == 4
    assert OidRegistry.recognised(data.replace(known[3], b"\xff\xff\xff")) is None
    assert OidRegistry.recognised(data.replace(arrays[0], bytes(10))) is None


def test_a_certificate_of_an_unregistered_algorithm_is_unsupported(rsa_key):
    """A kernel whose registry lacks the algorithm answers ENOPKG."""
    encoded = certificate(rsa_key, (NameOID.COMMON_NAME, "x")).public_bytes(Encoding.DER)
    with pytest.raises(Asn1Error) as caught:
        x509_cert_parse(encoded, Dialect(OidRegistry([encode("2.5.4.3")])))
    assert caught.value.errno == 65


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("2a864886f70d010701", "1.2.840.113549.1.7.1"),
        ("", "(bad)"),
        ("2a86", "1.2(bad)"),
        ("6f", "2.31"),
        ("2a" + "ffffffffffffffffff7f" * 3, "1.2.18446744073709551615.18446744073709551615.184"),
    ],
)
def test_identifiers_are_printed_as_the_kernel_does(data, text):
    """Into 49 characters, with a mark where the data ends early."""
    assert sprint_oid(bytes.fromhex(data)) == text


@pytest.mark.kernel
def test_distribution_kernels_trust_their_build_key(image):
    """The first certificate is that of the build, self-signed and with a key identifier."""
    certificates = keyring.trusted_certificates(image.elf, image.kallsyms)
    assert certificates
    assert "kernel key" in certificates[0].subject
    assert certificates[0].raw_issuer == certificates[0].raw_subject
    assert len(certificates[0].skid) == 20


@pytest.mark.kernel
@pytest.mark.x86_64("elsewhere kallsyms lists no data")
def test_the_registry_agrees_with_the_types_of_the_kernel(image):
    """The numbers read from the arrays are those of ``enum OID`` in BTF, with symbols and without."""
    registry = OidRegistry.from_kernel(image.elf, image.kallsyms)
    numbers = image.btf.enumerators("OID")
    assert numbers["OID__NR"] == registry.unknown
    assert vars(OidRegistry.recognised(bytes(image.elf.segment_data(image.elf.segments[0])))) == vars(registry)
    named = {registry.name(number): number for number in range(registry.unknown) if registry.name(number)}
    assert named == {name: numbers[f"OID_{name}"] for name in named}
    assert len(named) > 40
