"""File modes as chmod(1) takes them: ``0644``, ``u+x,go-w``, ``a=rX``."""

from __future__ import annotations

import re

__all__ = ["changed_mode"]

UMASK = 0o022  # of the guest's first process
_OCTAL = re.compile(r"[0-7]{1,4}")
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*|[ugo])(?=[-+=]|$)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 4, "w": 2, "x": 1}
_SPECIAL = {"u": 0o4000, "g": 0o2000, "o": 0}


def changed_mode(text: str, mode: int, *, directory: bool = False) -> int | None:
    """The mode that a text makes of a file's mode; None if the text is no mode.

    :param directory: what X asks for. Without letters for whom, umask 022 counts.
    """
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    for clause in text.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            return None
        for operator, what in _ACTION.findall(match[2]):
            mode = _applied(mode, match[1], operator, what, directory)
    return mode


def _applied(mode: int, whom: str, operator: str, what: str, directory: bool) -> int:
    masked = 0 if whom else UMASK
    users = "ugo" if not whom or "a" in whom else whom
    wanted = affected = 0
    for user in users:
        shift = _SHIFTS[user]
        affected |= 7 << shift | _SPECIAL[user]
        wanted |= _permissions(mode, what, directory) << shift
        if "s" in what:
            wanted |= _SPECIAL[user]
    if "t" in what and (not whom or "a" in whom or "o" in whom):
        wanted |= 0o1000
    wanted &= ~masked
    if operator == "+":
        return mode | wanted
    if operator == "-":
        return mode & ~wanted
    # What a directory has of set-uid and set-gid is kept unless it is named (coreutils: mode_compile).
    cleared = affected & ~0o6000 if directory and "s" not in what else affected
    return mode & ~(cleared & ~masked if not whom else cleared) | wanted


def _permissions(mode: int, what: str, directory: bool) -> int:
    if what in _SHIFTS:
        return mode >> _SHIFTS[what] & 7
    bits = 0
    for letter in what:
        bits |= _BITS.get(letter, 0)
    if "X" in what and (directory or mode & 0o111):
        bits |= 1
    return bits
