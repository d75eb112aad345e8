"""The current task: who is asking the kernel, and with which rights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kodojo.errors import InputError
from kodojo.kernel.calls import Calls
from kodojo.kernel.memory import KernelMemory

__all__ = ["CAPABILITIES", "Tasks"]

# include/uapi/linux/capability.h
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

_CAPABILITY_SETS = ("cap_inheritable", "cap_permitted", "cap_effective", "cap_ambient")
_USER_IDS = ("uid", "suid", "euid", "fsuid")
_GROUP_IDS = ("gid", "sgid", "egid", "fsgid")
_NAME_LIMIT = 15


class Tasks:
    """What is asked about and done to the task that the machine stands in."""

    def __init__(self, calls: Calls, memory: KernelMemory) -> None:
        self._calls = calls
        self._memory = memory

    def current_task(self) -> int:
        """``current``."""
        calls = self._calls
        return calls.abi.current_task(calls.cpu, calls.image.kallsyms, self._memory)

    def capable(self, capability: int) -> bool:
        """``capable()`` of the current task."""
        return bool(self._calls("capable", capability) & 0xFF)

    def set_name(self, name: str) -> None:
        """``comm`` of the current task: at most 15 bytes (``fs/exec.c: __set_task_comm``)."""
        where = self._memory.struct("task_struct", self.current_task()).address_of("comm")
        self._memory.write(where, name.encode("utf-8", "surrogateescape")[:_NAME_LIMIT].ljust(_NAME_LIMIT + 1, b"\0"))

    @contextmanager
    def credentials(self, uid: int, gid: int, capabilities: Iterable[str | int]) -> Iterator[None]:
        """Act with other credentials (``override_creds``) in the ``with`` block.

        :param capabilities: names (``CAP_SYS_MODULE``, ``sys_module``) or numbers; all four sets are these.
        """
        mask = sum({1 << _capability(capability) for capability in capabilities})
        address = self._calls("prepare_creds")
        cred = self._memory.struct("cred", address)
        for member in _USER_IDS:
            cred.set(f"{member}.val", uid)
        for member in _GROUP_IDS:
            cred.set(f"{member}.val", gid)
        for member in _CAPABILITY_SETS:
            self._memory.put(cred.address_of(member), 8, mask)
        place = self._calls.place
        old = self._calls("override_creds", address)
        try:
            yield
        finally:
            if self._calls.stopped is None and self._calls.place is place:
                self._calls("revert_creds", old)
                self._calls("abort_creds", address)


def _capability(value: str | int) -> int:
    if isinstance(value, str):
        name = value.upper()
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        if name not in CAPABILITIES:
            raise InputError(f"{value}: no capability of that name", hint="names are those of capabilities(7)")
        return CAPABILITIES.index(name)
    if not 0 <= value < len(CAPABILITIES):
        raise InputError(f"{value}: no capability of that number")
    return value
