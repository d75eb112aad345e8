"""A record of what happened while a module was loaded: one step for each function of the kernel.

``kodojo insmod --steps`` prints it, a verdict carries it, and a refusal names the step it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kodojo.errors import LoadError

__all__ = ["STEPS", "Step", "Steps"]

P = ParamSpec("P")
T = TypeVar("T")

MAIN = "kernel/module/main.c"

STEPS: dict[str, tuple[str, str]] = {
    # name: (title, source)
    "insmod": ("read the file, join the arguments, enter the kernel", "kmod: tools/insmod.c"),
    "may_init_module": ("is the caller allowed to load modules?", MAIN),
    "copy_module_from_user": ("copy the image from user memory", MAIN),
    "kernel_read_file": ("read the file behind the descriptor", "fs/kernel_read_file.c"),
    "module_decompress": ("decompress the file", "kernel/module/decompress.c"),
    "module_sig_check": ("look for a signature and verify it", "kernel/module/signing.c"),
    "elf_validity_check": ("is the file well formed?", MAIN),
    "setup_load_info": ("find the sections that the loader needs", MAIN),
    "blacklisted": ("is the module forbidden by name?", MAIN),
    "rewrite_section_headers": ("give every section the address of its copy", MAIN),
    "check_modstruct_version": ("does struct module look the same on both sides?", "kernel/module/version.c"),
    "check_modinfo": ("compare version magic, read what modinfo says", MAIN),
    "module_patient_check_exists": ("is a module of that name there already?", MAIN),
    "layout_and_allocate": ("decide where every section goes, allocate, copy", MAIN),
    "add_unformed_module": ("take a place in the list of modules: UNFORMED", MAIN),
    "module_augment_kernel_taints": ("taint the kernel as the module deserves", MAIN),
    "percpu_modalloc": ("reserve per-CPU memory", MAIN),
    "module_unload_init": ("start the reference counter", MAIN),
    "find_module_sections": ("find the optional tables", MAIN),
    "check_export_symbol_versions": ("do the exports have version checksums?", MAIN),
    "setup_modinfo": ("keep version and srcversion", MAIN),
    "simplify_symbols": ("give every symbol its address", MAIN),
    "apply_relocations": ("patch addresses into code and data", MAIN),
    "post_relocation": ("sort tables, fill per-CPU memory, let the architecture patch", MAIN),
    "strndup_user": ("copy the argument string from user memory", "mm/util.c"),
    "dynamic_debug_setup": ("register debug messages", "lib/dynamic_debug.c"),
    "ftrace_module_init": ("record the places that can be traced", "kernel/trace/ftrace.c"),
    "complete_formation": ("protect memory; the module becomes visible: COMING", MAIN),
    "prepare_coming_module": ("tell the other subsystems", MAIN),
    "parse_args": ("set the parameters", "kernel/params.c"),
    "mod_sysfs_setup": ("create /sys/module/NAME", "kernel/module/sysfs.c"),
    "copy_module_elf": ("keep the ELF data for livepatching", "kernel/module/livepatch.c"),
    "free_copy": ("free the temporary copy", MAIN),
    "do_init_module": ("run the module's init function", MAIN),
    "live": ("the module is LIVE; free its init memory", MAIN + ": do_init_module"),
}
"""Every step that can be recorded. The names are the kernel's functions, ``live`` apart."""


@dataclass(slots=True)
class Step:
    """One thing that the loader did.

    :param name: a function of the kernel.
    :param title: what it is for, in plain words.
    :param source: the kernel's file.
    :param facts: what was learned: sizes in bytes, addresses, counts, names.
    """

    name: str
    title: str
    source: str
    facts: dict[str, int | str] = field(default_factory=dict)


class Steps(list[Step]):
    """The steps of one load, in the order in which they happened. The first refusal ends it.

    :class:`~kodojo.loader.survey.Survey` is the one that goes on; the methods in which they differ say what a
    refusal means for what comes after it.
    """

    def begin(self, name: str, **facts: int | str) -> None:
        """Start a step; what fails from now on failed in it."""
        title, source = STEPS[name]
        self.append(Step(name, title, source, dict(facts)))

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that is a step of its own; a dictionary that it returns has the step's facts."""
        self.begin(function.__name__)
        result = function(*args, **kwargs)
        if isinstance(result, dict):
            self.note(**result)
        return result

    def check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a step that later ones do not build upon: a survey goes on if it refuses."""
        self.run(function, *args, **kwargs)

    def refused(self, error: LoadError) -> None:
        """Refuse where the rest of the step could go on; a survey does go on."""
        raise error

    def also(self, error: LoadError) -> None:
        """One of several refusals of a step that looks at everything before it gives up."""

    def all_of(self, errors: Sequence[LoadError]) -> LoadError:
        """The refusal of such a step: the last one, with the details of all that have its reason."""
        last = errors[-1]
        same = (error.refusal for error in errors if error.refusal.slug == last.slug)
        last.refusal = replace(last.refusal, details=tuple(detail for each in same for detail in each.details))
        return last

    def conclude(self) -> None:
        """The last step is done; a survey refuses now if it has met refusals."""

    def note(self, **facts: int | str) -> None:
        """Add facts to the step that is going on."""
        self[-1].facts.update(facts)

    @property
    def current(self) -> str:
        """The name of the step that is going on, empty before the first."""
        return self[-1].name if self else ""
