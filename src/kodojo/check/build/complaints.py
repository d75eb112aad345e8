"""What a build complains about: the lines of its log that say why there is no module."""

from __future__ import annotations

import re

__all__ = ["complaints", "last_words", "missing_on_this_machine"]

_MOST = 10
_LONGEST = 300

_COMPILER = re.compile(r"^(?!make)\S+:\d+:(?:\d+:)? (?:fatal )?error: .+")

# In the order of how much they say; those of the first kind that occur are the complaints.
_KINDS = (
    _COMPILER,
    re.compile(r"^(?:ERROR: modpost: |ERROR: )\S.*"),  # modpost
    re.compile(r"^(?:(?:\S*[-/])?ld(?:\.\w+)?: |\S+: undefined reference).+"),  # the linker
    re.compile(r"^(?:configure: error: |error: |(?:! ?)?Error[:!] ).+"),  # scripts
    re.compile(r"^\S*Makefile\S*:\d+: \*\*\* .+"),  # $(error ...)
    re.compile(r"^\S.*: (?:command )?not found$"),
    re.compile(r"^make(?:\[\d+\])?: \*\*\* .+"),
)
_PROGRAM = re.compile(r"error while loading shared libraries: (?P<library>[\w.+-]+):", re.MULTILINE)
_IN_HEADER = re.compile(r"include/\S+:\d+:(?:\d+:)? (?P<text>(?:fatal )?error: .+)")
_EXPANSION = re.compile(r"(?P<place>(?P<path>[^\s:]+):\d+(?::\d+)?): note: in expansion of macro ")
_NOISE = re.compile(r"\s*\[(?:-W\S+|enabled by default)\]$")


def complaints(log: str, directories: list[str]) -> list[str]:
    """The first lines that say what went wrong, each once; none if no line does.

    :param directories: of the build and of the headers: their paths are left out.
    """
    lines = _at_their_places([_short(line, directories) for line in log.splitlines()])
    for kind in _KINDS:
        found = dict.fromkeys(line[:_LONGEST] for line in lines if kind.match(line))
        if found:
            return list(found)[:_MOST]
    return []


def last_words(log: str) -> str:
    """The last line of a log; empty if it has none."""
    said = [line.rstrip() for line in log.splitlines() if line.strip() and not line.startswith("# ")]
    return said[-1][:_LONGEST] if said else ""


def _at_their_places(lines: list[str]) -> list[str]:
    """Errors in a header's macro, at the place that uses it: that is what has to be changed."""
    result = list(lines)
    for number, line in enumerate(lines):
        error = _IN_HEADER.match(line)
        if error is None:
            continue
        for note in lines[number + 1 :]:
            if _COMPILER.match(note):
                break
            used = _EXPANSION.match(note)
            if used is not None and not used["path"].startswith("include/"):
                result[number] = f"{used['place']}: {error['text']}"
                break
    return result


def _short(line: str, directories: list[str]) -> str:
    for directory in directories:
        line = line.replace(directory + "/", "")
    return _NOISE.sub("", line.rstrip())


def missing_on_this_machine(log: str) -> str:
    """A library that the kernel's own programs of the build need and that is not here; empty if none."""
    found = _PROGRAM.search(log)
    return found["library"] if found else ""
