"""Memory of the booted kernel: temporary copies, module memory, per-CPU space."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress

from kodojo.kernel.bounds import at_most
from kodojo.kernel.target.base import GFP_KERNEL, GFP_NOWARN, Part, as_int, pointer_or_errno
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.target import Errno, FileLoad, KernelErrno, Memory, Module, Region

__all__ = ["MemoryPart"]

_LONG_MAX = (1 << 63) - 1
_INT_MAX = (1 << 31) - 1
_MOST_STRING = 1 << 22  # what kmalloc() can give
_MOST_PROCESSORS = 8192  # CONFIG_NR_CPUS
_GUEST_COPY = "/tmp/.kodojo-module"  # noqa: S108  in the guest, whose only user is this process
_O_WRONLY_CREAT_TRUNC = 0o1101
_PIECE = 1 << 17
# enum mod_mem_type, in the order in which the kernel allocates
_TYPES = {
    Memory.TEXT: "MOD_TEXT",
    Memory.DATA: "MOD_DATA",
    Memory.RODATA: "MOD_RODATA",
    Memory.RO_AFTER_INIT: "MOD_RO_AFTER_INIT",
    Memory.INIT_TEXT: "MOD_INIT_TEXT",
    Memory.INIT_DATA: "MOD_INIT_DATA",
    Memory.INIT_RODATA: "MOD_INIT_RODATA",
}
_TEXT_TYPES = frozenset({Memory.TEXT, Memory.INIT_TEXT})
_LAYOUTS = {Memory.CORE: "core_layout", Memory.INIT: "init_layout"}


class MemoryPart(Part):
    """Allocation by the kernel's own allocators, and copies into what they gave."""

    def vmalloc(self, size: int, *, warn: bool = False) -> int:
        function = self.call.first("__vmalloc", "__vmalloc_noprof")
        address = self.call(function, size, GFP_KERNEL if warn else GFP_KERNEL | GFP_NOWARN)
        if not address:
            raise KernelErrno(Errno.ENOMEM)
        return address

    def vfree(self, address: int) -> None:
        self.call("vfree", address)

    def copy_to_kernel(self, data: bytes) -> int:
        address = self.vmalloc(max(1, len(data)))
        self.memory.write(address, data)
        return address

    def copy_from_user(self, to: int, source: int, size: int) -> bytes:
        if self.call.abi.copy_from_user(self.call, self.memory, to, source, size):
            raise KernelErrno(Errno.EFAULT)
        return self.memory.read(to, size)

    def strndup_user(self, source: int) -> tuple[int, bytes]:
        address = pointer_or_errno(self.call("strndup_user", source, _LONG_MAX))
        return address, self.memory.string(address, _MOST_STRING)

    def strncpy_from_user(self, source: int, limit: int) -> bytes:
        length = as_int(self.call("strncpy_from_user", self.scratch, source, limit))
        if length < 0:
            raise KernelErrno(-length)
        return self.memory.read(self.scratch, at_most(length, limit, "the length of a name"))

    # -- files of the Python process ------------------------------------------------------------------
    def begin_load(self, fd: int) -> tuple[FileLoad, bool]:
        status = _readable(fd)[0]
        inode = (status.st_dev, status.st_ino)
        first = inode not in self.files_being_loaded
        return self.files_being_loaded.setdefault(inode, FileLoad()), first

    def end_load(self, load: FileLoad) -> None:
        load.ended = True
        for inode in [inode for inode, other in self.files_being_loaded.items() if other is load]:
            del self.files_being_loaded[inode]

    def kernel_read_file(self, fd: int) -> tuple[int, bytes]:
        """What ``kernel_read_file`` does with a file of the guest, done with one of the host."""
        size = _size_of_file(fd)
        if self._content_is_measured():
            return self._through_guest_file(_content(fd, size))
        reading = self.image.btf.enumerators("kernel_read_file_id")["READING_MODULE"]
        self.checked("security_kernel_read_file", self.file, reading, 1)
        address = self.vmalloc(size, warn=True)
        try:
            content = _content(fd, size)
            self.memory.write(address, content)
            self.checked("security_kernel_post_read_file", self.file, address, size, reading)
        except KernelErrno:
            self.vfree(address)
            raise
        return address, content

    def _content_is_measured(self) -> bool:
        """Whether an IMA policy is in force: it looks at the file, where others look at where it lies."""
        flag = self.image.kallsyms.get("ima_policy_flag")
        return flag is not None and self.memory.u32(flag) != 0

    def _through_guest_file(self, content: bytes) -> tuple[int, bytes]:
        """The host's file becomes one of the guest, and the guest's kernel reads that."""
        user = self.user
        copy = user.checked("module", "open", user.path(_GUEST_COPY), _O_WRONLY_CREAT_TRUNC, 0o600)
        try:
            for start in range(0, len(content), _PIECE):
                piece = content[start : start + _PIECE]
                if user.syscall("write", copy, user.put(piece, 4096), len(piece)) != len(piece):
                    raise KernelErrno(Errno.ENOMEM)
            user.checked("module", "close", copy)
            copy = user.checked("module", "open", user.path(_GUEST_COPY), 0, 0)
            return self._kernel_read_file(copy)
        finally:
            if self.call.stopped is None:
                user.syscall("close", copy)
                user.syscall("unlink", user.path(_GUEST_COPY))

    def _kernel_read_file(self, fd: int) -> tuple[int, bytes]:
        file = self.call("fget", fd)
        reading = self.image.btf.enumerators("kernel_read_file_id")["READING_MODULE"]
        self.memory.put(self.scratch, 8, 0)
        try:
            size = self.call_int("kernel_read_file", file, 0, self.scratch, _INT_MAX, 0, reading)
        finally:
            self.call("fput", file)
        if size < 0:
            raise KernelErrno(-size)
        at_most(size, self.call.cpu.ram.size, "the size of a file")
        address = self.memory.u64(self.scratch)
        return address, self.memory.read(address, size)

    # -- module memory --------------------------------------------------------------------------------
    def module_alloc(self, regions: Sequence[Region]) -> None:
        done: list[Region] = []
        for region in regions:
            if not region.size:
                continue
            region.base = self._allocate(region)
            if not region.base:
                self.module_memfree(done)
                raise KernelErrno(Errno.ENOMEM)
            done.append(region)

    def _allocate(self, region: Region) -> int:
        if not self.call.has("execmem_alloc"):
            return self.call("module_alloc", region.size)
        kinds = self.image.btf.enumerators("execmem_type")
        kind = "EXECMEM_MODULE_TEXT" if region.kind in _TEXT_TYPES else "EXECMEM_MODULE_DATA"
        return self.call("execmem_alloc", kinds[kind], region.size)

    def module_memfree(self, regions: Iterable[Region]) -> None:
        function = self.call.first("execmem_free", "module_memfree")
        for region in regions:
            if region.base:
                self.call(function, region.base)
                region.base = 0

    def place_module(self, mod: Module, info: LoadInfo) -> None:
        region, offset = info.placement[info.index.mod]
        size = self.image.btf.struct("module").size  # whatever the section's size: the kernel uses all of it
        self.memory.write(mod.address, bytes(region.data[offset : offset + size]))
        view = self.of(mod)
        for kind, part in mod.regions.items():
            if kind in _LAYOUTS:
                name = _LAYOUTS[kind]
                view.set(f"{name}.base", part.base)
                view.set(f"{name}.size", part.size)
                view.set(f"{name}.text_size", part.text_size)
                view.set(f"{name}.ro_size", part.ro_size)
                view.set(f"{name}.ro_after_init_size", part.ro_after_init_size)
            else:
                index = self.image.btf.enumerators("mod_mem_type")[_TYPES[kind]]
                view.set(f"mem[{index}].base", part.base)
                view.set(f"mem[{index}].size", part.size)

    def struct_module(self, mod: Module) -> bytes:
        return self.memory.read(mod.address, self.image.btf.struct("module").size)

    def commit(self, mod: Module, info: LoadInfo) -> None:  # noqa: ARG002
        for region in mod.regions.values():
            if region.base:
                self.memory.write(region.base, bytes(region.data))

    # -- per-CPU space --------------------------------------------------------------------------------
    def percpu_modalloc(self, mod: Module, size: int, align: int) -> int:
        if self.call.has("__alloc_reserved_percpu"):
            offset = self.call("__alloc_reserved_percpu", size, align)
        else:
            offset = self.call("pcpu_alloc_noprof", size, align, 1, GFP_KERNEL)
        if offset:
            self.of(mod).set("percpu", offset)
            self.of(mod).set("percpu_size", size)
        return offset

    def percpu_modcopy(self, mod: Module, data: bytes) -> None:
        offsets = self.symbol("__per_cpu_offset")
        for cpu in range(at_most(self.memory.u32(self.symbol("nr_cpu_ids")), _MOST_PROCESSORS, "processors")):
            where = mod.percpu + self.memory.u64(offsets + 8 * cpu)
            self.memory.write(where & ((1 << 64) - 1), data)

    def percpu_modfree(self, mod: Module) -> None:
        self.call("free_percpu", mod.percpu)


