"""The string that says for which kernel a module was built, composed as the kernel's own build composes it.

Source: ``include/linux/vermagic.h``, ``arch/*/include/asm/vermagic.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kodojo.errors import MissingInformationError
from kodojo.image.architecture import architecture_of_config

if TYPE_CHECKING:
    from kodojo.image.config import Config

__all__ = ["compose_vermagic"]


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


# Architecture -> its MODULE_ARCH_VERMAGIC; the others have none.
_WORDS: dict[str, Callable[[Config], str]] = {
    "i686": _i386,
    "aarch64": lambda _: "aarch64",
    "armv7l": _arm,
    "riscv64": lambda _: "riscv",
    "ppc64le": _powerpc,
}


def compose_vermagic(release: str, config: Config, randstruct_seed: str = "") -> str:
    """``VERMAGIC_STRING``, its trailing blank included.

    :param release: ``UTS_RELEASE``.
    :param randstruct_seed: ``RANDSTRUCT_HASHED_SEED`` of ``include/generated/randstruct_hash.h``.
    :raises MissingInformationError: the configuration, or what was generated from it, leaves a part open.
    """
    architecture = architecture_of_config(config)
    if architecture is None:
        raise MissingInformationError("the configuration is for an architecture that kodojo does not know")
    randomised = config.enabled("RANDSTRUCT") or config.enabled("GCC_PLUGIN_RANDSTRUCT")
    if randomised and not randstruct_seed:
        raise MissingInformationError(
            "the kernel's structures are randomised, and include/generated/randstruct_hash.h is not there"
        )
    words = _WORDS.get(architecture.name)
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
            words(config) if words is not None else "",
            f"RANDSTRUCT_{randstruct_seed}" if randomised else "",
        )
    )
