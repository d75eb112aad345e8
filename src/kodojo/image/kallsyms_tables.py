"""Find and decode the compressed symbol tables that a kernel carries (``CONFIG_KALLSYMS``).

No symbol tells where the tables are, and their order has changed over the years, so they are found by their
structure (scripts/kallsyms.c writes them, kernel/kallsyms.c reads them):

* ``kallsyms_token_table``: 256 strings, the digits at their ASCII codes among them;
* ``kallsyms_token_index``, behind it: where each string begins, which can be computed, so there is no doubt;
* ``kallsyms_markers``, before the token table, perhaps with ``kallsyms_seqs_of_names`` between: where every
  256th name begins;
* ``kallsyms_names``, before the markers: a length and that many tokens for each symbol;
* ``kallsyms_num_syms``, before the names;
* ``kallsyms_offsets`` and ``kallsyms_relative_base`` (or ``kallsyms_addresses``): before
  ``kallsyms_num_syms`` or behind the token index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kodojo.errors import ImageError, MissingInformationError
from kodojo.image.elf import ElfFile, Format

__all__ = ["Tables", "Unplaced", "decode_kallsyms", "symbols_without_base"]

_DIGITS = b"".join(bytes((digit, 0)) for digit in b"0123456789")
_MAX_TOKEN = 512
_ALIGN = 8
_PER_MARKER = 256
_MAX_NAME = 512 + 2
_REACH = 8 << 20  # more than kallsyms_seqs_of_names (3 bytes a symbol) and the markers take
_CANDIDATES = 8
_MAX_TEXT = 32 << 20  # of all names together; real kernels have 5 MB

_PF_X = 1
_BANNER = b"Linux version "

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tables:
    """The decoded tables, in table order (that of the addresses).

    :param names: every name with a NUL behind it, one after the other.
    :param starts: where each name begins in ``names``; one more than there are symbols.
    :param types: the letters of ``nm``.
    """

    names: Bytes
    starts: npt.NDArray[np.uint32]
    types: Bytes
    addresses: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Unplaced:
    """The symbols of a kernel whose ``kallsyms_relative_base`` is not in the file yet.

    :param base_at: where in the file it belongs.
    :param offsets: of the symbols, from the base.
    """

    base_at: int
    offsets: npt.NDArray[np.uint32]
    names: bytes
    starts: npt.NDArray[np.uint32]

    def offset(self, name: bytes) -> int | None:
        """How far a symbol is behind the base; None if it is not listed."""
        index = _index_of(self.names, self.starts, name)
        return None if index is None else int(self.offsets[index])


@dataclass(frozen=True, slots=True)
class _Tokens:
    start: int
    index: npt.NDArray[np.uint16]
    data: Bytes
    end: int  # of the token index


@dataclass(frozen=True, slots=True)
class _Names:
    start: int
    count: int
    count_at: int
    markers: npt.NDArray[np.uint32]


def decode_kallsyms(elf: ElfFile) -> Tables:
    """Find and decode the tables.

    :raises MissingInformationError: the kernel has none.
    :raises ImageError: they are there and damaged.
    """
    tokens, names = _locate(elf.data, elf.name, elf.format)
    positions, lengths = _walk(elf.data, names)
    blob, starts, types = _expand(elf.data, tokens, positions, lengths)
    addresses = _find_addresses(elf, tokens, names, (blob, starts))
    return Tables(blob, starts, types, addresses)


def symbols_without_base(data: memoryview, name: str, layout: Format) -> list[Unplaced]:
    """The symbols of a kernel that is not linked to an address yet: one for each place where their base may belong.

    :raises MissingInformationError: the kernel has no symbol table. ImageError: it is damaged.
    """
    tokens, names = _locate(data, name, layout)
    positions, lengths = _walk(data, names)
    blob, starts, _ = _expand(data, tokens, positions, lengths)
    return [
        Unplaced(base_at, np.frombuffer(data, f"{layout.order}u4", names.count, offsets_at), blob.tobytes(), starts)
        for base_at, offsets_at in _places(data, tokens, names, layout.word)
    ]


def _locate(data: memoryview, name: str, layout: Format) -> tuple[_Tokens, _Names]:
    damaged = 0
    for tokens in _find_tokens(data, layout):
        names = _find_names(data, tokens, layout)
        if names is not None:
            return tokens, names
        damaged += 1
    if damaged:
        raise ImageError(f"{name}: the kernel's symbol table (kallsyms) is damaged", hint="get the file again")
    raise MissingInformationError(
        f"{name}: the kernel has no symbol table",
        hint="use a kernel that was built with CONFIG_KALLSYMS=y, as those of distributions are",
    )


def _find_tokens(data: memoryview, layout: Format) -> list[_Tokens]:
    found = []
    haystack = bytes(data)  # the search in a mapping is many times slower than the copy
    at = haystack.find(_DIGITS)
    while at >= 0:
        tokens = _tokens_around(data, at, layout)
        if tokens is not None:
            found.append(tokens)
        at = haystack.find(_DIGITS, at + 1)
    return found


def _tokens_around(data: memoryview, digits: int, layout: Format) -> _Tokens | None:
    """Check that the digits are numbers 48 to 57 of 256 strings, and that the index of these follows."""
    before = bytes(data[max(0, digits - ord("0") * _MAX_TOKEN) : digits])
    end = len(before)
    if not before.endswith(b"\0"):
        return None
    for _ in range(ord("0")):
        end = before.rfind(b"\0", 0, end - 1) + 1
        if end == 0:
            return None
    start = digits - len(before) + end
    # What is before the table may reach up to it without a NUL between them; the table itself is aligned.
    for candidate in dict.fromkeys((start, -(-start // _ALIGN) * _ALIGN)):
        tokens = _tokens_at(data, candidate, layout)
        if tokens is not None:
            return tokens
    return None


def _tokens_at(data: memoryview, start: int, layout: Format) -> _Tokens | None:
    text = bytes(data[start : start + _PER_MARKER * _MAX_TOKEN])
    index = []
    position = 0
    for _ in range(256):
        index.append(position)
        position = text.find(b"\0", position) + 1
        if position == 0 or position > 0xFFFF:
            return None
    expected = np.array(index, f"{layout.order}u2")
    where = bytes(data[start + position : start + position + 512 + 64]).find(expected.tobytes())
    if where < 0 or where >= 64:
        return None
    return _Tokens(start, expected, np.frombuffer(text[:position], np.uint8), start + position + where + 512)


def _find_names(data: memoryview, tokens: _Tokens, layout: Format) -> _Names | None:
    """Look before the token table for the markers, which ascend from 0 in plausible steps."""
    low = max(0, tokens.start - _REACH)
    low += (tokens.start - low) % 4
    words = np.frombuffer(data[low : tokens.start], f"{layout.order}u4")
    steps = np.diff(words.astype(np.int64))
    plausible = (steps >= 2 * _PER_MARKER) & (steps < _PER_MARKER * _MAX_NAME)
    breaks = np.append(np.flatnonzero(~plausible), len(steps))
    firsts = np.flatnonzero(plausible & (words[:-1] == 0))
    lengths = breaks[np.searchsorted(breaks, firsts)] - firsts + 1
    for which in np.argsort(-lengths, kind="stable")[:_CANDIDATES]:
        first, length = int(firsts[which]), int(lengths[which])
        for count in range(length, max(length - 2, 0), -1):  # what follows may look like one more marker
            found = _names_before(data, low + 4 * first, words[first : first + count], layout)
            if found is not None:
                return found
    return None


def _names_before(
    data: memoryview, markers_at: int, markers: npt.NDArray[np.uint32], layout: Format
) -> _Names | None:
    latest = markers_at - int(markers[-1])
    earliest = max(_ALIGN, latest - _PER_MARKER * _MAX_NAME - 2 * _ALIGN)
    for align in (_ALIGN, 4):
        for start in range(latest - latest % align, earliest, -align):
            found = _names_at(data, start, align, markers, markers_at, layout)
            if found is not None:
                return found
    return None


def _names_at(
    data: memoryview, start: int, align: int, markers: npt.NDArray[np.uint32], markers_at: int, layout: Format
) -> _Names | None:
    count = int.from_bytes(data[start - align : start - align + 4], layout.byteorder)
    if count > _MAX_TEXT or -(-count // _PER_MARKER) != len(markers):
        return None
    position = start + int(markers[-1])
    for _ in range(count - _PER_MARKER * (len(markers) - 1)):
        if position >= markers_at:
            return None
        length = data[position]
        position += 1
        if length & 0x80:
            length = length & 0x7F | data[position] << 7
            position += 1
        if not length:
            return None
        position += length
    if not 0 <= markers_at - position < align:
        return None
    return _Names(start, count, start - align, markers)


def _walk(data: memoryview, names: _Names) -> tuple[Ints, Ints]:
    """Return where the tokens of each symbol are and how many; all stretches between markers go in step."""
    end = names.start + int(names.markers[-1]) + _PER_MARKER * _MAX_NAME
    raw = np.frombuffer(data[names.start : end], np.uint8)
    at = names.markers.astype(np.int64)
    last = len(raw) - 1
    positions = np.empty((_PER_MARKER, len(at)), np.int64)
    lengths = np.empty((_PER_MARKER, len(at)), np.int64)
    for step in range(_PER_MARKER):
        at = np.minimum(at, last - 1)
        length = raw[at].astype(np.int64)
        big = length >> 7
        length = length & 0x7F | big * (raw[at + 1].astype(np.int64) << 7)
        positions[step] = at + 1 + big
        lengths[step] = length
        at = at + 1 + big + length
    if np.any(at[:-1] != names.markers[1:]):
        raise ImageError("the kernel's symbol table (kallsyms) is damaged: names and markers disagree")
    count = names.count
    return positions.T.reshape(-1)[:count] + names.start, lengths.T.reshape(-1)[:count]


def _expand(
    data: memoryview, tokens: _Tokens, positions: Ints, lengths: Ints
) -> tuple[Bytes, npt.NDArray[np.uint32], Bytes]:
    """Replace every token by its string; the first letter is the type, and a NUL takes its place."""
    base = int(positions[0])
    raw = np.frombuffer(data[base : int(positions[-1] + lengths[-1])], np.uint8)
    if int(lengths.sum()) > _MAX_TEXT:
        raise ImageError("the kernel's symbol table (kallsyms) is damaged: too large")
    used = raw[_ranges(positions - base, lengths)]
    token_starts = tokens.index.astype(np.int64)
    token_lengths = np.diff(token_starts, append=len(tokens.data)) - 1
    sizes = token_lengths[used]
    if int(sizes.sum()) > _MAX_TEXT:
        raise ImageError("the kernel's symbol table (kallsyms) is damaged: too large")
    text = tokens.data[_ranges(token_starts[used], sizes)]
    ends = np.cumsum(sizes)[np.cumsum(lengths) - 1]
    starts = np.concatenate((np.zeros(1, np.int64), ends))
    if np.any(np.diff(starts) < 1):
        raise ImageError("the kernel's symbol table (kallsyms) is damaged: a symbol without a type")
    types = text[starts[:-1]].copy()
    text[starts[:-1]] = 0
    return np.append(text[1:], np.uint8(0)), starts.astype(np.uint32), types


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate ``range(start, start + length)`` for all pairs."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def _find_addresses(
    elf: ElfFile, tokens: _Tokens, names: _Names, text: tuple[Bytes, npt.NDArray[np.uint32]]
) -> npt.NDArray[np.uint64]:
    """Try every layout and encoding there has been, and take the one that agrees with the kernel."""
    blob, starts = text
    names_text = blob.tobytes()
    landmarks = {name: _index_of(names_text, starts, name) for name in (b"_text", b"_stext", b"linux_banner")}
    for addresses in _candidates(elf, tokens, names):
        known = {name: int(addresses[index]) for name, index in landmarks.items() if index is not None}
        if np.all(addresses[1:] >= addresses[:-1]) and _plausible(elf, known):
            return addresses
    raise ImageError(f"{elf.name}: the kernel's symbols have no addresses that kodojo understands")


def _places(data: memoryview, tokens: _Tokens, names: _Names, word: int) -> list[tuple[int, int]]:
    """Where ``kallsyms_relative_base`` and ``kallsyms_offsets`` may be."""
    size = 4 * names.count
    behind = -(-tokens.end // word) * word
    base_before = names.count_at - word
    places = (
        (base_before, (base_before - size) // word * word),
        (-(-(behind + size) // word) * word, behind),
    )
    return [
        (base, offsets) for base, offsets in places if offsets >= 0 and max(base + word, offsets + size) <= len(data)
    ]


def _candidates(elf: ElfFile, tokens: _Tokens, names: _Names) -> list[npt.NDArray[np.uint64]]:
    data, count, word, order = elf.data, names.count, elf.format.word, elf.format.order
    mask = np.uint64(elf.format.mask)
    behind = -(-tokens.end // word) * word
    found = []
    for base_at, offsets_at in _places(data, tokens, names, word):
        # An array: a scalar would not wrap around.
        base = np.frombuffer(data[base_at : base_at + word], f"{order}u{word}").astype(np.uint64)
        offsets = np.frombuffer(data[offsets_at : offsets_at + 4 * count], f"{order}u4")
        signed = offsets.view(f"{order}i4").astype(np.int64)
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is an address, the rest counts from the base.
        relative = base - np.uint64(1) - signed.astype(np.uint64)
        found.append(np.where(signed >= 0, signed.astype(np.uint64), relative & mask))
        found.append(base + offsets.astype(np.uint64) & mask)
    size = word * count
    absolute = [at for at in (names.count_at - size, behind) if 0 <= at <= len(data) - size]
    return found + [np.frombuffer(data[at : at + size], f"{order}u{word}").astype(np.uint64) for at in absolute]


def _plausible(elf: ElfFile, known: dict[bytes, int]) -> bool:
    """Compare with facts: the text is in an executable segment, the banner reads as it does in the log."""
    for name, address in known.items():
        if name == b"linux_banner":
            offset = elf.offset_of(address)
            if offset is None or bytes(elf.data[offset : offset + len(_BANNER)]) != _BANNER:
                return False
        elif not any(s.flags & _PF_X and 0 <= address - s.vaddr < s.memsz for s in elf.segments):
            return False
    return True


def _index_of(names: bytes, starts: npt.NDArray[np.uint32], name: bytes) -> int | None:
    at = (b"\0" + names).find(b"\0" + name + b"\0")
    return int(np.searchsorted(starts, at)) if at >= 0 else None
