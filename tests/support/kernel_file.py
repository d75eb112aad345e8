"""Writers of small kernels: an ELF file with the tables that a vmlinux has, and the bzImage around it."""

import struct
from dataclasses import dataclass, field

BASE = 0xFFFFFFFF81000000
OFFSET = 0x1000  # in the file, of what is at BASE
ALLOC, EXEC = 2, 4
TOKENS = [bytes((code,)) if 32 <= code < 127 else b"" for code in range(256)]
TOKENS[200:204] = [b"sym_", b"__pfx_", b"_lock", b"irq"]


@dataclass
class Section:
    name: str
    address: int
    data: bytes
    flags: int = ALLOC
    type: int = 1


@dataclass
class KernelWriter:
    """Sections one after the other in one PT_LOAD segment that begins at BASE."""

    machine: int = 62
    headers: bool = True
    sections: list[Section] = field(default_factory=list)
    end: int = BASE

    def add(self, name: str, data: bytes, align: int = 16, flags: int = ALLOC, kind: int = 1) -> int:
        """Append a section and return its address."""
        address = -(-self.end // align) * align
        self.sections.append(Section(name, address, data, flags, kind))
        self.end = address + len(data)
        return address

    def next(self, align: int = 16) -> int:
        """Return the address that the next section will have."""
        return -(-self.end // align) * align

    def elf(self) -> bytes:
        body = bytearray(self.end - BASE)
        for section in self.sections:
            start = section.address - BASE
            body[start : start + len(section.data)] = section.data
        names = b"\0" + b"".join(s.name.encode() + b"\0" for s in self.sections) + b".shstrtab\0"
        program = struct.pack("<IIQQQQQQ", 1, 5, OFFSET, BASE, 0x1000000, len(body), len(body) + 0x2000, 0x1000)
        file = bytearray(OFFSET) + body
        names_at = len(file)
        file += names
        file += bytes(-len(file) % 8)
        table_at = len(file)
        count = len(self.sections) + 2 if self.headers else 0
        if self.headers:
            file += self._section_headers(names, names_at)
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = struct.pack(
            "<HHIQQQIHHHHHH", 2, self.machine, 1, 0x1000000, 64, table_at if count else 0, 0, 64, 56, 1, 64, count,
            count - 1 if count else 0,
        )  # fmt: skip
        file[:64] = ident + header
        file[64 : 64 + 56] = program
        return bytes(file)

    def _section_headers(self, names: bytes, names_at: int) -> bytes:
        rows = [(0,) * 10]
        for s in self.sections:
            name = names.index(b"\0" + s.name.encode() + b"\0") + 1
            rows.append((name, s.type, s.flags, s.address, OFFSET + s.address - BASE, len(s.data), 0, 0, 1, 0))
        rows.append((names.index(b"\0.shstrtab\0") + 1, 3, 0, 0, names_at, len(names), 0, 0, 1, 0))
        return b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)


@dataclass
class KallsymsWriter:
    """The tables that scripts/kallsyms.c writes.

    :param symbols: (type, name, address), in order of address.
    :param order: ``addresses-first`` (before 6.4) or ``addresses-last``; ``seqs``: with kallsyms_seqs_of_names.
    :param encoding: ``percpu`` (CONFIG_KALLSYMS_ABSOLUTE_PERCPU), ``relative`` or ``absolute`` (64-bit).
    :param endian: ``<`` or ``>``. :param word: the size of an address.
    """

    symbols: list[tuple[str, str, int]]
    order: str = "addresses-first"
    encoding: str = "percpu"
    seqs: bool = False
    base: int = BASE
    endian: str = "<"
    word: int = 8

    def write(self) -> bytes:
        names, markers = self._names()
        tables = b"".join(token + b"\0" for token in TOKENS)
        index, at = b"", 0
        for token in TOKENS:
            index += struct.pack(self.endian + "H", at)
            at += len(token) + 1
        count = struct.pack(self.endian + "I", len(self.symbols))
        seqs = [bytes(b for i in range(len(self.symbols)) for b in (i >> 16 & 255, i >> 8 & 255, i & 255))]
        seqs = seqs if self.seqs else []
        if self.order == "addresses-first":
            parts = [*self._addresses(), count, names, markers, *seqs, tables, index]
        else:
            parts = [count, names, markers, tables, index, *self._addresses(), *seqs]
        return b"".join(part + bytes(-len(part) % self.word) for part in parts)

    def _names(self) -> tuple[bytes, bytes]:
        out, markers = bytearray(), b""
        for number, (kind, name, _) in enumerate(self.symbols):
            if number % 256 == 0:
                markers += struct.pack(self.endian + "I", len(out))
            codes = self._compress((kind + name).encode())
            size = len(codes)
            out += bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
            out += codes
        return bytes(out), markers

    @staticmethod
    def _compress(text: bytes) -> bytes:
        for code in range(200, 204):
            text = text.replace(TOKENS[code], bytes((code,)))
        return text

    def _addresses(self) -> list[bytes]:
        if self.encoding == "absolute":
            return [b"".join(struct.pack("<Q", address) for _, _, address in self.symbols)]
        offsets = []
        for _, _, address in self.symbols:
            relative = address - self.base
            if self.encoding == "percpu":
                relative = address if address < 1 << 31 else self.base - 1 - address
            offsets.append(relative & 0xFFFFFFFF)
        base = self.base.to_bytes(self.word, "little" if self.endian == "<" else "big")
        return [struct.pack(f"{self.endian}{len(offsets)}I", *offsets), base]


def export_tables(writer: KernelWriter, exports: list[tuple[str, int, int, bool, str | None]]) -> None:
    """Add ``__ksymtab`` and the like; each export is name, address, CRC, GPL-only, namespace."""
    strings = {}
    blob = b""
    for text in [e[0] for e in exports] + [e[4] for e in exports if e[4] is not None]:
        strings[text] = len(blob)
        blob += text.encode() + b"\0"
    strings_at = writer.add("__ksymtab_strings", blob)
    for suffix, gpl in (("", False), ("_gpl", True)):
        chosen = sorted((e for e in exports if e[3] == gpl), key=lambda e: e[0])
        at = writer.next(4)
        table = b""
        for name, address, _, _, namespace in chosen:
            here = at + len(table)
            space = 0 if namespace is None else strings_at + strings[namespace] - here - 8
            table += struct.pack("<iii", address - here, strings_at + strings[name] - here - 4, space)
        writer.add("__ksymtab" + suffix, table, 4)
        writer.add("__kcrctab" + suffix, b"".join(struct.pack("<I", e[2]) for e in chosen), 4)


def bzimage(payload: bytes, protocol: int = 0x20F) -> bytes:
    """A bzImage with two setup sectors and the payload at 0x40 of its protected-mode part."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<II", setup, 0x248, 0x40, len(payload))
    return bytes(setup) + bytes(0x40) + payload + bytes(64)


RELEASE = "9.8.7-test"
VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions "
BANNER = f"Linux version {RELEASE} (who@where) (gcc 99) #1 SMP PREEMPT_DYNAMIC never"
BUILD_ID = bytes(range(20))


def small_kernel(*, kallsyms: bool = True, headers: bool = True) -> bytes:
    """A vmlinux with everything that an Image asks for; 600 symbols, ``printk`` and ``gpl_only`` exported."""
    writer = KernelWriter(headers=headers)
    text = writer.add(".text", b"\x90" * 0x4000, 4096, ALLOC | EXEC)
    banner = BANNER.encode() + b"\n\0"
    template = banner.replace(b"#1 SMP", b"# SMP")
    rodata = writer.add(".rodata", template + banner + VERMAGIC.encode() + b"\0only in rodata\0")
    symbols = [("A", f"percpu_{i}", 16 * i) for i in range(3)]
    symbols += [("T", "_text", text), ("T", "_stext", text)]
    symbols += [("t", f"sym_{i}", text + 16 * i) for i in range(1, 600)]
    symbols += [("t", "twice", text + 0x3000), ("T", "printk", text + 0x3010), ("t", "twice", text + 0x3020)]
    symbols += [("T", "gpl_only", text + 0x3030), ("D", "linux_banner", rodata + len(template))]
    exports = [
        ("printk", text + 0x3010, 0xDEADBEEF, False, None),
        ("sym_7", text + 16 * 7, 7, False, "SPACE"),
        ("gpl_only", text + 0x3030, 1, True, ""),
    ]
    export_tables(writer, exports)
    for section in writer.sections:
        if section.name.startswith(("__ksymtab", "__kcrctab")) and section.name != "__ksymtab_strings":
            symbols.append(("D", f"__start_{section.name}", section.address))
            symbols.append(("D", f"__stop_{section.name}", section.address + len(section.data)))
    note = struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID
    writer.add(".notes", struct.pack("<III", 6, 2, 9) + b"Linux\0\0\0ab\0\0" + note)
    symbols.append(("B", "_end", writer.next() + 0x10000))
    if kallsyms:
        writer.add(".rodata.kallsyms", KallsymsWriter(sorted(symbols, key=lambda s: s[2])).write(), 64)
    return writer.elf()