def _readable(fd: int) -> tuple[os.stat_result, int]:
    """Status and access mode of the file behind a descriptor of this process, if it is open for reading."""
    try:
        status = os.fstat(fd)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except (OSError, OverflowError, ValueError):
        raise KernelErrno(Errno.EBADF) from None
    mode = flags & os.O_ACCMODE
    if mode not in (os.O_RDONLY, os.O_RDWR) or flags & getattr(os, "O_PATH", 0):
        raise KernelErrno(Errno.EBADF)
    return status, mode


def _size_of_file(fd: int) -> int:
    """Bytes in the file, if ``finit_module`` would be allowed to read it."""
    status, mode = _readable(fd)
    if not stat.S_ISREG(status.st_mode):
        raise KernelErrno(Errno.EINVAL)
    if mode == os.O_RDWR or _open_for_writing(fd):
        raise KernelErrno(Errno.ETXTBSY)
    if not status.st_size:
        raise KernelErrno(Errno.EINVAL)
    if status.st_size > _INT_MAX:
        raise KernelErrno(Errno.EFBIG)
    return status.st_size


def _content(fd: int, size: int) -> bytes:
    """The whole file; EIO if it is shorter than it says, as files of sysfs are."""
    try:
        content = os.pread(fd, size, 0)
    except OSError as error:
        raise KernelErrno(error.errno or Errno.EIO) from error
    if len(content) != size:
        raise KernelErrno(Errno.EIO)
    return content


def _open_for_writing(fd: int) -> bool:
    """Whether anybody has the file open for writing: then no read lease on it is to be had."""
    set_lease = getattr(fcntl, "F_SETLEASE", None)
    if set_lease is None:
        return False
    try:
        fcntl.fcntl(fd, set_lease, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # not the owner, or a file system without leases: it cannot be known
    with suppress(OSError):
        fcntl.fcntl(fd, set_lease, fcntl.F_UNLCK)
    return False
