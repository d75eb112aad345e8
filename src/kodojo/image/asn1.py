"""ASN.1 as the kernel reads it: BER by a grammar, with an action for what matters.

The kernel compiles its grammars (``crypto/asymmetric_keys/*.asn1``) into a small program and runs it over
the data (``lib/asn1_decoder.c``). What it accepts differs from a textbook decoder: lengths have at most two
bytes, nothing behind the outermost element is looked at, an element may be marked primitive where a
constructed one is meant. The grammar here is a tree of nodes, and :func:`asn1_ber_decoder` walks it with
the same two flags as the kernel's, because they show: whether "something has matched" is what lets a choice
at the very end of its container be absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EBADMSG",
    "EMSGSIZE",
    "After",
    "AnyValue",
    "Asn1Error",
    "Choice",
    "Constructed",
    "Element",
    "Primitive",
    "asn1_ber_decoder",
    "explicit",
    "optional",
    "sequence",
    "sequence_of",
    "set_of",
]

EBADMSG = 74
EMSGSIZE = 90

_CONSTRUCTED = 0x20
_LONG_TAG = 0x1F
_INDEFINITE = 0x80
_SEQUENCE = 0x30
_SET = 0x31


class Asn1Error(Exception):
    """The data is refused with this errno, by the decoder (always EBADMSG or EMSGSIZE) or by an action."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Element(NamedTuple):
    """What an action is given: where its element is in the data.

    :param start: of the value; the header is before it.
    :param header: length of the header in bytes.
    :param tag: the identifier byte; 0 for an action on the end of a constructed element.
    """

    data: bytes
    start: int
    length: int
    header: int
    tag: int

    @property
    def value(self) -> bytes:
        return self.data[self.start : self.start + self.length]

    @property
    def whole(self) -> bytes:
        """The element with its header."""
        return self.data[self.start - self.header : self.start + self.length]


if TYPE_CHECKING:
    Action = Callable[[Any, Element], None]


class Primitive(NamedTuple):
    """One element of this tag, not looked into."""

    tag: int
    action: Action | None = None
    skippable: bool = False
    conditional: bool = False


class AnyValue(NamedTuple):
    """One element of any tag."""

    action: Action | None = None
    skippable: bool = False
    conditional: bool = False


class Constructed(NamedTuple):
    """An element that contains others.

    :param repeated: the members come once or more often (``SEQUENCE OF``), not exactly once.
    :param action: run at the end.
    :param shared: the type is used more than once in the grammar. The kernel then reaches it by a jump,
        and coming back from a jump counts as a match, as it does for what may be skipped.
    """

    tag: int
    members: tuple[Node, ...]
    repeated: bool = False
    action: Action | None = None
    shared: bool = False
    skippable: bool = False
    conditional: bool = False


class Choice(NamedTuple):
    """One of several; the action runs even if none is there."""

    alternatives: tuple[Node, ...]
    action: Action | None = None
    skippable: bool = False
    conditional: bool = False

    @classmethod
    def of(cls, *alternatives: Node, action: Action | None = None) -> Choice:
        """Make a choice; every alternative but the first is tried only if none before it matched."""
        return cls(tuple(_skippable(node, index > 0) for index, node in enumerate(alternatives)), action)


class After(NamedTuple):
    """A node, and an action that runs behind it, if it was there."""

    node: Node
    action: Action

    @property
    def skippable(self) -> bool:
        return self.node.skippable


if TYPE_CHECKING:
    Node = Primitive | AnyValue | Constructed | Choice | After


def _skippable(node: Node, conditional: bool) -> Node:
    if isinstance(node, After):
        return node._replace(node=_skippable(node.node, conditional))
    return node._replace(skippable=True, conditional=conditional)


def optional(node: Node) -> Node:
    """``OPTIONAL`` or ``DEFAULT``."""
    return _skippable(node, conditional=False)


def sequence(*members: Node, action: Action | None = None, shared: bool = False, tag: int = _SEQUENCE) -> Node:
    """``SEQUENCE { ... }``; ``tag`` for an implicit one."""
    return Constructed(tag, members, action=action, shared=shared)


def sequence_of(member: Node, *, shared: bool = False, tag: int = _SEQUENCE) -> Node:
    """``SEQUENCE OF``."""
    return Constructed(tag, (member,), repeated=True, shared=shared)


def set_of(member: Node, *, tag: int = _SET) -> Node:
    """``SET OF``."""
    return Constructed(tag, (member,), repeated=True)


def explicit(number: int, member: Node) -> Node:
    """``[number] EXPLICIT``."""
    return Constructed(0xA0 | number, (member,))


def asn1_ber_decoder(grammar: Node, context: object, data: bytes) -> None:
    """Decode the data by the grammar, running the actions with the context.

    Source: ``lib/asn1_decoder.c: asn1_ber_decoder``.

    :raises Asn1Error: with the errno that the kernel's decoder, or an action, returns.
    """
    if len(data) > 0xFFFF:
        raise Asn1Error(EMSGSIZE)
    _Decoder(data, context).decode(grammar)


