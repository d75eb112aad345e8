from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodojo.loader.dry_parameters import kstrto
from kodojo.loader.parameters import kstrtobool, next_arg, parameq, skip_spaces


def split(args: bytes) -> list[tuple[bytes, bytes | None]]:
    found = []
    position = skip_spaces(args)
    while position < len(args):
        name, value, position = next_arg(args, position)
        found.append((name, value))
    return found


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (b"", []),
        (b" \t\n\v\f\r\xa0 ", []),
        (b"a", [(b"a", None)]),
        (b"  a=1  b=2 ", [(b"a", b"1"), (b"b", b"2")]),
        (b"a=", [(b"a", b"")]),
        (b"=a", [(b"=a", None)]),
        (b"==a", [(b"=", b"a")]),
        (b"a=b=c", [(b"a", b"b=c")]),
        (b'a="b c" d', [(b"a", b"b c"), (b"d", None)]),
        (b'"a=b c" d', [(b"a", b"b c"), (b"d", None)]),
        (b'a="b c', [(b"a", b"b c")]),
        (b'a=b" "c', [(b"a", b'b" "c')]),
        (b'a="', [(b"a", b"")]),
        (b'a=""', [(b"a", b"")]),
        (b'"a"', [(b"a", None)]),
        (b'"a', [(b"a", None)]),
        (b'"', [(b"", None)]),
        (b'a="x\\"y"', [(b"a", b'x\\"y')]),
        (b'a=1" b', [(b"a", b'1" b')]),
        (b"a=1\xa0b", [(b"a", b"1"), (b"b", None)]),
        (b"--=x", [(b"--", b"x")]),
    ],
)
def test_next_arg(args, expected):
    """Arguments are split at white space outside quotes, at the first '=', and lose the outer quotes."""
    assert split(args) == expected


def kernel_next_arg(args: bytearray, start: int) -> tuple[bytes, bytes | None, int]:
    """The same on a buffer with terminators, as C does it: an independent, literal model."""
    text = args + b"\0\0"
    space = b"\t\n\v\f\r \xa0"
    quoted = in_quote = False
    if text[start] == ord('"'):
        start, quoted, in_quote = start + 1, True, True
    at, equals = start, 0
    while text[at]:
        if text[at] in space and not in_quote:
            break
        if not equals and text[at] == ord("=") and at > start:
            equals = at
        in_quote ^= text[at] == ord('"')
        at += 1
    value = None
    last_is_quote = at > start and text[at - 1] == ord('"')
    if equals:
        text[equals] = 0
        value = equals + 1
        if text[value] == ord('"'):
            value += 1
            if text[at - 1] == ord('"'):
                text[at - 1] = 0
    if quoted and last_is_quote and text[at - 1]:
        text[at - 1] = 0
    end = at
    if text[at]:
        text[at] = 0
        end += 1
    while text[end] and text[end] in space:
        end += 1

    def string(begin: int) -> bytes:
        return bytes(text[begin : text.index(0, begin)])

    return string(start), None if value is None else string(value), end


@given(st.text(alphabet='ab="" \t-\\,', max_size=24))
def test_next_arg_agrees_with_a_literal_model(text):
    """On any string the split is what the C code leaves in its buffer."""
    args = text.encode()
    position = skip_spaces(args)
    while position < len(args):
        expected = kernel_next_arg(bytearray(args), position)
        assert next_arg(args, position) == expected
        position = expected[2]


def test_parameq_folds_dashes():
    """'-' and '_' are the same in names, on both sides; nothing else is."""
    assert parameq(b"a-b_c", b"a_b-c")
    assert not parameq(b"ab", b"a_b")
    assert not parameq(b"A", b"a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"y", True), (b"Yes", True), (b"t", True), (b"1", True), (b"1x", True), (b"on", True), (b"ON", True),
        (b"n", False), (b"No", False), (b"f", False), (b"0", False), (b"0x1", False), (b"of", False),
        (b"", None), (b"o", None), (b"ox", None), (b"2", None), (b" 1", None), (None, None),
    ],
)  # fmt: skip
def test_kstrtobool(text, expected):
    """The first character decides, after an 'o' the second."""
    assert kstrtobool(text) is expected


INT, UINT, BYTE, U64 = (32, True), (32, False), (8, False), (64, False)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (b"12", INT, (0, 12)),
        (b"-12", INT, (0, -12)),
        (b"+12", INT, (0, 12)),
        (b"-+12", INT, (22, 0)),
        (b"0x1F\n", INT, (0, 31)),
        (b"017", INT, (0, 15)),
        (b"08", INT, (22, 0)),
        (b"0x", INT, (22, 0)),
        (b"0xg", INT, (22, 0)),
        (b"0", INT, (0, 0)),
        (b"", INT, (22, 0)),
        (b"-", INT, (22, 0)),
        (b" 1", INT, (22, 0)),
        (b"1 ", INT, (22, 0)),
        (b"1\n\n", INT, (22, 0)),
        (b"2147483647", INT, (0, 2147483647)),
        (b"2147483648", INT, (34, 0)),
        (b"-2147483648", INT, (0, -2147483648)),
        (b"-1", UINT, (22, 0)),
        (b"255", BYTE, (0, 255)),
        (b"256", BYTE, (34, 0)),
        (b"18446744073709551615", U64, (0, (1 << 64) - 1)),
        (b"18446744073709551616", U64, (34, 0)),
        (b"99999999999999999999999x", INT, (34, 0)),
        (b"0" * 100000 + b"7", INT, (0, 7)),
        (b"9" * 100000, INT, (34, 0)),
    ],
)
def test_kstrto(text, kind, expected):
    """Numbers: base by prefix, one newline at the end; beyond 64 bits is ERANGE whatever follows."""
    bits, signed = kind
    assert kstrto(text, bits, signed=signed) == expected
