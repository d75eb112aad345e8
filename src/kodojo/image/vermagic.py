"""The string that says for which kernel a module was built, composed as the kernel's own build composes it.

Source: ``include/linux/vermagic.h``, ``arch/*/include/asm/vermagic.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodojo.errors import MissingInformationError

if TYPE_CHECKING:
    from kodojo.image.config import Config

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of", "compose_vermagic"]


def _nothing(_: Config) -> str:
    return ""


# CPU option -> MODULE_PROC_FAMILY of 32-bit x86.
_X86_FAMILIES = {
    "M486SX": "486SX", "M486": "486", "M586": "586", "M586TSC": "586TSC", "M586MMX": "586MMX", "MCORE2": "CORE2",
    "MATOM": "ATOM", "M686": "686", "MPENTIUMII": "PENTIUMII", "MPENTIUMIII": "PENTIUMIII",
    "MPENTIUMM": "PENTIUMM", "MPENTIUM4": "PENTIUM4", "MK6": "K6", "MK7": "K7", "MK8": "K8", "MELAN": "ELAN",
    "MCRUSOE": "CRUSOE", "MEFFICEON": "EFFICEON", "MWINCHIPC6": "WINCHIPC6", "MWINCHIP3D": "WINCHIP3D",
    "MCYRIXIII": "CYRIXIII", "MVIAC3_2": "VIAC3-2", "MVIAC7": "VIAC7", "MGEODEGX1": "GEODEGX1",
    "MGEODE_LX": "GEODE",
}  # fmt: skip

# Option -> __LINUX_ARM_ARCH__ (arch/arm/Makefile); a kernel for several is compiled for the oldest.
_ARM_VERSIONS = {
    "CPU_32v3": 3, "CPU_32v4": 4, "CPU_32v4T": 4, "CPU_32v5": 5, "CPU_32v6": 6, "CPU_32v7M": 7,
    "CPU_32v7": 7,
}  # fmt: skip


def _i386(config: Config) -> str:
    family = next((name for option, name in _X86_FAMILIES.items() if config.enabled(option)), None)
    if family is None:
        raise MissingInformationError("the configuration names no processor family of 32-bit x86")
    return f"{family} "


def _arm(config: Config) -> str:
    version = next((number for option, number in _ARM_VERSIONS.items() if config.enabled(option)), None)
    if version is None:
        raise MissingInformationError("the configuration names no version of the ARM architecture")
    thumb = "thumb2 " if config.enabled("THUMB2_KERNEL") else ""
    return f"ARMv{version} {thumb}{'p2v8 ' if config.enabled('ARM_PATCH_PHYS_VIRT') else ''}"


def _powerpc(config: Config) -> str:
    ftrace = "mprofile-kernel " if config.enabled("MPROFILE_KERNEL") else ""
    return ftrace + ("relocatable " if config.enabled("RELOCATABLE") else "")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture as a kernel's configuration shows it.

    :param name: as :attr:`kodojo.image.image.Image.architecture` has it.
    :param options: all of them are set.
    :param machines: how the build may call it (``UTS_MACHINE``).
    :param words: ``MODULE_ARCH_VERMAGIC`` of a configuration.
    """

    name: str
    options: tuple[str, ...]
    machines: tuple[str, ...]
    words: Callable[[Config], str] = _nothing


ARCHITECTURES = (
    Architecture("x86_64", ("X86_64",), ("x86_64",)),
    Architecture("i386", ("X86_32",), ("i386", "i686"), _i386),
    Architecture("arm64", ("ARM64",), ("aarch64", "arm64"), lambda _: "aarch64"),
    Architecture("arm", ("ARM",), ("arm",), _arm),
    Architecture("riscv64", ("RISCV", "64BIT"), ("riscv", "riscv64"), lambda _: "riscv"),
    Architecture("ppc64le", ("PPC64", "CPU_LITTLE_ENDIAN"), ("ppc64le",), _powerpc),
    Architecture("s390x", ("S390",), ("s390", "s390x")),
)


def architecture_of(config: Config) -> Architecture | None:
    """The architecture that a configuration is for; None if it is not in the table."""
    return next((each for each in ARCHITECTURES if all(map(config.enabled, each.options))), None)


def compose_vermagic(release: str, config: Config, randstruct_seed: str = "") -> str:
    """``VERMAGIC_STRING``, its trailing blank included.

    :param release: ``UTS_RELEASE``.
    :param randstruct_seed: ``RANDSTRUCT_HASHED_SEED`` of ``include/generated/randstruct_hash.h``.
    :raises MissingInformationError: the configuration, or what was generated from it, leaves a part open.
    """
    architecture = architecture_of(config)
    if architecture is None:
        raise MissingInformationError("the configuration is for an architecture that kodojo does not know")
    randomised = config.enabled("RANDSTRUCT") or config.enabled("GCC_PLUGIN_RANDSTRUCT")
    if randomised and not randstruct_seed:
        raise MissingInformationError(
            "the kernel's structures are randomised, and include/generated/randstruct_hash.h is not there"
        )
    preempt_rt = "preempt_rt " if config.enabled("PREEMPT_RT") else ""
    # Kernels without PREEMPT_BUILD ask for PREEMPT, which implies it elsewhere.
    preempt = config.enabled("PREEMPT_BUILD") or config.enabled("PREEMPT")
    return "".join(
        (
            f"{release} ",
            "SMP " if config.enabled("SMP") else "",
            "preempt " if preempt else preempt_rt,
            "mod_unload " if config.enabled("MODULE_UNLOAD") else "",
            "modversions " if config.enabled("MODVERSIONS") else "",
            architecture.words(config),
            f"RANDSTRUCT_{randstruct_seed}" if randomised else "",
        )
    )
