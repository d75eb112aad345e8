"""ASN.1 by the rules of the kernel's decoder."""

from __future__ import annotations

import pytest

from kodojo.image.asn1 import (
    After,
    AnyValue,
    Asn1Error,
    Choice,
    Primitive,
    asn1_ber_decoder,
    explicit,
    optional,
    sequence,
    sequence_of,
    set_of,
)


def note(found, element):
    found.append(element.value)


INTEGER = Primitive(0x02, note)
OCTETS = Primitive(0x04, note)


def decode(grammar, data):
    found = []
    asn1_ber_decoder(grammar, found, bytes.fromhex(data))
    return [value.hex() for value in found]


def errno(grammar, data):
    with pytest.raises(Asn1Error) as caught:
        decode(grammar, data)
    return caught.value.errno


@pytest.mark.parametrize(
    ("data", "values"),
    [
        ("3006 020101 020102", ["01", "02"]),
        ("308106 020101 020102", ["01", "02"]),
        ("30820006 020101 020102", ["01", "02"]),
        ("3080 020101 020102 0000", ["01", "02"]),
        ("3006 020101 020102 ffff", ["01", "02"]),
        # The constructed bit may be missing where it is expected.
        ("1006 020101 020102", ["01", "02"]),
    ],
)
def test_accepted_forms(data, values):
    """Lengths of every form, data behind the end, a constructed type marked primitive."""
    assert decode(sequence(INTEGER, INTEGER), data) == values


@pytest.mark.parametrize(
    "data",
    [
        "",
        "30",
        "3006 020101",
        "3007 020101 020102 00",
        "3003 020101",
        "3006 020101 040102",
        "3006 020101 220102",
        "3083000006 020101 020102",
        "1080 020101 020102 0000",
        "3080 020101 020102",
        "3080 020101 020102 0001",
        "3080 020101 020102 0400",
        "3006 1f0101 020102",
        "3006 020101 02810102",
        "3006 020501 020102",
    ],
)
def test_refused_forms(data):
    """Anything else is EBADMSG."""
    assert errno(sequence(INTEGER, INTEGER), data) == 74


def test_more_than_65535_bytes_are_too_long():
    """The decoder counts in 16 bits."""
    with pytest.raises(Asn1Error) as caught:
        asn1_ber_decoder(sequence(INTEGER), [], bytes(65536))
    assert caught.value.errno == 90


def test_repeated_elements_come_at_least_once():
    """A SEQUENCE OF without elements is refused, of both forms of length."""
    grammar = sequence_of(INTEGER)
    assert decode(grammar, "3009 020101 020102 020103") == ["01", "02", "03"]
    assert decode(grammar, "3080 020101 020102 0000") == ["01", "02"]
    assert errno(grammar, "3000") == 74
    assert errno(grammar, "3080 0000") == 74


def test_optional_elements_may_be_absent():
    """One is skipped at the end and in front of another tag."""
    grammar = sequence(optional(INTEGER), optional(explicit(0, INTEGER)), optional(OCTETS))
    assert decode(grammar, "3000") == []
    assert decode(grammar, "3003 040105") == ["05"]
    assert decode(grammar, "300b 020101 a003020107 040105") == ["01", "07", "05"]


def test_a_choice_takes_the_first_that_fits():
    """One alternative must be there, and only one."""
    grammar = sequence(Choice.of(INTEGER, OCTETS), optional(OCTETS))
    assert decode(grammar, "3003 020101") == ["01"]
    assert decode(grammar, "3003 040101") == ["01"]
    assert decode(grammar, "3006 020101 040102") == ["01", "02"]
    assert errno(grammar, "3003 050101") == 74


def test_a_choice_at_the_end_may_be_absent_after_a_match():
    """The kernel's decoder does not notice that nothing is left for it."""
    assert decode(sequence(INTEGER, Choice.of(OCTETS, set_of(OCTETS))), "3003 020101") == ["01"]


def test_an_action_behind_an_optional_element_runs_only_with_it():
    """The value it is given is that of the whole element."""
    grammar = sequence(optional(After(set_of(INTEGER, tag=0xA0), note)), OCTETS)
    assert decode(grammar, "3008 a003 020101 040105") == ["01", "020101", "05"]
    assert decode(grammar, "3003 040105") == ["05"]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("3080 3080 020101 0000 0000", "0201010000"),
        ("3080 3080 2480 0401ff 0000 0000 0000", "24800401ff00000000"),
        ("3080 3080 04820001ff 0000 0000", "04820001ff0000"),
        ("3080 3080 1f8101 01ff 0000 0000", "1f810101ff0000"),
    ],
)
def test_an_element_of_any_tag_and_indefinite_length_includes_its_end(data, value):
    """The end is found through nested elements, long lengths and long tags."""
    assert decode(sequence(AnyValue(note)), data) == [value]


@pytest.mark.parametrize(
    "data",
    [
        "3080 3080 020101",
        "3080 3080 0480 0000 0000",
        "3080 3080 0001 0000",
        "3080 3080 02850101",
        "3080 3080 1f81",
    ],
)
def test_an_indefinite_length_without_a_proper_end_is_refused(data):
    """A missing or malformed end, an indefinite primitive, a length beyond the data."""
    assert errno(sequence(AnyValue(note)), data) == 74
