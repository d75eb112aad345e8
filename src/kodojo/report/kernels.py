"""Kernels of the store: what ``kodojo kernel list`` and ``show`` tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodojo.errors import KodojoError, MissingInformationError
from kodojo.image.image import FACTS

if TYPE_CHECKING:
    from kodojo.image.image import Image

__all__ = [
    "CONFIG_FACTS",
    "KernelFacts",
    "KernelLine",
    "SnapshotFacts",
    "architecture",
    "kernel_facts",
    "list_rows",
    "mebibytes",
    "show_rows",
]

CONFIG_FACTS = (
    "MODVERSIONS", "MODULE_SIG", "MODULE_SIG_FORCE", "MODULE_UNLOAD", "MODULE_FORCE_UNLOAD", "STRICT_MODULE_RWX",
    "KALLSYMS_ALL", "MODULE_DECOMPRESS", "DEBUG_INFO_BTF", "SMP",
)  # fmt: skip
"""Options that decide which modules load, and how."""

_KINDS = {"kernel": "kernel", "headers": "headers only"}
_PREEMPTION = ("PREEMPT_RT", "PREEMPT", "PREEMPT_VOLUNTARY", "PREEMPT_NONE", "PREEMPT_DYNAMIC")


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """A boot that is kept. ``memory`` in bytes; ``bare``: without what an init does."""

    cmdline: str
    memory: int
    bare: bool = False


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One kernel in the list. ``problem`` says why it cannot be used, if so; ``kind`` is :attr:`Image.kind`."""

    name: str
    release: str = ""
    architecture: str = ""
    modules: int = 0
    snapshots: int = 0
    current: bool = False
    problem: str = ""
    kind: str = "kernel"


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What ``kernel show`` tells.

    :param config: option without ``CONFIG_`` to its value, "" if it is not set; None if the configuration is unknown.
    :param config_inferred: there was no config file; the values are what the kernel itself shows.
    :param size: bytes that the kernel takes in the store, without snapshots.
    :param kind: ``kernel``, or ``headers`` for one that is only described.
    :param installed: what a person has added to it.
    :param missing: facts that are not known (of :data:`kodojo.image.image.FACTS`).
    :param warnings: what is incomplete or contradictory.
    """

    name: str
    release: str
    architecture: str
    vermagic: str
    build_id: str
    exports: int
    config: Mapping[str, str] | None
    config_inferred: bool
    modules: int
    builtin: int
    size: int
    snapshots: tuple[SnapshotFacts, ...]
    current: bool
    kind: str
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    installed: tuple[str, ...] = ()


def architecture(image: Image) -> str:
    """For people: empty if it is not known."""
    return _or_nothing(image, "architecture")


def _or_nothing(image: Image, attribute: str) -> str:
    try:
        return str(getattr(image, attribute))
    except MissingInformationError:
        return ""


def kernel_facts(
    name: str, image: Image, size: int, snapshots: Iterable[SnapshotFacts], *, current: bool
) -> KernelFacts:
    """Ask an image; what it cannot tell is empty, and so is the number of exports of a kernel without symbols."""
    try:
        exports = len(image.exports)
    except KodojoError:
        exports = 0
    return KernelFacts(
        name=name,
        release=image.release,
        architecture=architecture(image),
        vermagic=_or_nothing(image, "vermagic"),
        build_id=image.build_id,
        exports=exports,
        config=_config_facts(image),
        config_inferred=image.config_path is None and image.kind == "kernel",
        modules=len(image.modules),
        builtin=len(image.builtin),
        size=size,
        snapshots=tuple(snapshots),
        current=current,
        kind=image.kind,
        missing=tuple(sorted(FACTS - image.describes - {"module exports"})),
        warnings=image.warnings,
        installed=tuple(addition.label for addition in image.additions.listed()),
    )


def _config_facts(image: Image) -> dict[str, str] | None:
    try:
        config = image.config
    except MissingInformationError:
        return None
    facts = {option: config.get(f"CONFIG_{option}", "") for option in CONFIG_FACTS}
    facts |= {option: "y" for option in _PREEMPTION if config.get(f"CONFIG_{option}") == "y"}
    return facts


def mebibytes(size: int) -> str:
    """A size for people."""
    return f"{size / (1 << 20):.1f} MiB" if size % (1 << 20) else f"{size >> 20} MiB"


def _snapshot_text(snapshot: SnapshotFacts) -> str:
    what = f'command line "{snapshot.cmdline}"' if snapshot.cmdline else "no extra command line"
    return f"{what}, {mebibytes(snapshot.memory)}{', bare' if snapshot.bare else ''}"


def list_rows(kernels: Iterable[KernelLine]) -> list[tuple[str, ...]]:
    """Rows for the list: mark of the current one, name, kind, architecture, modules, snapshots or what is wrong."""
    return [
        ("*" if line.current else "", line.name, "", "", "", line.problem)
        if line.problem
        else (
            "*" if line.current else "",
            line.name,
            _KINDS[line.kind],
            line.architecture,
            str(line.modules),
            str(line.snapshots) if line.kind == "kernel" else "",
        )
        for line in kernels
    ]


def show_rows(facts: KernelFacts) -> list[tuple[str, str]]:
    """Name and value, in the order in which people ask."""
    rows = [
        ("name", f"{facts.name} (the current one)" if facts.current else facts.name),
        ("what", _KINDS[facts.kind]),
        ("release", facts.release),
        ("architecture", facts.architecture),
        ("vermagic", facts.vermagic.rstrip() or _no_vermagic(facts)),
        ("build id", facts.build_id or "none"),
        ("exports", str(facts.exports)),
        ("modules", f"{facts.modules}, and {facts.builtin} built in"),
        ("size", mebibytes(facts.size)),
    ]
    if facts.config is None:
        rows.append(("config", "not known"))
    else:
        unset = "no trace of it" if facts.config_inferred else "not set"
        rows += [(f"CONFIG_{option}", value or unset) for option, value in facts.config.items()]
    if facts.kind != "kernel":
        rows.append(("not known", ", ".join(facts.missing)))
        return rows + [("warning", warning) for warning in facts.warnings]
    rows += [("installed", label) for label in facts.installed]
    rows += [("snapshot", _snapshot_text(snapshot)) for snapshot in facts.snapshots] or [("snapshot", "none yet")]
    return rows


def _no_vermagic(facts: KernelFacts) -> str:
    return "none: this kernel loads no modules" if facts.kind == "kernel" else "not known"
