"""Symbols that a module does not get: where they are, what they may be called now, what would give them back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.check.explain.case import exporters
from kodojo.check.explain.nearest import nearest
from kodojo.errors import Detail
from kodojo.kmod.providers import listed, load_command

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal
    from kodojo.image.image import Image
    from kodojo.loader.verdict import Verdict

__all__ = ["gpl_only_symbol", "namespace_not_imported", "taints", "unknown_symbol"]

MOST = 40
"""Symbols of one module that are looked into; whoever lacks more has another problem."""

OPTIONS = {
    "acpi_": "ACPI", "bpf_": "BPF_SYSCALL", "can_": "CAN", "cfg80211_": "CFG80211", "crypto_": "CRYPTO",
    "debugfs_": "DEBUG_FS", "dma_buf_": "DMA_SHARED_BUFFER", "drm_": "DRM", "efi_": "EFI",
    "fscrypt_": "FS_ENCRYPTION",
    "gpiod_": "GPIOLIB", "hid_": "HID", "i2c_": "I2C", "ib_": "INFINIBAND", "ieee80211_": "MAC80211",
    "iio_": "IIO", "input_": "INPUT", "iommu_": "IOMMU_API", "kunit_": "KUNIT", "led_": "NEW_LEDS",
    "mmc_": "MMC", "mtd_": "MTD", "nvme_": "NVME_CORE", "of_": "OF", "pci_": "PCI", "perf_": "PERF_EVENTS",
    "phy_": "PHYLIB", "pm_": "PM", "power_supply_": "POWER_SUPPLY", "pwm_": "PWM", "regmap_": "REGMAP",
    "regulator_": "REGULATOR", "rfkill_": "RFKILL", "sdio_": "MMC", "snd_": "SND", "spi_": "SPI",
    "thermal_": "THERMAL", "tty_": "TTY", "usb_": "USB", "v4l2_": "VIDEO_DEV", "vfio_": "VFIO",
    "virtio_": "VIRTIO", "watchdog_": "WATCHDOG_CORE", "xfrm_": "XFRM",
}  # fmt: skip
"""Beginning of a symbol's name -> the option without which a kernel has no such symbols."""

TAINTS = {
    0: ("P", "a module with a proprietary licence"),
    1: ("F", "a module that was loaded by force"),
    6: ("U", "a dangerous parameter"),
    10: ("C", "a module from the staging directory"),
    12: ("O", "a module that is not part of the kernel's own tree"),
    13: ("E", "a module without a valid signature"),
    15: ("K", "a livepatch"),
    16: ("X", "a taint of the distribution's own"),
    18: ("N", "a test module"),
}
"""Bit -> letter and cause (``kernel/panic.c: taint_flags``), as far as loading a module can set it."""


def unknown_symbol(case: Case, problem: Refusal) -> Refusal:
    """Who has the symbol, or what may have become of it."""
    details = [_unknown(case, detail) for detail in problem.details[:MOST]]
    owners = sorted({str(detail.facts["module"]) for detail in details if "module" in detail.facts})
    hint = problem.hint
    if owners:
        files = {name: path for name in owners if (path := case.beside(name)) is not None}
        hint = f"Load {listed(owners)} first: {load_command(*(files.get(name, name) for name in owners))}."
        if case.file is not None and all("module" in detail.facts for detail in details):
            hint += f" Or all at once: {load_command(case.file)}."
        if not case.depends.issuperset(owners):
            hint += (
                " depends= does not name it, as it would had the module been built with that module's Module.symvers."
            )
    elif absent := sorted(name for name in case.depends if name not in case.image.modules):
        names = ", ".join(absent)
        hint = f"Load {names} first: depends= names it, and this kernel's tree does not have it. Check both together."
    elif case.release and case.release != case.image.release:
        hint = f"Build the module for {case.image.release}: it was built for {case.release}, which had the symbol."
    elif all(detail.facts.get("found") == "not exported" for detail in details):
        hint = "Do without it: what a kernel does not export is for its own code only. Similar names may do as well."
    elif all(detail.facts.get("found") in ("nowhere", "not exported") for detail in details):
        hint = (
            "If a module that is not part of the kernel exports it, check both together (kodojo check A.ko B.ko)."
            " Else build the module against this kernel's headers: modpost then says what is missing."
        )
    return replace(problem, hint=hint, details=(*details, *problem.details[MOST:]))


