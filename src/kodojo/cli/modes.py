"""File modes as chmod(1) takes them: ``0644``, ``u+x,go-w``, ``a=rX``."""

from __future__ import annotations

import re

__all__ = ["changed_mode"]

UMASK = 0o022  # of the guest's first process
_OCTAL = re.compile(r"0*[0-7]{1,4}")
_OCTAL_OF_ALL_BITS = 5  # digits: so long a number says something of set-uid and set-gid, too
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*|[ugo])(?=[-+=]|$)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 4, "w": 2, "x": 1}
_SET_IDS, _STICKY = 0o6000, 0o1000
_SPECIAL = {"u": 0o4000, "g": 0o2000, "o": 0}


def changed_mode(text: str, mode: int, *, directory: bool = False) -> int | None:
    """The mode that a text makes of a file's mode; None if the text is no mode.

    Without letters for whom, umask 022 counts. A directory keeps its set-uid and set-gid unless they are named.
    Source: coreutils, ``lib/modechange.c: mode_adjust``.
    """
    if _OCTAL.fullmatch(text):
        value = int(text, 8)
        kept = mode & _SET_IDS if directory and len(text) < _OCTAL_OF_ALL_BITS else 0
        return value | kept
    for clause in text.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            return None
        for operator, what in _ACTION.findall(match[2]):
            mode = _applied(mode, match[1], operator, what, directory)
    return mode


def _applied(mode: int, whom: str, operator: str, what: str, directory: bool) -> int:
    users = "ugo" if not whom or "a" in whom else whom
    affected = wanted = 0
    for user in users:
        affected |= 7 << _SHIFTS[user] | _SPECIAL[user]
        wanted |= _permissions(mode, what, directory) << _SHIFTS[user]
        wanted |= _SPECIAL[user] if "s" in what else 0
    if "o" in users:
        affected |= _STICKY
        wanted |= _STICKY if "t" in what else 0
    if not whom:
        wanted &= ~UMASK
    if operator == "+":
        return mode | wanted
    if operator == "-":
        return mode & ~wanted
    if directory and "s" not in what:
        affected &= ~_SET_IDS
    return mode & ~affected | wanted


def _permissions(mode: int, what: str, directory: bool) -> int:
    if what in _SHIFTS:
        return mode >> _SHIFTS[what] & 7
    bits = 0
    for letter in what:
        bits |= _BITS.get(letter, 0)
    if "X" in what and (directory or mode & 0o111):
        bits |= 1
    return bits
