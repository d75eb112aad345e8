from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kodojo.errors import ImageError, InputError, MachineFault, MissingInformationError
from kodojo.image.elf import ElfFile, Segment
from kodojo.kernel import boot
from kodojo.kernel.boot_x86_64 import X86_64Boot
from kodojo.kernel.calls import Place
from kodojo.machine.machine import Machine

MEMORY = 24 << 20
KERNEL = 16 << 20  # physical address of the kernel
VIRTUAL = KERNEL  # what runs here runs by the identity map


# -- the initramfs, read by Documentation/driver-api/early-userspace/buffer-format.rst -------------------------------
def read_cpio(archive: bytes) -> dict[str, tuple[int, int, bytes]]:
    """Name -> mode, number of links, content."""
    found: dict[str, tuple[int, int, bytes]] = {}
    inodes = set()
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, _uid, _gid, links, _mtime, size, *_devices, name_size, check = fields
        raw = archive[at + 110 : at + 110 + name_size]
        assert raw.endswith(b"\0")
        assert raw.count(b"\0") == 1
        data_at = at + 110 + name_size + -(110 + name_size) % 4
        content = archive[data_at : data_at + size]
        assert len(content) == size
        assert check == 0
        at = data_at + size + -size % 4
        if raw == b"TRAILER!!!\0":
            assert size == 0
            assert at == len(archive)
            return found
        assert inode not in inodes
        inodes.add(inode)
        found[raw[:-1].decode()] = (mode, links, content)


def test_initramfs():
    """The initramfs has an executable /init and the directories that file systems are mounted on."""
    files = read_cpio(boot.make_initramfs(boot.init_program(X86_64Boot())))
    directories = {name for name, (mode, _links, _content) in files.items() if mode == 0o040755}
    assert {"dev", "proc", "sys"} <= directories
    assert files["init"][0] == 0o100755
    assert set(files) - directories == {"init"}
    assert boot.make_initramfs(boot.init_program(X86_64Boot())) == boot.make_initramfs(
        boot.init_program(X86_64Boot())
    )


def test_init_program():
    """/init is a static x86-64 program whose entry is inside its only, executable segment."""
    program = read_cpio(boot.make_initramfs(boot.init_program(X86_64Boot())))["init"][2]
    elf = ElfFile(program, "init")
    (segment,) = elf.segments
    assert (elf.type, elf.machine) == (2, 62)  # ET_EXEC, EM_X86_64
    assert segment.flags & 1
    assert segment.vaddr <= elf.entry < segment.vaddr + segment.filesz
    assert segment.vaddr % 4096 == segment.offset % 4096
    assert segment.offset + segment.filesz <= len(program)
    assert segment.filesz <= segment.memsz
    assert struct.unpack_from("<4H", program, 52) == (64, 56, 1, 64)  # sizes of headers, number of segments
    assert elf.read(elf.entry, 2) == b"\xeb\xfe"  # jmp $


# -- entering a kernel -------------------------------------------------------------------------------------------
class Symbols(dict):
    def address(self, name: str) -> int:
        return self[name]


@dataclass
class PaperKernel:
    """A kernel of a few instructions."""

    code: bytes
    symbols: dict[str, int] = field(default_factory=dict)
    memsz: int = 0x100000
    setup_header: bytes = b"\x02" + b"h" * 0x7F
    release: str = "9.9-paper"
    sections: dict[str, SimpleNamespace] = field(default_factory=dict)

    @property
    def kallsyms(self) -> Symbols:
        return Symbols(self.symbols)

    @property
    def entry(self) -> int:
        return VIRTUAL

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (Segment(VIRTUAL, KERNEL, 0, len(self.code), self.memsz, 5),) if self.code else ()

    def segment_data(self, segment: Segment) -> bytes:
        return self.code

    @property
    def elf(self) -> SimpleNamespace:
        return SimpleNamespace(
            sections=self.sections, section_data=lambda name: memoryview(self.code), read=self._read
        )

    def _read(self, address: int, size: int) -> bytes:
        return self.code[address - VIRTUAL : address - VIRTUAL + size]


def loaded(code: str, cmdline: str = "quiet", memory: int = MEMORY, **options) -> Machine:
    machine = Machine.new(memory)
    boot.load(machine.cpu, PaperKernel(bytes.fromhex(code), **options), cmdline)
    return machine