def _unknown(case: Case, detail: Detail) -> Detail:
    name = detail.subject
    owners = case.providers(name)
    if owners:
        return _of_another_module(case, detail, owners[0])
    if "symbols" in case.image.describes and case.image.kallsyms.get(name) is not None:
        text = "the kernel has it, but does not export it to modules"
        return replace(detail, text=text, facts=detail.facts | {"found": "not exported"}, more=_before(case, name))
    text = "neither the kernel nor a module of its tree has it"
    return replace(detail, text=text, facts=detail.facts | {"found": "nowhere"}, more=_elsewhere(case, name))


def _of_another_module(case: Case, detail: Detail, owner: str) -> Detail:
    named = owner in case.depends
    path = case.beside(owner)
    text = (
        f"module {owner} exports it, which is in the kernel's tree but not loaded"
        if path is None
        else f"{path.name}, which lies beside it, exports it"
    )
    more = () if named else (f"depends= of this module does not name {owner}",)
    facts = detail.facts | {"found": "another module", "module": owner, "in depends": "yes" if named else "no"}
    return replace(detail, text=text, facts=facts, more=more)


def _elsewhere(case: Case, name: str) -> tuple[str, ...]:
    """What is known of a symbol that is not there: who had it, what option it hangs on, what looks like it."""
    lines = []
    option = next((option for prefix, option in OPTIONS.items() if name.lstrip("_").startswith(prefix)), "")
    if option and "config" in case.image.describes and not case.image.config.enabled(option):
        lines.append(f"symbols of that kind come with CONFIG_{option}, which this kernel was built without")
    return (*lines, *_before(case, name))


def _before(case: Case, name: str) -> tuple[str, ...]:
    """Who had it in the kernel that the module was built for, and what looks like it in this one."""
    old = _in_the_old_kernel(case.built_for, name) if case.built_for is not None else []
    return (*old, *_near(case, name))


def _in_the_old_kernel(image: Image, name: str) -> list[str]:
    export = image.exports.get(name)
    if export is not None:
        return [f"{image.release} exports it{' to GPL-compatible modules' if export.gpl else ''}"]
    return [f"in {image.release} module {owner} exports it" for owner in exporters(image, name)[:1]]


def _near(case: Case, name: str) -> tuple[str, ...]:
    names = nearest(case.image, name)
    return (f"similar names that the kernel exports: {', '.join(names)}",) if names else ()


def gpl_only_symbol(case: Case, problem: Refusal) -> Refusal:
    """Which licence the module declares, and whether the symbol was free to all before."""
    licence = next(iter(case.values("license")), "none")
    old = case.built_for
    details = []
    for detail in problem.details:
        before = old.exports.get(detail.subject) if old is not None else None
        changed = f"; in {old.release} it was exported to all" if old and before and not before.gpl else ""
        details.append(replace(detail, text=f"exported with EXPORT_SYMBOL_GPL{changed}"))
    why = f"{problem.why} (its licence is '{licence}')"
    return replace(problem, why=why, details=tuple(details))


def namespace_not_imported(case: Case, problem: Refusal) -> Refusal:
    """The lines to add, as this kernel's headers want them."""
    spaces = sorted({str(detail.facts["namespace"]) for detail in problem.details})
    lines = " ".join(import_line(space) for space in spaces)
    details = tuple(
        replace(detail, text=f"is in the namespace {detail.facts['namespace']}") for detail in problem.details
    )
    hint = f"Add to one of the module's source files: {lines}"
    imported = case.values("import_ns")
    if imported:
        hint += f" (so far it imports {', '.join(imported)})"
    return replace(problem, hint=hint, details=details)


def import_line(namespace: str) -> str:
    """``MODULE_IMPORT_NS``: its argument is a text since 6.13 (cdd30ebb1b9f), before it was a word.

    A kernel does not show which of them its headers have, and so both are said.
    """
    return f'MODULE_IMPORT_NS("{namespace}"); (in kernels before 6.13 without the quotes)'


def taints(verdict: Verdict) -> tuple[Detail, ...]:
    """What the load would taint the kernel with, one entry for each flag."""
    letters = [(letter, cause) for bit, (letter, cause) in TAINTS.items() if verdict.taints >> bit & 1]
    return tuple(Detail(f"taint {letter}", f"the kernel is tainted: {cause}") for letter, cause in letters)
