"""How kmod compares names: dashes are underscores, aliases are patterns."""

from __future__ import annotations

import re
import string
from functools import lru_cache

__all__ = ["LONGEST_NAME", "alias_normalize", "fnmatch"]

LONGEST_NAME = 4095  # PATH_MAX - 1: what kmod's buffers hold

_WILD = re.compile(r"[*?[]")
_CLASSES = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, range(32))) + "\x7f",
    "digit": string.digits,
    "graph": string.ascii_letters + string.digits + string.punctuation,
    "lower": string.ascii_lowercase,
    "print": string.ascii_letters + string.digits + string.punctuation + " ",
    "punct": string.punctuation,
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}


def alias_normalize(alias: str) -> str | None:
    """Fold the dashes outside of brackets (``shared/util.c: alias_normalize, underscores``).

    :return: None for what kmod refuses: brackets that do not match, a name beyond PATH_MAX.
    """
    if len(alias) > LONGEST_NAME:
        return None
    if "[" not in alias:
        return None if "]" in alias else alias.replace("-", "_")
    parts = []
    rest = alias
    while rest:
        before, bracket, rest = rest.partition("[")
        if "]" in before:
            return None
        parts.append(before.replace("-", "_"))
        if bracket:
            inside, closing, rest = rest.partition("]")
            if not closing:
                return None
            parts.append(f"[{inside}]")
    return "".join(parts)


# One element of a pattern: None is *, else the set of characters that match (empty: any), and whether it is negated.
_Element = tuple[str, bool] | None


def fnmatch(pattern: str, name: str) -> bool:
    """``fnmatch(3)`` with no flags, in the C locale. The product of the lengths bounds its time."""
    if not _WILD.search(pattern) and "\\" not in pattern:
        return pattern == name
    elements = _elements(pattern)
    if elements is None:
        return False
    at = position = 0
    star = resume = -1
    while position < len(name):
        element = elements[at] if at < len(elements) else ("", True)
        if element is None:
            star, resume = at, position
            at += 1
        elif _matches(element, name[position]):
            at += 1
            position += 1
        elif star >= 0:  # give the last * one character more
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(element is None for element in elements[at:])


def _matches(element: tuple[str, bool], character: str) -> bool:
    characters, negated = element
    if not characters:
        return not negated  # ("", False) is ?; ("", True) the end of the pattern
    return (character in characters) != negated


@lru_cache(maxsize=4096)
def _elements(pattern: str) -> tuple[_Element, ...] | None:
    """Take a pattern apart; None if nothing can match it."""
    elements: list[_Element] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if not elements or elements[-1] is not None:
                elements.append(None)
        elif character == "?":
            elements.append(("", False))
        elif character == "\\":
            if at == len(pattern):
                return None
            elements.append((pattern[at], False))
            at += 1
        elif character == "[" and (found := _bracket(pattern, at)) is not None:
            element, at = found
            elements.append(element)
        else:
            elements.append((character, False))
    return tuple(elements)


def _bracket(pattern: str, at: int) -> tuple[tuple[str, bool], int] | None:
    """The element of the bracket expression behind ``[``, and where it ends; None if it is not closed."""
    negated = pattern[at : at + 1] in ("!", "^")
    at += negated
    characters: list[str] = []
    first = at
    while at < len(pattern):
        if pattern[at] == "]" and at > first:
            # A range without a character in it matches nothing: as the complement of everything would.
            return ("".join(characters) or "\0", negated), at + 1
        if pattern.startswith("[:", at) and (end := pattern.find(":]", at + 2)) >= 0:
            characters.append(_CLASSES.get(pattern[at + 2 : end], ""))
            at = end + 2
            continue
        low, at = _bracket_character(pattern, at)
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] not in ("", "]"):
            high, at = _bracket_character(pattern, at + 1)
            # In the C locale, and no huge set for a huge range.
            characters.append("".join(map(chr, range(ord(low), min(ord(high), 0x7F) + 1))))
        else:
            characters.append(low)
    return None


def _bracket_character(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] == "\\" and at + 1 < len(pattern):
        at += 1
    return pattern[at], at + 1
