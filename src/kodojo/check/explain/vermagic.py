"""Version magic: which word differs, and what it stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.errors import Detail

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal

__all__ = ["vermagic_mismatch", "vermagic_missing", "words"]

PREEMPTION = ("preempt", "preempt_rt")

WORDS = {
    "SMP": "several processors (CONFIG_SMP)",
    "preempt": "preemption inside the kernel (CONFIG_PREEMPT)",
    "preempt_rt": "real-time preemption (CONFIG_PREEMPT_RT)",
    "mod_unload": "removing modules (CONFIG_MODULE_UNLOAD)",
    "modversions": "checksums of symbols (CONFIG_MODVERSIONS)",
    "thumb2": "code in Thumb-2 (CONFIG_THUMB2_KERNEL)",
    "p2v8": "patching of addresses at boot (CONFIG_ARM_PATCH_PHYS_VIRT)",
    "aarch64": "64-bit ARM",
    "mprofile-kernel": "tracing of functions (CONFIG_MPROFILE_KERNEL)",
    "RANDSTRUCT": "structures in random order (CONFIG_RANDSTRUCT)",
}
"""Word -> what a kernel has that has the word."""


def words(magic: str) -> tuple[str, list[str]]:
    """The release, and the other words."""
    release, _blank, rest = magic.partition(" ")
    return release, rest.split()


def vermagic_mismatch(case: Case, problem: Refusal) -> Refusal:
    """One entry for each word that only one side has."""
    facts = problem.details[0].facts
    (release, ours), (kernel_release, theirs) = words(str(facts["module"])), words(str(facts["kernel"]))
    details = []
    compared = "modversions" not in ours or "modversions" not in theirs
    if release != kernel_release and (compared or ours == theirs):
        text = f"{release} in the module, {kernel_release} in the kernel"
        more = () if "modversions" in theirs else ("without CONFIG_MODVERSIONS the releases must be the same",)
        details.append(Detail("release", text, {"module": release, "kernel": kernel_release}, more))
    details += _preemption(ours, theirs)
    for word in dict.fromkeys((*ours, *theirs)):
        if word not in PREEMPTION and (word in ours) != (word in theirs):
            details.append(_word(word, in_module=word in ours))
    hint = f"Build the module against the headers of {kernel_release}, or load it into {release}."
    del case
    return replace(problem, hint=hint, details=tuple(details) or problem.details)


def _preemption(ours: list[str], theirs: list[str]) -> list[Detail]:
    """One of three words can be there, so a difference is one entry, not two."""
    module, kernel = (next((word for word in PREEMPTION if word in side), "") for side in (ours, theirs))
    if module == kernel:
        return []
    names = {"": "none inside the kernel (neither word)"} | {word: f"{WORDS[word]}" for word in PREEMPTION}
    text = f"the module was built with {names[module]}, the kernel with {names[kernel]}"
    return [Detail(module or kernel, text, {"module": module, "kernel": kernel})]


def _word(word: str, *, in_module: bool) -> Detail:
    known = next((text for start, text in WORDS.items() if word.startswith(start)), "")
    meaning = known or "a kind of processor, or an option of the build"
    have, lack = ("module", "kernel") if in_module else ("kernel", "module")
    text = f"{meaning}: the {have} was built with it, the {lack} without"
    return Detail(word, text, {"module": word if in_module else "", "kernel": "" if in_module else word})


def vermagic_missing(case: Case, problem: Refusal) -> Refusal:
    """The magic that it should have."""
    text = f"should be '{case.image.vermagic.rstrip()}'"
    return replace(problem, details=(Detail("vermagic", text, {"module": "", "kernel": case.image.vermagic}),))
