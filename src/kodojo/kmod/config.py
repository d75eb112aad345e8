"""modprobe.d: what the user, not the module, says about loading (``libkmod/libkmod-config.c``).

No file of the host is read unless the user names it: the modules are loaded into another machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kodojo.errors import InputError
from kodojo.image.depmod_config import wrapped_lines
from kodojo.kmod.names import alias_normalize, fnmatch

__all__ = ["ModprobeConfig", "Softdep", "parse_softdep"]

_SUFFIXES = (".conf", ".alias")
# depmod's files take their places among the others, by their names.
_MODULES_SOFTDEP, _MODULES_WEAKDEP = "modules.softdep", "modules.weakdep"
_LARGEST_FILE = 16 << 20
_BLANKS = "\t "
_WHITE = " \t\n\v\f\r"
_SOFTDEP_WORD = re.compile(r"[^ \t\n\v\f\r]+")


@dataclass(frozen=True, slots=True)
class Softdep:
    """Names or aliases to load before and after a module."""

    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As ``modprobe -c`` prints it (``softdep_to_char``): without a blank before ``post:``."""
        groups = {"pre: ": self.pre, "post: ": self.post}
        return "".join(title + " ".join(names) for title, names in groups.items() if names)


@dataclass
class ModprobeConfig:
    """The directives in the order of the files, names and values as pairs; names are folded.

    :param softdeps_before: those of files whose names sort before ``modules.softdep``; they win over a module's own.
    :param weakdeps_before: modules that a module may ask for when it runs (kmod 33 and newer): nothing is loaded for
        them; before and after ``modules.weakdep`` likewise.
    :param problems: what was wrong, in kmod's words.
    """

    aliases: list[tuple[str, str]] = field(default_factory=list)
    blacklist: list[str] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)
    install: list[tuple[str, str]] = field(default_factory=list)
    remove: list[tuple[str, str]] = field(default_factory=list)
    softdeps_before: list[tuple[str, str]] = field(default_factory=list)
    softdeps_after: list[tuple[str, str]] = field(default_factory=list)
    weakdeps_before: list[tuple[str, str]] = field(default_factory=list)
    weakdeps_after: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Iterable[Path | str] = (), command_line: str = "") -> ModprobeConfig:
        """Read configuration files.

        :param paths: directories with ``*.conf``, or files; of two files with the same name the first counts.
        :param command_line: the kernel's: ``modprobe.blacklist=a,b`` and ``module.parameter=value`` count, too.
        :raises InputError: a file cannot be read, or is no configuration by its size.
        """
        config = cls()
        files: dict[str, Path] = {}
        for path in map(Path, paths):
            for file in _files_in(path, config.problems):
                files.setdefault(file.name, file)
        for name in sorted(files):
            config._parse(files[name])
        for module, parameter in _kernel_parameters(command_line):
            config._note_kernel_parameter(module, parameter)
        return config

    # -- asking -----------------------------------------------------------------------------------------
    def matching_aliases(self, name: str) -> list[tuple[str, str]]:
        """The ``alias`` directives for a name: pattern and module."""
        return [(pattern, module) for pattern, module in self.aliases if fnmatch(pattern, name)]

    def options_of(self, name: str, alias: str | None) -> str:
        """All ``options`` for a module, or for the alias that it was found by, joined."""
        return " ".join(text for module, text in self.options if module in (name, alias) and text)

    def install_command(self, name: str) -> str | None:
        """The first ``install`` command for a module."""
        return _first(self.install, name)

    def remove_command(self, name: str) -> str | None:
        """The first ``remove`` command for a module."""
        return _first(self.remove, name)

    def softdep(self, name: str, own: Sequence[tuple[str, str]]) -> Softdep:
        """The first softdep for a module.

        :param own: what the modules say themselves (:attr:`ModuleIndex.softdeps`).
        """
        for group in (self.softdeps_before, own, self.softdeps_after):
            for pattern, text in group:
                if fnmatch(pattern, name):
                    return parse_softdep(text)
        return Softdep()

    def lines(self, softdeps: Sequence[tuple[str, str]] = (), weakdeps: Sequence[tuple[str, str]] = ()) -> list[str]:
        """All directives as ``modprobe -c`` prints them (``tools/modprobe.c: show_config``).

        :param softdeps: those that the modules name themselves (:attr:`ModuleIndex.softdeps`); ``weakdeps`` likewise.
        """
        soft = (*self.softdeps_before, *softdeps, *self.softdeps_after)
        weak = (*self.weakdeps_before, *weakdeps, *self.weakdeps_after)
        groups = {
            "install": self.install,
            "remove": self.remove,
            "alias": self.aliases,
            "options": self.options,
            "softdep": [(name, str(parse_softdep(text))) for name, text in soft],
            "weakdep": [(name, " ".join(text.split())) for name, text in weak],
        }
        lines = [f"blacklist {name}" for name in self.blacklist]
        return lines + [f"{word} {name} {text}" for word, pairs in groups.items() for name, text in pairs]

    # -- parsing ----------------------------------------------------------------------------------------
    def _parse(self, path: Path) -> None:
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise InputError(f"{path}: too large for a configuration file")
            content = path.read_text("utf-8", "surrogateescape")
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        for number, line in wrapped_lines(content):
            command, rest = _word(line)
            if line.startswith("#") or not command:
                continue
            if command in ("include", "config"):
                self.problems.append(f"{path}: command {command} is deprecated and not parsed anymore")
            elif not self._directive(command, rest, path.name):
                self.problems.append(f"{path} line {number}: ignoring bad line starting with '{command}'")

    def _directive(self, command: str, rest: str, file: str) -> bool:
        """Note a directive; False if it is none. Files have their places by their names."""
        first, rest = _word(rest)
        name = alias_normalize(first)
        if command == "allow_unsupported_modules":  # about a patch that only one distribution has
            return first in ("yes", "1", "no", "0")
        if not name:
            return False
        if command == "blacklist":
            self.blacklist.append(name)
            return True
        if command == "alias":
            module = alias_normalize(_word(rest)[0])
            if module:
                self.aliases.append((name, module))
            return bool(module)
        lists = {
            "options": self.options,
            "install": self.install,
            "remove": self.remove,
            "softdep": self.softdeps_before if file < _MODULES_SOFTDEP else self.softdeps_after,
            "weakdep": self.weakdeps_before if file < _MODULES_WEAKDEP else self.weakdeps_after,
        }
        if command not in lists or not rest:
            return False
        lists[command].append((name, rest.replace("\t", " ") if command == "options" else rest))
        return True

    def _note_kernel_parameter(self, module: str, parameter: str) -> None:
        if module == "modprobe" and parameter.startswith("blacklist="):
            self.blacklist += parameter.removeprefix("blacklist=").split(",")
            return
        name = alias_normalize(module)
        if name is None:
            self.problems.append(f"Ignoring bad option on kernel command line while parsing module name: '{module}'")
        else:
            self.options.append((name, parameter))


