"""Built modules, kept where the user wants them: ``DIRECTORY/KERNEL/PACKAGE-VERSION/*.ko``.

All names are others' (of packages, kernels, files): none of them leads out of the directory.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import InputError

if TYPE_CHECKING:
    from kodojo.check.build.sources import Source

__all__ = ["keep", "places_to_keep"]

_LONGEST = 200  # of a name, in characters; file systems take 255 bytes


def places_to_keep(directory: Path, sources: Iterable[Source], kernels: Sequence[str]) -> dict[tuple[str, str], Path]:
    """Where the modules of each source for each kernel are kept, by the source's label and the kernel's name.

    :raises InputError: two of them would get the same directory.
    """
    places: dict[tuple[str, str], Path] = {}
    taken: dict[Path, str] = {}
    for source in sources:
        for kernel in kernels:
            place = directory / _component(kernel) / _component(source.title.replace(" ", "-"))
            if place in taken:
                raise InputError(
                    f"{taken[place]} and {source.label}: the modules of both would be kept in {place}",
                    hint="build them one at a time, and give each a directory of its own",
                )
            taken[place] = source.label
            places[source.label, kernel] = place
    return places


def keep(place: Path, modules: Iterable[tuple[str, Path]]) -> None:
    """Copy modules into a directory; it is made, and a file that is there already is replaced as a whole.

    :param modules: the path of each below the source, and the file with its content.
    :raises InputError: it cannot be written, or two of them would be one file.
    """
    written = set()
    for name, content in modules:
        target = place.joinpath(*map(_component, name.split("/")))
        if target in written:
            raise InputError(f"{target}: two of the modules would be kept in it, {name!r} is one of them")
        written.add(target)
        temporary: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("wb", prefix=".kodojo-", dir=target.parent, delete=False) as file:
                temporary = Path(file.name)
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file)
            temporary.chmod(0o644)
            temporary.replace(target)
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _component(name: str) -> str:
    """A name as one component of a path: neither hidden nor ``..``, and of plain characters.

    >>> _component("../x y"), _component("vpoll-0.1"), _component("")
    ('_._x_y', 'vpoll-0.1', '_')
    """
    plain = re.sub(r"[^\w.+~-]", "_", name, flags=re.ASCII)[-_LONGEST:]
    return f"_{plain[1:]}" if plain[:1] in ("", ".") else plain
