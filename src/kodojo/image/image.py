"""A kernel as files: everything that can be known about it without executing it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

import numpy as np

from kodojo.errors import ImageError, InputError, MissingInformationError, UnmodelledError, decode
from kodojo.image.architecture import architecture_of_module, describe_elf
from kodojo.image.elf import EM_AARCH64, ElfFile, Segment
from kodojo.image.index import Index, open_index
from kodojo.image.locate import KernelFiles
from kodojo.image.tree import ModuleTree

if TYPE_CHECKING:
    import os

    from kodojo.image.additions import Additions
    from kodojo.image.btf import Btf
    from kodojo.image.config import Config
    from kodojo.image.described.image import DescribedImage
    from kodojo.image.exports import Exports
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.image.keyring import Certificate
    from kodojo.image.oids import OidRegistry
    from kodojo.image.store import Store
    from kodojo.loader.verdict import Verdict

__all__ = ["FACTS", "Image"]

FACTS = frozenset(
    {
        "release", "architecture", "vermagic", "config", "exports", "module exports",
        "kernel", "symbols", "types", "keys", "messages",
    }
)  # fmt: skip
"""What may be known about a kernel.

``kernel``: its code; ``symbols``: addresses; ``types``: the layouts of its structures; ``keys``: whom it trusts;
``messages``: all that it can print; ``module exports``: those of the modules of its tree.
"""

_ANY_VARIABLE = "linux_banner"  # listed where variables are: CONFIG_KALLSYMS_ALL
_KEYS = "system_certificate_list"
_PACKAGES = (".deb", ".rpm")
# Where the kernel's linker scripts gather constant strings; those of init code stand in .init.data.
_TEXT_SECTIONS = (".rodata", "__init_rodata", ".init.rodata", ".init.data")


class Image:
    """A kernel that is there as files.

    Made by :meth:`open`, :meth:`from_directory` or :meth:`from_files`. Construction costs nothing; every
    property is found out when it is first asked for, and what takes long to find out is kept in an index
    on disk. An Image can be pickled, and used on both sides of a fork: it refers to its files.
    """

    def __init__(
        self, vmlinuz: Path, modules: Path | None, config: Path | None, index_directory: Path | None
    ) -> None:
        self.path = vmlinuz
        self._modules_directory = modules
        self._config_path = config
        self._index_directory = index_directory
        self._account: dict[str, None] | None = None
        self._additions_directory: Path | None = None

    # Opening

    @classmethod
    def open(cls, name_or_path: str | Path) -> Image:
        """Open a kernel by its name in the store, or by path.

        :param name_or_path: a directory (an unpacked package, headers, a build tree), a vmlinuz or vmlinux, a
            Module.symvers, a .deb or .rpm (which is added to the store), or a name in the store.
        :raises InputError: there is no such thing, or a directory holds none or several.
        :raises ImageError: it is no kernel that kodojo can use.
        :raises StoreError: the store or the index cannot be written.
        """
        path = Path(name_or_path)
        if path.is_dir():
            image = cls.from_directory(path)
        elif path.is_file() and path.suffix in _PACKAGES:
            return _store().add(path)
        elif path.is_file() and "symvers" in path.name:
            image = cls.from_directory(path.parent)
        elif path.is_file():
            image = cls._from_kernel(path)
        elif isinstance(name_or_path, str) and "/" not in name_or_path and path.suffix not in _PACKAGES:
            return _store().open(name_or_path)
        else:
            raise InputError(
                f"{name_or_path}: no such file or directory",
                hint="give a name that `kodojo kernel list` shows, or a .deb, .rpm, vmlinuz or directory",
            )
        _ = image._index
        return image

    @staticmethod
    def installed() -> list[Image]:
        """Return all images in the store."""
        return _store().images()

    @classmethod
    def from_directory(cls, root: Path, index_directory: Path | None = None) -> Image:
        """Take the kernel in a directory: an unpacked package, or the files side by side.

        Where there are only headers, or a build tree without its kernel, the image is a description
        (:class:`kodojo.image.described.DescribedImage`).

        :param index_directory: a directory for the image's index alone; None: one in the store's directory.
        :raises InputError: no kernel there, or several.
        """
        from kodojo.image.locate import find_kernel_or_description  # noqa: PLC0415

        files = find_kernel_or_description(Path(root).absolute())
        if isinstance(files, KernelFiles):
            return cls(files.vmlinuz, files.modules, files.config, index_directory)
        from kodojo.image.described.image import DescribedImage  # noqa: PLC0415

        return DescribedImage(files, index_directory)

    @classmethod
    def from_files(
        cls,
        vmlinuz: Path,
        modules: Path | None = None,
        config: Path | None = None,
        index_directory: Path | None = None,
        additions_directory: Path | None = None,
    ) -> Image:
        """Take a kernel and what belongs to it by path.

        :param modules: ``lib/modules/RELEASE``, or a root with that; without it the image has no modules.
        :param config: the kernel's ``.config``; without it, what is inside the kernel (``CONFIG_IKCONFIG``).
        :param index_directory: as in :meth:`from_directory`.
        :param additions_directory: of :attr:`additions`.
        """
        image = cls(
            Path(vmlinuz).absolute(),
            Path(modules).absolute() if modules is not None else None,
            Path(config).absolute() if config is not None else None,
            index_directory,
        )
        image._additions_directory = additions_directory
        return image

    @classmethod
    def _from_kernel(cls, vmlinuz: Path) -> Image:
        from kodojo.image.locate import files_around  # noqa: PLC0415

        files = files_around(vmlinuz.absolute())
        return cls(files.vmlinuz, files.modules, files.config, None)

    def __repr__(self) -> str:
        known = self.__dict__.get("_index")
        return f"<Image {decode(known.facts['release']) if known else self.path}>"

    def __getstate__(self) -> dict[str, Any]:
        kept = ("path", "_modules_directory", "_config_path", "_index_directory", "_account", "_additions_directory")
        return {name: self.__dict__[name] for name in kept}

    @cached_property
    def _index(self) -> Index:
        return open_index(self.path, self._index_directory)

    def _text(self, fact: str) -> str:
        return decode(self._index.facts[fact])

    # What it is

    kind: ClassVar[str] = "kernel"
    """``kernel``, or ``headers`` for one that is only described: it can be asked, but not booted."""

    @cached_property
    def describes(self) -> frozenset[str]:
        """Which facts there are (of :data:`FACTS`); asking for another one is a MissingInformationError.

        Of a whole kernel that is all, unless it was built without types, or with symbols for its functions only.
        """
        missing = {"module exports"} if self._build is None else set()
        if self.kallsyms.get(_KEYS) is None:  # no data is listed without CONFIG_KALLSYMS_ALL
            missing.add("keys")
        try:
            _ = self.btf
        except MissingInformationError:
            missing.add("types")
        return FACTS - missing

    @cached_property
    def _build(self) -> DescribedImage | None:
        """What the build tree says that the kernel lies in, or the ``Module.symvers`` beside it."""
        from kodojo.image.locate import build_around  # noqa: PLC0415

        files = build_around(self.path)
        if files is None:
            return None
        from kodojo.image.described.image import DescribedImage  # noqa: PLC0415

        return DescribedImage(files, self._index_directory and self._index_directory / "build")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is incomplete or contradictory in what the image was made of, in plain words."""
        build = self._build
        if build is None:
            return ()
        found = list(build.warnings)
        if "vermagic" in build.describes and build.release != self.release:
            found.append(f"{self.path.name}: of release {self.release}, but the build tree is of {build.release}")
        ours, theirs = (image.exports.get("module_layout") for image in (self, build))
        if ours is not None and theirs is not None and ours.crc != theirs.crc:
            found.append(f"Module.symvers: of another build than {self.path.name}: their checksums differ")
        return tuple(found)

    @property
    def release(self) -> str:
        """As ``uname -r`` says."""
        return self._text("release")

    @cached_property
    def architecture(self) -> str:
        """As ``uname -m`` says."""
        known = architecture_of_module(bytes(self.elf.data[:64]))
        if known is None:
            raise UnmodelledError(f"{self.path}: a kernel for {describe_elf(bytes(self.elf.data[:64]))}")
        return known.name

    @property
    def banner(self) -> str:
        """The first line of the kernel's log: ``Linux version ...``, without its newline."""
        return self._text("banner")

    @property
    def vermagic(self) -> str:
        """The string that a module's ``vermagic`` is compared with, its trailing blank included."""
        if not self._index.facts["vermagic"]:
            raise MissingInformationError(
                f"{self.path}: no vermagic in this kernel",
                hint="use a kernel that can load modules (CONFIG_MODULES=y)",
            )
        return self._text("vermagic")

    @property
    def build_id(self) -> str:
        """The GNU build id in hex, empty if the kernel has none."""
        return self._index.facts["build_id"].hex()

    @property
    def identity(self) -> str:
        """The SHA-256 of the vmlinux, in hex."""
        return self._text("identity")

    # The vmlinux

    @property
    def setup_header(self) -> bytes:
        """The bzImage from byte 0x1f1 to the end of its setup header; empty for a bare vmlinux."""
        return self._index.facts["setup_header"]

    @cached_property
    def elf(self) -> ElfFile:
        """The vmlinux."""
        return ElfFile(self._index.vmlinux, f"vmlinux of {self.release}")

    @property
    def entry(self) -> int:
        """The physical address of the first instruction."""
        return self.elf.entry

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What has to be loaded."""
        return self.elf.segments

    def segment_data(self, segment: Segment) -> memoryview:
        """Return the ``filesz`` bytes of a segment."""
        return self.elf.segment_data(segment)

    @cached_property
    def kallsyms(self) -> Kallsyms:
        """The kernel's symbols; where they are functions only, and variables that were found otherwise.

        :raises MissingInformationError: the kernel was built without ``CONFIG_KALLSYMS``.
        """
        listed = self._listed_symbols()
        tables = {"__ksymtab", ".BTF"} <= self.elf.sections.keys()
        if self.elf.machine == EM_AARCH64 and tables and listed.get(_ANY_VARIABLE) is None:
            from kodojo.image.variables import find_variables, index_arrays, variables_in  # noqa: PLC0415

            def make() -> Mapping[str, Any]:
                return index_arrays(find_variables(self.elf, listed, self.exports, self.btf))

            listed.add(variables_in(self._index.arrays("variables", make)))
        return listed

    def _listed_symbols(self) -> Kallsyms:
        from kodojo.image.kallsyms import Kallsyms  # noqa: PLC0415

        def make() -> Mapping[str, Any]:
            return Kallsyms.decode(self.elf).index_arrays()

        try:
            return Kallsyms(self._index.arrays("kallsyms", make))
        except MissingInformationError:
            raise
        except ImageError:  # the index is not of this kernel or version
            self._index.forget("kallsyms")
            return Kallsyms(self._index.arrays("kallsyms", make))

    @cached_property
    def exports(self) -> Exports:
        """What the kernel exports to modules."""
        from kodojo.image.exports import Exports  # noqa: PLC0415

        def make() -> Mapping[str, Any]:
            kallsyms = None if "__ksymtab" in self.elf.sections else self.kallsyms
            return Exports.decode(self.elf, kallsyms).index_arrays()

        try:
            return Exports(self._index.arrays("exports", make))
        except MissingInformationError:
            raise
        except ImageError:  # the index is not of this kernel or version
            self._index.forget("exports")
            return Exports(self._index.arrays("exports", make))

    @property
    def module_exports(self) -> Exports:
        """What the modules of the kernel's tree export, and which of them (``Export.owner``).

        :raises MissingInformationError: no ``Module.symvers`` tells it.
        """
        if self._build is not None:
            return self._build.module_exports
        raise MissingInformationError(
            f"{self.release}: no Module.symvers is there that lists what modules export",
            hint="look into the modules of the tree instead",
        )

    @cached_property
    def btf(self) -> Btf:
        """The kernel's types.

        :raises MissingInformationError: the kernel was built without ``CONFIG_DEBUG_INFO_BTF``.
        """
        from kodojo.image.btf import Btf  # noqa: PLC0415

        data = self._btf_data()
        try:
            return Btf(data, self._index.arrays("btf", lambda: Btf(data).index_arrays()))
        except ImageError:
            self._index.forget("btf")
            return Btf(data, self._index.arrays("btf", lambda: Btf(data).index_arrays()))

    def _btf_data(self) -> memoryview | bytes:
        if ".BTF" in self.elf.sections:
            return self.elf.section_data(".BTF")
        start, stop = self.kallsyms.get("__start_BTF"), self.kallsyms.get("__stop_BTF")
        if start is None or stop is None or stop <= start:
            raise MissingInformationError(
                f"{self.release}: the kernel does not describe its types (BTF)",
                hint="use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of distributions are",
            )
        return self.elf.read(start, stop - start)

    @cached_property
    def keyring(self) -> tuple[Certificate, ...]:
        """The certificates that the kernel trusts from birth, for modules too."""
        from kodojo.image.keyring import trusted_certificates  # noqa: PLC0415

        return trusted_certificates(self.elf, self.kallsyms)

    @cached_property
    def oids(self) -> OidRegistry:
        """The object identifiers that the kernel knows by name."""
        from kodojo.image.oids import OidRegistry  # noqa: PLC0415

        if self.kallsyms.get("oid_index") is None:  # no data is listed without CONFIG_KALLSYMS_ALL
            parts = (bytes(self.elf.segment_data(segment)) for segment in self.elf.segments)
            found = next(filter(None, map(OidRegistry.recognised, parts)), None)
            return found or OidRegistry.default()
        return OidRegistry.from_kernel(self.elf, self.kallsyms)

    def for_dry_load(self) -> Image:
        """The image as a loader asks it that runs nothing; what is not known is presumed, and noted."""
        self._account = {}
        return self

    def cannot_check(self, what: str) -> None:
        """A stage of the loader says what it cannot check because the image lacks a fact.

        :raises MissingInformationError: unless somebody keeps account (:meth:`for_dry_load`).
        """
        if self._account is None:
            raise MissingInformationError(f"{self.path}: {what}")
        self._account[what] = None

    @property
    def unmade(self) -> tuple[str, ...]:
        """What the stages of a loader could not check since :meth:`for_dry_load` (:meth:`cannot_check`)."""
        return tuple(self._account or ())

    def check(self, file: str | os.PathLike[str] | bytes, *args: str) -> Verdict:
        """Would this kernel load the file with these arguments? Nothing is booted and nothing runs.

        A refusal is an answer, not an exception (:func:`kodojo.loader.verdict.check`).
        """
        from kodojo.loader.verdict import check  # noqa: PLC0415  the loader knows images, not the reverse

        return check(self, file, *args)

    @property
    def index_directory(self) -> Path:
        """Where what was computed from this image once is kept."""
        return self._index.directory

    @property
    def files(self) -> KernelFiles:
        """Where its parts are: what :meth:`from_files` opens again."""
        return KernelFiles(self.path, self._config_path, self._modules_directory)

    @property
    def config_path(self) -> Path | None:
        """The config file; None if the kernel came without one."""
        return self._config_path

    @cached_property
    def config(self) -> Config:
        """What the kernel was built with; without a config file, what the kernel itself shows of it."""
        from kodojo.image.config import embedded_config, parse_config  # noqa: PLC0415

        if self._config_path is not None:
            try:
                return parse_config(self._config_path.read_text("utf-8", "replace"))
            except OSError as error:
                raise InputError(f"{self._config_path}: cannot be read: {error.strerror or error}") from error
        found = embedded_config(self._index.vmlinux, str(self.path))
        if found is None:
            from kodojo.image.inferred_config import InferredConfig  # noqa: PLC0415

            return InferredConfig(self)
        return found

    def has_text(self, text: bytes) -> bool:
        """Tell whether the text, such as a part of a message, is in the kernel's read-only or init data."""
        if text not in self._texts:
            self._texts[text] = self._find_text(text)
        return self._texts[text]

    def _find_text(self, text: bytes) -> bool:
        """What :meth:`has_text` says: from the index, if it was asked before; the same texts are again and again."""

        def make() -> Mapping[str, Any]:
            found = any(text in area for area in self._text_areas)
            return {"text": np.frombuffer(text, np.uint8), "found": np.array([found], np.uint8)}

        name = f"text-{crc32(text):08x}"
        answer = self._index.arrays(name, make)
        if bytes(answer.get("text", b"")) != text or not len(answer.get("found", ())):
            self._index.forget(name)  # it is about another text of that checksum
            answer = make()
        return bool(answer["found"][0])

    @cached_property
    def _texts(self) -> dict[bytes, bool]:
        return {}

    @cached_property
    def _text_areas(self) -> list[bytes]:
        """Copies of what may hold texts: the search in a mapping is many times slower than the copy."""
        elf = self.elf
        areas = [bytes(elf.section_data(name)) for name in elf.sections if name.startswith(_TEXT_SECTIONS)]
        return areas or [bytes(elf.segment_data(segment)) for segment in elf.segments]

    # The modules

    @cached_property
    def modules(self) -> ModuleTree:
        """The module tree by name: ``modules["dummy"].path``, ``.depends``; empty if the image has none."""
        if self._modules_directory is None:
            return ModuleTree(None)
        from kodojo.image.locate import find_modules  # noqa: PLC0415

        return ModuleTree(find_modules(self._modules_directory, self.release))

    @property
    def builtin(self) -> frozenset[str]:
        """The names of the modules that are built into the kernel."""
        return self.modules.builtin

    @property
    def additions(self) -> Additions:
        """What was installed for it (``kodojo kernel install``); nothing for a kernel that is not in the store."""
        from kodojo.image.additions import Additions  # noqa: PLC0415  most commands do not ask

        return Additions(self._additions_directory, self.modules.root)


def _store() -> Store:
    from kodojo.image.store import Store  # noqa: PLC0415

    return Store.default()