def parse_softdep(text: str) -> Softdep:
    """Take ``pre: a b post: c`` apart (``libkmod/libkmod-config.c: kmod_config_add_softdep``).

    What stands before both words is ignored. A single blank in front belongs to the first word, as kmod has it: so
    ``softdep m  pre: a``, with two blanks, names nothing.
    """
    lists: dict[str, list[str]] = {"": [], "pre:": [], "post:": []}
    current = ""
    words = _SOFTDEP_WORD.findall(text)
    if text[:1] in _WHITE and text[1:2] not in _WHITE:
        words = words[1:]
    for word in words:
        if word in ("pre:", "post:"):
            current = word
        else:
            lists[current].append(word)
    return Softdep(tuple(lists["pre:"]), tuple(lists["post:"]))


def _first(directives: Iterable[tuple[str, str]], name: str) -> str | None:
    return next((text for pattern, text in directives if fnmatch(pattern, name)), None)


def _files_in(path: Path, problems: list[str]) -> list[Path]:
    """The configuration files that a path stands for; a path that is not there stands for none."""
    if not path.is_dir():
        return [path] if path.exists() else []
    found = []
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        problems.append(f"opendir({path}): {error.strerror}")
        return []
    for entry in entries:
        if entry.name.startswith(".") or len(entry.name) < 6 or not entry.name.endswith(_SUFFIXES):
            continue
        if entry.is_dir():
            problems.append(f"Directories inside directories are not supported: {entry}")
        else:
            found.append(entry)
    return found


def _word(line: str) -> tuple[str, str]:
    """The first word and what stands behind the one blank after it (``strtok_r``)."""
    line = line.lstrip(_BLANKS)
    end = next((at for at, character in enumerate(line) if character in _BLANKS), len(line))
    return line[:end], line[end + 1 :]


def _kernel_parameters(command_line: str) -> Iterator[tuple[str, str]]:
    """``module`` and ``parameter=value`` of the words of a kernel's command line (``kmod_config_parse_kcmdline``).

    A quote may stand in the value, or before the whole word, as boot loaders have it: that one moves to the value.
    """
    for word in _quoted_words(command_line):
        moved = word.startswith('"')
        name, equals, value = word.removeprefix('"').partition("=")
        module, dot, parameter = name.partition(".")
        if not dot or "." in parameter or '"' in name or (moved and not equals):
            continue
        quote = '"' if moved else ""
        yield module, f"{parameter}{equals}{quote}{value}"


def _quoted_words(line: str) -> Iterator[str]:
    start = 0
    quoted = False
    for at, character in enumerate(f"{line}\n"):
        if character == '"':
            quoted = not quoted
        elif character in _WHITE and (not quoted or at == len(line)):
            if start < at:
                yield line[start:at]
            start = at + 1