class _Decoder:
    """The registers of the kernel's decoder."""

    __slots__ = (
        "context",
        "data",
        "end",
        "header",
        "indefinite",
        "just_matched",
        "length",
        "matched",
        "offset",
        "start",
        "tag",
    )

    def __init__(self, data: bytes, context: object) -> None:
        self.data = data
        self.context = context
        self.offset = 0
        self.end = len(data)
        self.start = self.length = self.header = self.tag = 0
        self.matched = self.just_matched = self.indefinite = False

    def decode(self, node: Node) -> None:
        if isinstance(node, Constructed):
            if self._match(node, node.tag):
                self._decode_members(node)
                self._act(node.action, 0)
                if node.shared or node.skippable:
                    self.matched = self.just_matched = True
        elif isinstance(node, After):
            self.decode(node.node)
            if self.just_matched or not node.skippable:
                self._act(node.action, self.tag)
        elif isinstance(node, Choice):
            for alternative in node.alternatives:
                self.decode(alternative)
            if not (node.skippable or self.matched):
                raise Asn1Error(EBADMSG)
            self._act(node.action, self.tag)
        elif self._match(node, node.tag if isinstance(node, Primitive) else None):
            if self.indefinite:
                self.length = asn1_find_indefinite_length(self.data, self.offset, self.end)
            self._act(node.action, self.tag)
            self.offset += self.length

    def _act(self, action: Action | None, tag: int) -> None:
        if action is not None:
            action(self.context, Element(self.data, self.start, self.length, self.header, tag))

    def _match(self, node: Primitive | AnyValue | Constructed, tag: int | None) -> bool:
        """Read the header of the next element; False if the node is to be skipped."""
        if (node.conditional and self.matched) or (node.skippable and self.offset == self.end):
            self.just_matched = False
            return False
        self.matched = self.just_matched = False
        if self.end - self.offset < 2:
            raise Asn1Error(EBADMSG)
        found = self.data[self.offset]
        if found & _LONG_TAG == _LONG_TAG:
            raise Asn1Error(EBADMSG)
        # A primitive tag passes for a constructed one, though not the other way round.
        if tag is not None and (tag ^ found) & ~(tag & _CONSTRUCTED):
            if node.skippable:
                return False
            raise Asn1Error(EBADMSG)
        self.matched = True
        self.tag = found
        self._read_length(self.offset + 1, found)
        return True

    def _read_length(self, offset: int, tag: int) -> None:
        data, end = self.data, self.end
        length = data[offset]
        offset += 1
        self.header = 2
        self.indefinite = length == _INDEFINITE
        if self.indefinite:
            if not tag & _CONSTRUCTED or end - offset < 2:
                raise Asn1Error(EBADMSG)
        elif length > _INDEFINITE:
            count = length - _INDEFINITE
            if count > 2 or count > end - offset:
                raise Asn1Error(EBADMSG)
            length = int.from_bytes(data[offset : offset + count], "big")
            offset += count
            self.header += count
        if not self.indefinite and length > end - offset:
            raise Asn1Error(EBADMSG)
        self.offset = self.start = offset
        self.length = length

    def _decode_members(self, node: Constructed) -> None:
        start, header, indefinite, outer_end = self.start, self.header, self.indefinite, self.end
        if not indefinite:
            self.end = start + self.length
        while True:
            for member in node.members:
                self.decode(member)
            at_end = self._at_end_of_contents() if indefinite else self.offset == self.end
            if at_end:
                break
            if not node.repeated:
                raise Asn1Error(EBADMSG)
        self.length = self.offset - start
        if indefinite:
            self.offset += 2
        self.end = outer_end
        self.start, self.header = start, header

    def _at_end_of_contents(self) -> bool:
        if self.end - self.offset < 2:
            raise Asn1Error(EBADMSG)
        if self.data[self.offset]:
            return False
        if self.data[self.offset + 1]:
            raise Asn1Error(EBADMSG)
        return True


def asn1_find_indefinite_length(data: bytes, offset: int, end: int) -> int:
    """Return the length of a value of indefinite length, its end-of-contents included.

    Source: ``lib/asn1_decoder.c: asn1_find_indefinite_length``.
    """
    start = offset
    level = 1
    while level:
        if end - offset < 2:
            raise Asn1Error(EBADMSG)
        tag = data[offset]
        offset += 1
        if not tag:
            if data[offset]:
                raise Asn1Error(EBADMSG)
            offset += 1
            level -= 1
            continue
        if tag & _LONG_TAG == _LONG_TAG:
            more = True
            while more:
                if end - offset < 2:
                    raise Asn1Error(EBADMSG)
                more = bool(data[offset] & 0x80)
                offset += 1
        length = data[offset]
        offset += 1
        if length == _INDEFINITE:
            if not tag & _CONSTRUCTED:
                raise Asn1Error(EBADMSG)
            level += 1
            continue
        if length > _INDEFINITE:
            count = length - _INDEFINITE
            if count > 7 or count > end - offset:
                raise Asn1Error(EBADMSG)
            length = int.from_bytes(data[offset : offset + count], "big")
            offset += count
        if length > end - offset:
            raise Asn1Error(EBADMSG)
        offset += length
    return offset - start
