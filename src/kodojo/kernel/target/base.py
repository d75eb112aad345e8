"""What every part of the booted target needs."""

from __future__ import annotations

from kodojo.errors import encode
from kodojo.image.image import Image
from kodojo.kernel.calls import Calls
from kodojo.kernel.faults import Faults
from kodojo.kernel.memory import KernelMemory, StructView
from kodojo.kernel.printk import Printk
from kodojo.kernel.tasks import Tasks
from kodojo.kernel.user import UserSpace
from kodojo.loader.target import FileLoad, KernelErrno, Memory, Module, Region

__all__ = ["GFP_KERNEL", "GFP_NOWARN", "Part", "as_int", "pointer_or_errno"]

GFP_KERNEL = 0xCC0  # include/linux/gfp_types.h: __GFP_RECLAIM | __GFP_IO | __GFP_FS
GFP_NOWARN = 0x2000
_FIRST_ERROR_POINTER = (1 << 64) - 4095
_STACK_STRING = 1024
_RECORD_LIMIT = 1024  # no record is longer; the kernel itself cuts it, sooner where it counts the prefix


def as_int(value: int) -> int:
    """The low half of a register as the C type ``int``."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def pointer_or_errno(value: int) -> int:
    """A pointer; KernelErrno for an error pointer (``IS_ERR``)."""
    if value >= _FIRST_ERROR_POINTER:
        raise KernelErrno((1 << 64) - value)
    return value


class Part:
    """A booted kernel, as the parts of :class:`~kodojo.kernel.target.BootedTarget` see it.

    :param file: a ``struct file`` of the root file system, for hooks that want one.
    :param once: keys of the messages that were printed since boot and are printed once only.
    """

    runs_code = True

    def __init__(
        self,
        image: Image,
        calls: Calls,
        memory: KernelMemory,
        user: UserSpace,
        printk: Printk,
        tasks: Tasks,
        faults: Faults,
        file: int,
        once: set[str],
    ) -> None:
        self.image = image
        self.call = calls
        self.memory = memory
        self.user = user
        self.log = printk
        self.tasks = tasks
        self.faults = faults
        self.file = file
        self.once = once
        self.files_being_loaded: dict[tuple[int, int], FileLoad] = {}

    @property
    def scratch(self) -> int:
        """A page of kernel memory for answers, of whoever the load is for."""
        place = self.call.place
        if not place.kernel_scratch:
            get_pages = self.call.first("__get_free_pages", "get_free_pages_noprof")
            place.kernel_scratch = self.call(get_pages, GFP_KERNEL, 0)
            if not place.kernel_scratch:
                raise KernelErrno(12)
        return place.kernel_scratch

    def symbol(self, name: str) -> int:
        """Address of a function or variable."""
        return self.call.address(name)

    def of(self, mod: Module) -> StructView:
        """The module's ``struct module``."""
        return self.memory.struct("module", mod.address)

    def _regions(self, view: StructView) -> dict[Memory, Region]:
        """The regions of module memory, as ``struct module`` has them."""
        btf = self.image.btf
        if btf.struct("module").has("core_layout"):
            parts = {Memory.CORE: "core_layout", Memory.INIT: "init_layout"}
        else:
            numbers = btf.enumerators("mod_mem_type")
            parts = {kind: f"mem[{numbers['MOD_' + kind.name]}]" for kind in Memory if "MOD_" + kind.name in numbers}
        return {
            kind: Region(kind, size=view.get(f"{name}.size"), base=view.get(f"{name}.base"))
            for kind, name in parts.items()
        }

    def call_int(self, function: str | int, *arguments: int | bytes | str) -> int:
        return as_int(self.call(function, *arguments))

    def checked(self, function: str | int, *arguments: int | bytes | str) -> None:
        """Call a function that returns 0 or a negative errno."""
        value = self.call_int(function, *arguments)
        if value < 0:
            raise KernelErrno(-value)

    def packed(self, type_name: str, members: dict[str, int]) -> bytes:
        """A C structure with these members, the others 0. Members that it has not are left out."""
        struct = self.image.btf.struct(type_name)
        content = bytearray(struct.size)
        for path, value in members.items():
            if struct.has(path.partition(".")[0]):
                field = struct.field(path)
                content[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
        return bytes(content)

    def kmalloc(self, size: int) -> int:
        """``kmalloc(size, GFP_KERNEL)``; KernelErrno(ENOMEM) where the kernel has none."""
        address = self.call(self.call.first("__kmalloc", "__kmalloc_noprof"), size, GFP_KERNEL)
        if not address:
            raise KernelErrno(12)
        return address

    def kfree(self, address: int) -> None:
        if self.call.stopped is None:  # else we are on the way out
            self.call("kfree", address)

    def new_string(self, text: bytes) -> int:
        """A kmalloc'ed copy of ``text`` with a NUL."""
        address = self.kmalloc(len(text) + 1)
        self.memory.write(address, text + b"\0")
        return address

    def printk(self, level: int, text: str) -> None:
        self.with_string("_printk", (), b"\x01%d" % level + encode(text)[:_RECORD_LIMIT].replace(b"%", b"%%") + b"\n")

    def with_string(self, function: str, before: tuple[int, ...], text: bytes, *after: int) -> int:
        """Call a function with a string among its arguments, wherever there is room for it."""
        if len(text) < _STACK_STRING:
            return self.call(function, *before, text + b"\0", *after)
        address = self.new_string(text)
        try:
            return self.call(function, *before, address, *after)
        finally:
            self.kfree(address)