def test_entry_state():
    """A kernel is entered in 64-bit mode at its entry, with the boot parameters in RSI and interrupts off."""
    # mov rax, rsi; mov ecx, 0xc0000080 (EFER); rdmsr: only 64-bit mode executes the first as such
    machine = loaded("48 89 f3 b9 80 00 00 c0 0f 32 90")
    machine.cpu.run(VIRTUAL + 10)
    assert machine.cpu.get("rbx") == 0x90000
    assert machine.cpu.get("rax") & 0x500 == 0x500  # long mode, enabled and active
    assert machine.cpu.get("rflags") & 0x200 == 0
    assert (machine.cpu.get("cs"), machine.cpu.get("ss"), machine.cpu.get("ds")) == (0x10, 0x18, 0x18)


def test_identity_map():
    """The first GiB is mapped onto itself, as far as there is memory."""
    machine = loaded("90")
    for address in (0, 0x1234, KERNEL, MEMORY - 1):
        assert machine.cpu.translate(address) == address
    assert machine.cpu.translate(MEMORY) is None


def parameters(machine: Machine) -> bytes:
    return machine.ram.read(machine.cpu.get("rsi"), 4096)


def test_setup_header():
    """The image's setup header stands where it was in the image; the boot loader says that it is one."""
    page = parameters(loaded("90"))
    assert page[0x1F1] == 2
    assert page[0x1F2:0x210] == b"h" * 0x1E
    assert page[0x210] == 0xFF
    assert page[0x22C:0x270] == b"h" * 0x44


def test_command_line():
    """The command line is where cmd_line_ptr says, with a NUL behind it."""
    machine = loaded("90", "quiet panic=-1 x=ä")
    (where,) = struct.unpack_from("<I", parameters(machine), 0x228)
    assert machine.ram.read(where, 19) == "quiet panic=-1 x=ä".encode()
    assert machine.ram.read(where + 19, 1) == b"\0"


def test_long_command_line():
    """A command line that the kernel would cut is refused."""
    loaded("90", "x" * 2047)
    with pytest.raises(InputError, match="2047"):
        loaded("90", "x" * 2048)


def test_memory_map():
    """The e820 map has two pieces of RAM: low memory, and all above one MiB."""
    page = parameters(loaded("90"))
    assert page[0x1E8] == 2
    pieces = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(2)]
    assert pieces == [(0, 0x9FC00, 1), (0x100000, MEMORY - 0x100000, 1)]


def test_initramfs_place():
    """The initramfs is at the end of memory, where the parameters say, and does not touch the kernel."""
    machine = loaded("90")
    where, size = struct.unpack_from("<II", parameters(machine), 0x218)
    assert machine.ram.read(where, size) == boot.make_initramfs(boot.init_program(X86_64Boot()))
    assert where % 4096 == 0
    assert where >= KERNEL + 0x100000
    assert where + size <= MEMORY


def test_parameters_do_not_overlap():
    """Parameters, command line, tables and descriptor table are in pages of their own, below the kernel."""
    machine = loaded("90", "x" * 2047)
    page = parameters(machine)
    (command,) = struct.unpack_from("<I", page, 0x228)
    table = machine.cpu.engine.get("gdtr")[1]
    starts = {machine.cpu.get("rsi"): 4096, command: 2048, machine.cpu.get("cr3"): 0x3000, table: 32}
    used = sorted((start, start + size) for start, size in starts.items())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(used))
    assert used[-1][1] <= 0x9FC00


@pytest.mark.parametrize("memsz", [MEMORY - KERNEL, MEMORY], ids=["no room for the initramfs", "no room"])
def test_too_little_memory(memsz):
    """A kernel that does not fit into the memory is told before it is started."""
    with pytest.raises(InputError, match=r"24 MiB of memory are too small for 9\.9-paper"):
        loaded("90", memsz=memsz)


def test_kernel_without_content():
    """A kernel with nothing to load is broken."""
    with pytest.raises(ImageError, match="nothing to load"):
        loaded("")


def test_time_stamps_are_trapped():
    """RDTSC in the kernel's code is answered from the blocks executed, from the first instruction on."""
    sections = {
        ".text": SimpleNamespace(flags=4, address=VIRTUAL),
        ".data": SimpleNamespace(flags=3, address=0x5000),
    }
    machine = loaded("0f 31 0f 01 f9 90", sections=sections)
    machine.cpu.run(VIRTUAL + 5)
    assert machine.cpu.get("rax") < 1000
    assert machine.cpu._tsc_sites == {VIRTUAL, VIRTUAL + 2}


