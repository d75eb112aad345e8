"""``python -m tests.arches``: a sample of each architecture's modules against its own kernel; prints a table."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import click
import numpy as np

from kodojo.image.architecture import architecture_named
from kodojo.image.described.files import find_description
from kodojo.image.described.image import DescribedImage
from kodojo.image.elf import ElfFile
from kodojo.image.image import Image
from kodojo.loader.verdict import check
from kodojo.report.table import plain_table
from tests.arches.packages import FLAVOURS, Files, fetch
from tests.support.distribution import DistributionError, cache_directory

SIGNED = b"~Module signature appended~\n"
UNKNOWN_TYPE = 251  # on none of the architectures is there such a relocation


@dataclass
class Outcome:
    """What was found for one kernel.

    :param same: how many verdicts by the headers are those by the kernel itself.
    :param wrong: what should not be, one line each.
    """

    machine: str
    same: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        """The outcome as a line of the table."""
        total = sum(self.verdicts.values())
        refused = f"{self.broken['unknown-relocation']} of {sum(self.broken.values())}"
        each = f"{1000 * self.seconds / max(total, 1):.0f} ms"
        return self.machine, f"{self.verdicts['ok']} of {total}", f"{self.same} of {total}", refused, each


def open_kernels(files: Files, machine: str) -> tuple[Image, Image]:
    """The kernel itself, and what its headers tell of it, with its modules."""
    index = cache_directory() / "arches" / machine
    found = find_description(files.headers)
    assert found is not None
    described = DescribedImage(found._replace(modules=files.modules), index / "described")
    return Image.from_directory(files.image, index / "index"), described


def exported(image: Image) -> set[tuple[str, int | None, bool, str | None]]:
    """What a kernel exports, but for addresses, which headers do not know."""
    return {(each.name, each.crc, each.gpl, each.namespace) for each in image.exports}


def with_unknown_relocation(data: bytes, machine: str) -> bytes:
    """The module with the first relocation of its code of another type, and no longer signed."""
    architecture = architecture_named(machine)
    elf = ElfFile(data, "module")
    section = elf.sections[(".rela" if architecture.rela else ".rel") + ".text"]
    kind = architecture.format.rela if architecture.rela else architecture.format.rel
    content = bytearray(data.removesuffix(SIGNED))
    entries = np.frombuffer(content, kind, section.size // kind.itemsize, section.offset)
    mask = 0xFF if architecture.format.bits == 32 else 0xFFFFFFFF
    entries["r_info"][0] = int(entries["r_info"][0]) & ~mask | UNKNOWN_TYPE
    return bytes(content)


def look_at(machine: str, sample: int) -> Outcome:
    """Check a sample of a kernel's modules, and some of them broken."""
    image, described = open_kernels(fetch(machine), machine)
    outcome = Outcome(machine)
    if exported(image) != exported(described):
        outcome.wrong.append(f"{machine}: the kernel exports something else than its headers list")
    names = random.Random(1).sample(sorted(image.modules), min(sample, len(image.modules)))
    for name in names:
        start = time.monotonic()
        verdict = check(image, image.modules[name].path)
        outcome.seconds += time.monotonic() - start
        outcome.verdicts[verdict.slug] += 1
        if not verdict.ok:
            outcome.wrong.append(f"{machine}: {name}: {verdict.slug}: {verdict.why}")
        by_headers = check(described, image.modules[name].path)
        if (verdict.slug, verdict.errno) == (by_headers.slug, by_headers.errno):
            outcome.same += 1
        else:
            outcome.wrong.append(f"{machine}: {name}: {verdict.slug}, but by the headers {by_headers.slug}")
    for name in names[: sample // 4]:
        try:
            broken = with_unknown_relocation(image.modules[name].read(), machine)
        except KeyError:  # a module without code
            continue
        verdict = check(image, broken)
        outcome.broken[verdict.slug] += 1
        if verdict.slug != "unknown-relocation":
            outcome.wrong.append(f"{machine}: {name} with an unknown relocation: {verdict.slug}")
    return outcome


@click.command()
@click.option("--machine", "machines", type=click.Choice(list(FLAVOURS)), multiple=True, help="Only this one.")
@click.option("--sample", type=int, default=40, help="Modules of each, always the same.")
def main(machines: tuple[str, ...], sample: int) -> None:
    """Check modules of Debian's other architectures against their own kernels."""
    outcomes = []
    missing = False
    for machine in machines or tuple(FLAVOURS):
        try:
            outcomes.append(look_at(machine, sample))
        except DistributionError as error:
            print(f"{machine}: {error}", file=sys.stderr)  # noqa: T201
            missing = True
    heads = ("architecture", "would load", "the same by headers", "broken ones refused", "each")
    print("\n".join(plain_table(heads, [outcome.row() for outcome in outcomes])))  # noqa: T201
    for outcome in outcomes:
        for line in outcome.wrong:
            print(line)  # noqa: T201
    sys.exit(1 if any(outcome.wrong for outcome in outcomes) else 2 if missing else 0)


if __name__ == "__main__":
    main()
