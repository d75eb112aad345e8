"""A loaded module, as a user of :class:`kodojo.Kernel` holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.errors import GuestOSError, UnloadError, decode
from kodojo.kernel.memory import StructView
from kodojo.kernel.target.modules import state_of
from kodojo.loader.steps import Step
from kodojo.loader.target import ModuleState

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel

__all__ = ["Module"]

_STATES = {
    ModuleState.LIVE: "Live",
    ModuleState.COMING: "Loading",
    ModuleState.GOING: "Unloading",
    ModuleState.UNFORMED: "Unformed",
}


class Module:
    """A module in the kernel's list. Everything is read from the kernel's memory when it is asked for.

    :param steps: what the loader did, if it was loaded by this call of ``insmod``.
    :param warnings: likewise what to know about its file (:attr:`kodojo.Verdict.warnings`).
    """

    def __init__(
        self, kernel: Kernel, address: int, steps: tuple[Step, ...] = (), warnings: tuple[str, ...] = ()
    ) -> None:
        self._kernel = kernel
        self._struct = kernel.memory.struct("module", address)
        self.name = decode(self._struct.string("name"))
        self.steps = steps
        self.warnings = warnings

    def __repr__(self) -> str:
        return f"<Module {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Module) and (self._kernel, self.address) == (other._kernel, other.address)

    def __hash__(self) -> int:
        return hash((id(self._kernel), self.address))

    @property
    def address(self) -> int:
        """Of its ``struct module``."""
        return self._struct.address

    @property
    def struct(self) -> StructView:
        """Its ``struct module``, member by member."""
        return self._struct

    @property
    def state(self) -> str:
        """As /proc/modules names it: Live, Loading, Unloading; Unformed, which is not shown there."""
        return _STATES[state_of(self._struct)]

    @property
    def refcount(self) -> int:
        return self._struct.get("refcnt.counter") - 1

    @property
    def users(self) -> tuple[str, ...]:
        """Names of the modules that use it, newest user first."""
        return self._kernel.target.names_of_users(self.address)

    @property
    def size(self) -> int:
        """Bytes of module memory (what /proc/modules shows)."""
        target = self._kernel.target
        return target.module_size(self.address)

    @property
    def taints(self) -> int:
        """Mask of its own taints (kernel/panic.c: taint_flags)."""
        return self._struct.get("taints")

    @property
    def parameters(self) -> dict[str, str]:
        """What /sys/module/NAME/parameters shows; those without a readable file are left out."""
        base = f"/sys/module/{self.name}/parameters"
        found = {}
        try:
            names = [entry.name for entry in self._kernel.files.list(base)]
        except GuestOSError:
            return {}
        for name in names:
            try:
                found[name] = decode(self._kernel.read_file(f"{base}/{name}")).removesuffix("\n")
            except GuestOSError:
                continue
        return found

    def remove(self) -> None:
        """``rmmod`` it. Raises UnloadError."""
        if not any(module == self for module in self._kernel.modules):
            raise UnloadError(f"{self.name} is not loaded any more", 2)
        self._kernel.rmmod(self.name)