def test_command_line_has_the_base_first():
    """The user's words come last, so that they win."""
    assert boot.command_line("x86_64", "lpj=1 extra") == f"{X86_64Boot.command_line} lpj=1 extra"
    assert boot.command_line("x86_64") == X86_64Boot.command_line


# -- running to user space -----------------------------------------------------------------------------------------
NAMES = {"start_thread": VIRTUAL + 0x10, "syscall_exit_to_user_mode": VIRTUAL + 0x20, "panic": VIRTUAL + 0x30}


def kernel_code(first: str) -> str:
    """A kernel: what is first the test says, then start_thread and syscall_exit_to_user_mode."""
    start = bytes.fromhex(first).ljust(0x10, b"\x90")
    thread = bytes.fromhex("bf 00 80 00 00 bc 00 70 00 00").ljust(0x10, b"\x90")  # mov edi, 0x8000; mov esp, 0x7000
    leave = bytes.fromhex("eb ee").ljust(0x30, b"\xf4")  # jmp start_thread: whoever leaves comes back for PID 1
    return (start + thread + leave).hex()


def booted(first: str, progress=None, **symbols: int):
    code = kernel_code(first)
    machine = loaded(code)
    image = PaperKernel(bytes.fromhex(code), {**NAMES, **symbols})
    return machine, boot.run_to_user_space(machine.cpu, image, progress)


def test_resting_place():
    """The boot ends where PID 1 would leave: there are its stack and its trap frame."""
    machine, place = booted("90")
    assert place == Place(stack=0x7000, frame=0x8000)
    assert machine.cpu.get("rip") == NAMES["syscall_exit_to_user_mode"]


def test_leaving_before_the_start_does_not_count():
    """A helper that leaves for user space before PID 1 has been started is not PID 1."""
    _machine, place = booted(
        "31 ff 31 e4 e9 17 00 00 00"
    )  # xor edi, edi; xor esp, esp; jmp syscall_exit_to_user_mode
    assert place == Place(stack=0x7000, frame=0x8000)


def test_panic():
    """A kernel that panics while it boots is told, with its registers."""
    with pytest.raises(MachineFault, match=r"9\.9-paper: the kernel panicked") as caught:
        booted("bb 05 00 00 00 e9 26 00 00 00")  # mov ebx, 5; jmp panic
    assert caught.value.registers["rbx"] == 5


def test_no_breakpoint_stays():
    """A kernel that has booted may call what was watched during the boot."""
    machine, _place = booted("90")
    machine.cpu.set("rip", NAMES["panic"])
    machine.cpu.write(NAMES["panic"], b"\x90\x90")
    machine.cpu.run(NAMES["panic"] + 1)


def test_progress():
    """Progress is told as shares of the initcalls that have begun, from 0 up to 1."""
    # The table of initcalls is in the kernel's code here, relative to each entry: it names VIRTUAL, VIRTUAL + 1.
    table = VIRTUAL + 0x40
    code = bytearray.fromhex(kernel_code("90"))
    code[0x40:0x48] = struct.pack("<ii", -0x40, -0x44 + 1)
    symbols = {**NAMES, "__initcall_start": table, "__initcall_end": table + 8}
    machine = Machine.new(MEMORY)
    image = PaperKernel(bytes(code), symbols)
    boot.load(machine.cpu, image, "")
    told: list[float] = []
    boot.run_to_user_space(machine.cpu, image, told.append)
    assert told == [0.0, 0.5]


def test_a_kernel_that_cannot_be_booted():
    """What a boot needs and the kernel has not is named, with a kernel that can be booted."""
    symbols = {"panic": 1, "start_thread": 2, "syscall_exit_to_user_mode": 3}
    image = SimpleNamespace(release="9.9", architecture="x86_64", kallsyms=symbols)
    boot.check_bootable(image)
    for name in list(symbols):
        image.kallsyms = {other: 1 for other in symbols if other != name}
        with pytest.raises(MissingInformationError, match=rf"9\.9: .*cannot boot .*{name}") as caught:
            boot.check_bootable(image)
        assert "kodojo kernel add linux-image-" in caught.value.hint
