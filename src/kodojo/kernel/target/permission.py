"""Who may load, what is printed, and what taints."""

from __future__ import annotations

from kodojo.errors import LogRecord, decode
from kodojo.kernel.target.entry import EntryPart

__all__ = ["PermissionPart"]

_LOADING_MODULE = "LOADING_MODULE"


class PermissionPart(EntryPart):
    """The parts of the kernel that decide and remember."""

    def capable(self, capability: int) -> bool:
        return self.tasks.capable(capability)

    def modules_disabled(self) -> bool:
        return bool(self.memory.u32(self.symbol("modules_disabled")))

    def is_module_sig_enforced(self) -> bool:
        return bool(self.call("is_module_sig_enforced") & 0xFF)

    def security_locked_down(self, reason: str) -> None:
        self.checked("security_locked_down", self.image.btf.enumerators("lockdown_reason")[reason])

    def security_kernel_load_data(self) -> None:
        self.checked("security_kernel_load_data", self._loading_module(), 1)

    def security_kernel_post_load_data(self, address: int, size: int) -> None:
        self.checked("security_kernel_post_load_data", address, size, self._loading_module(), "init_module")

    def _loading_module(self) -> int:
        return self.image.btf.enumerators("kernel_load_data_id")[_LOADING_MODULE]

    def module_blacklist(self) -> str:
        address = self.memory.u64(self.symbol("module_blacklist"))
        return decode(self.memory.string(address)) if address else ""

    def spectre_v2_unsafe(self) -> bool:
        return self.call.has("retpoline_module_ok") and not self.call("retpoline_module_ok", 0) & 0xFF

    # -- the log and the taints ---------------------------------------------------------------------
    def printk_once(self, key: str, level: int, text: str) -> None:
        if key not in self.once:
            self.once.add(key)
            self.printk(level, text)

    def dump_stack(self) -> None:
        self.call_below("dump_stack")

    def log_mark(self) -> int:
        return self.log.next_sequence()

    def log_since(self, mark: int) -> tuple[LogRecord, ...]:
        return self.log.records(mark)

    def hashed_pointer(self, address: int) -> str:
        self.call("snprintf", self.scratch, 64, "%p", address)
        return decode(self.memory.string(self.scratch, 64))

    def test_taint(self, bit: int) -> bool:
        return bool(self.memory.u64(self.symbol("tainted_mask")) >> bit & 1)

    def add_taint(self, bit: int, *, lockdep_ok: bool) -> None:
        wanted = "LOCKDEP_STILL_OK" if lockdep_ok else "LOCKDEP_NOW_UNRELIABLE"
        self.call("add_taint", bit, self.image.btf.enumerators("lockdep_ok")[wanted])

    def audit_log_kern_module(self, name: str) -> None:
        """Nothing: the record goes to a task's audit context, and PID 1 has none at rest."""
