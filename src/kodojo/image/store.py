"""Where kernel images, their snapshots and the machine's state live on disk.

::

    ROOT/                     $KODOJO_STORE, else $XDG_DATA_HOME/kodojo, else ~/.local/share/kodojo
        images/NAME/          NAME is the release; RELEASE+headers for a kernel that is only described;
                              RELEASE+DIGEST, RELEASE+headers+DIGEST for another content of the same release
            description       a checked file: what this is, and where its parts are
            boot/             vmlinuz and config, copies in any case
            headers/          of headers and build trees what describes the kernel, copies, too
            lib/modules/      the module tree, if it came in a package; one given as a directory is
                              referred to where it is
            index/            what Image computed once from the above
            etc/, lib/firmware/, updates/ of the module tree
                              what `kodojo kernel install` brought (image/additions.py)
        headers/RELEASE-MACHINE/  what modules for a kernel are built against, unpacked (kodojo check --build)
        snapshots/IDENTITY/   of the kernel with this content
        machine/              the state that lasts from one command to the next
        current               the image that commands use when none is named

Readers take no lock: an image appears and goes by a rename. Files have mode 0600, directories 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kodojo.durable import (
    Progress,
    disk_error,
    lock,
    read_checked,
    write_atomically,
    write_checked,
)
from kodojo.errors import CorruptError, ImageError, InputError, KodojoError, StoreError
from kodojo.image.described.files import DescriptionFiles, describe_build
from kodojo.image.locate import KernelFiles, files_around, find_kernel_or_description, find_modules
from kodojo.image.store_input import check_overrides, check_readable, check_size
from kodojo.image.versions import version_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kodojo.image.additions import Addition, Given
    from kodojo.image.image import Image

__all__ = ["Progress", "Store", "lock", "read_checked", "write_atomically", "write_checked"]

_INCOMING = ".incoming-"
_HEADERS = "+headers"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
_PACKAGE_NAME = re.compile(r"\^?(linux-image|kernel-core)[\w.+~*?\[\]-]*(/[a-z][a-z0-9-]*)?")


class _Description(NamedTuple):
    """What ``images/NAME/description`` says. Paths are below ``images/NAME``, or absolute: referred to."""

    release: str
    vmlinuz: str  # empty for a kernel that is only described
    config: str | None
    modules: str | None
    source: str  # what was given to `kodojo kernel add`
    digest: str  # of names and contents of all parts
    package: str  # digest of the package files, empty if there were none
    identity: str  # Image.identity
    headers: str = ""  # the directory with Module.symvers of a kernel that is only described

    def pack(self) -> bytes:
        return json.dumps(self._asdict(), indent=1).encode() + b"\n"

    @classmethod
    def read(cls, directory: Path) -> _Description:
        path = directory / "description"
        hint = f"kodojo kernel remove {directory.name}, then add it again"
        try:
            return cls(**json.loads(read_checked(path, "image")))
        except (TypeError, ValueError) as error:
            raise CorruptError(f"{path}: damaged: {error}", hint=hint) from None
        except StoreError as error:
            error.hint = hint
            raise


class Store:
    """A directory with kernel images, snapshots and the machine's state.

    :param root: created when something is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images = root / "images"

    @classmethod
    def default(cls) -> Store:
        """The store of this user.

        :raises InputError: the user has no home directory, and ``KODOJO_STORE`` is not set.
        """
        chosen = os.environ.get("KODOJO_STORE")
        if chosen:
            return cls(Path(chosen).absolute())
        data = os.environ.get("XDG_DATA_HOME", "")
        if data.startswith("/"):  # the XDG specification has relative ones ignored
            return cls(Path(data, "kodojo"))
        try:
            return cls(Path.home() / ".local/share/kodojo")
        except RuntimeError:
            raise InputError("this user has no home directory", hint="set KODOJO_STORE to a directory") from None

    @property
    def machine_directory(self) -> Path:
        """Where the state of the current machine is kept; created by who writes there."""
        return self.root / "machine"

    @property
    def headers_directory(self) -> Path:
        """Where headers that modules are built against are kept, by release; created by who writes there."""
        return self.root / "headers"

    def snapshots_directory(self, image: Image) -> Path:
        """Where the snapshots of a kernel are kept, found by its content; created by who writes there."""
        return self._snapshots(image.identity)

    def _snapshots(self, identity: str) -> Path:
        return self.root / "snapshots" / identity[:32]

    def names(self) -> list[str]:
        """The names of all images, oldest release first, whether or not they can be opened."""
        try:
            found = [path.name for path in self._images.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_error(self._images, error, "read") from error
        return sorted(found, key=version_key)

    def images(self) -> list[Image]:
        """All images, newest release last.

        :raises StoreError: one of them is damaged.
        """
        return [self.open(name) for name in self.names()]

    def resolve(self, name: str | None = None) -> str:
        """The full name of an image: the current one (None), "newest", an exact name, or a unique beginning.

        :raises InputError: there is none, or several.
        """
        names = self.names()
        if not names:
            raise InputError(
                f"{self.root}: there is no kernel in the store yet",
                hint="kodojo kernel add (fetches the newest)",
            )
        if name is None:
            return self._current_of(names)
        if name == "newest":
            return _newest(names)
        beginning = [each for each in names if each.startswith(name)]
        # "6.1" is 6.1.0-56 rather than 6.12.3, as people count.
        counted = [each for each in beginning if not (name[-1:].isdigit() and each[len(name) :][:1].isdigit())]
        matching = [name] if name in names else counted or beginning
        if len({_plain(matching, each) for each in matching}) == 1:
            return _plain(matching, matching[0])
        if matching:
            raise InputError(f"{name}: could be any of {', '.join(matching)}", hint="give more of the name")
        raise InputError(
            f"{name}: no such kernel in the store {self.root}; there is {', '.join(names)}",
            hint="kodojo kernel add PACKAGE",
        )

    def open(self, name: str | None = None) -> Image:
        """Open an image by a name that :meth:`resolve` knows.

        :raises InputError: there is no such image; the message lists those there are.
        :raises StoreError: it is damaged, or the module tree that it refers to has gone.
        """
        name = self.resolve(name)
        directory = self._images / name
        description = _Description.read(directory)
        if description.headers:
            return _open_headers(directory, description, name)
        files = KernelFiles(
            vmlinuz=directory / description.vmlinuz,
            config=directory / description.config if description.config else None,
            modules=directory / description.modules if description.modules else None,
        )
        again = f"kodojo kernel remove {name}, then add it again"
        for path in (files.vmlinuz, files.config):
            if path is not None and not path.is_file():
                raise CorruptError(f"{path}: has gone", hint=again)
        if files.modules is not None and not files.modules.is_dir():
            raise StoreError(f"{files.modules}: the module tree of {name} is no longer there", hint=again)
        return _open_image(files, directory / "index")

    def current_name(self) -> str:
        """The name of the image that commands use when none is named: the newest if none was chosen."""
        return self.resolve(None)

    def current(self) -> Image:
        """The image that commands use when none is named."""
        return self.open(None)

    def set_current(self, name: str) -> None:
        """Make an image the one that commands use when none is named."""
        write_checked(self.root / "current", self.resolve(name).encode(), "current")

    def _current_of(self, names: list[str]) -> str:
        path = self.root / "current"
        chosen = read_checked(path, "current").decode() if path.exists() else ""
        return chosen if chosen in names else _newest(names)

    def add(
        self,
        source: Path | str | None = None,
        *,
        modules: Path | None = None,
        config: Path | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Add a kernel; the same content again is the same image.

        :param source: a .deb or .rpm, a directory of packages, an unpacked directory, a vmlinuz, the name of
            a package to fetch, or None: the distribution's newest kernel.
        :param modules: the module tree, if ``source`` has none or another is meant; referred to, not copied.
        :param config: the kernel's configuration, likewise; copied.
        :raises ImageError: the package or kernel is damaged, hostile or foreign.
        :raises InputError: something is not there, or nothing can be fetched.
        :raises StoreError: the disk is full or not writable. After any error the store is as it was.
        """
        from kodojo.image.package import packages_in, unpack  # noqa: PLC0415  (as in _obtain)

        check_overrides(modules, config)
        with self._incoming() as work:
            path = self._obtain(source, work / "fetched", progress)
            packages = packages_in(path)
            package = _digest_of(packages)
            if package and modules is None and config is None:
                known = self._find_package(package)
                if known is not None:
                    return self.open(known)
            directory = work / "image"
            with _messages_about(directory, path):
                if packages:
                    digest = unpack(path, directory, progress)
                    files = find_kernel_or_description(directory)
                else:
                    digest = ""
                    directory.mkdir(mode=0o700)
                    files = find_kernel_or_description(path) if path.is_dir() else _of_file(path)
                if isinstance(files, DescriptionFiles):
                    described = _describe_headers(files, directory, modules, config)
                    described = described._replace(source=str(source or path.name), package=package)
                    return self.open(self._place(directory, described))
                check_size(files.vmlinuz)
                image = _open_image(files._replace(modules=None), directory / "index")
                check_readable(image)
                files = _override(files, modules and find_modules(modules, image.release), config)
                description = _describe(image, files, directory, digest)
            description = description._replace(source=str(source or path.name), package=package)
            return self.open(self._place(directory, description))

    def _obtain(self, source: Path | str | None, destination: Path, progress: Progress | None) -> Path:
        # Most commands open images and add none: they need neither subprocesses nor archives.
        from kodojo.image.fetch import fetch_newest, fetch_package  # noqa: PLC0415

        if source is None:
            return fetch_newest(destination, progress)
        path = Path(source).absolute()
        if path.is_file() or path.is_dir():
            return path
        if not path.exists() and _PACKAGE_NAME.fullmatch(str(source)):
            return fetch_package(str(source), destination, progress)
        raise InputError(
            f"{source}: {'neither a file nor a directory' if path.exists() else 'no such file'}",
            hint="give a .deb, .rpm, directory or vmlinuz, or nothing: then the newest kernel is fetched",
        )

    def _find_package(self, digest: str) -> str | None:
        for name in self.names():
            with contextlib.suppress(KodojoError):  # a damaged image is not the same as this one
                if _Description.read(self._images / name).package == digest:
                    return name
        return None

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A directory to prepare an image in; what killed processes left of theirs is removed."""
        import shutil  # noqa: PLC0415  (as in _obtain, here and below)
        import tempfile  # noqa: PLC0415

        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._images.mkdir(mode=0o700, exist_ok=True)
                with lock(self.root / "lock"):
                    self._sweep()
                    work = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._images))
                    stack.callback(shutil.rmtree, work, ignore_errors=True)
                    descriptor = _lock_directory(work)
                    stack.callback(os.close, descriptor)
            except OSError as error:
                raise disk_error(self.root, error) from error
            try:
                yield work
            except OSError as error:
                raise disk_error(self._images, error) from error

    def _sweep(self) -> None:
        import shutil  # noqa: PLC0415

        for path in self._images.glob(_INCOMING + "*"):
            with contextlib.suppress(OSError):  # it is in use, or another user's
                os.close(_lock_directory(path))
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, directory: Path, description: _Description) -> str:
        """Give a prepared image its name and place; that of the same content, if there is one."""
        write_checked(directory / "description", description.pack(), "image")
        release, digest = description.release, description.digest
        with lock(self.root / "lock"):
            release += _HEADERS if description.headers else ""
            for name in (release, f"{release}+{digest[:8]}"):
                place = self._images / name
                try:
                    same = place.exists() and _Description.read(place).digest == digest
                except StoreError:  # damaged: the new one takes its place
                    self._discard(place)
                    same = False
                if same:
                    return name
                if not place.exists():
                    directory.rename(place)
                    return name
        raise StoreError(f"{place}: another image has this name", hint=f"kodojo kernel remove {name}")

    def _discard(self, place: Path) -> None:
        """Remove a directory of the store: its name at once, its content then."""
        import shutil  # noqa: PLC0415
        import tempfile  # noqa: PLC0415

        grave = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._images))
        place.rename(grave / "image")
        shutil.rmtree(grave, ignore_errors=True)

    def remove(self, name: str) -> str:
        """Remove an image, the headers fetched for it, and its snapshots unless another image has the same kernel.

        :return: its full name.
        :raises InputError: there is no such image.
        :raises StoreError: the store cannot be written.
        """
        import shutil  # noqa: PLC0415

        name = self.resolve(name)
        try:
            with lock(self.root / "lock"):
                identity = self._identity(name)
                others = {self._identity(each) for each in self.names() if each != name}
                self._discard(self._images / name)
                if identity and identity not in others:
                    shutil.rmtree(self._snapshots(identity), ignore_errors=True)
                for headers in self.headers_directory.glob(f"{name}-*"):
                    shutil.rmtree(headers, ignore_errors=True)
        except OSError as error:
            raise disk_error(self._images / name, error, "remove") from error
        return name

    # -- what a person adds to a kernel: image/additions.py ----------------------------------------------
    def install(self, name: str | None, files: Iterable[Given]) -> Image:
        """Add modules, configuration and firmware to a kernel, whose identity and snapshots stay what they are.

        :param files: of :func:`kodojo.image.additions.given_modules` and its like.
        :raises InputError: there is no such kernel, it is only described, or its module tree is not the store's own.
        :raises StoreError: the store cannot be written; nothing was added then.
        """
        name = self.resolve(name)
        with lock(self.root / "lock"):
            self._take_over_tree(name)
            image = self.open(name)
            image.additions.install(files)
        return self.open(name)

    def uninstall(self, name: str | None, words: Iterable[str]) -> tuple[Addition, ...]:
        """Remove what :meth:`install` brought, by the names of modules and files; what was removed.

        :raises InputError: there is no such kernel, or nothing of that name was installed.
        """
        name = self.resolve(name)
        with lock(self.root / "lock"):
            return self.open(name).additions.uninstall(words)

    def _take_over_tree(self, name: str) -> None:
        """See to it that a kernel has a module tree in the store."""
        description = _Description.read(self._images / name)
        if description.headers:
            raise InputError(
                f"{name}: is only described, and loads no modules", hint="install into a kernel that can be booted"
            )
        if description.modules is None:
            description = description._replace(modules=f"lib/modules/{description.release}")
            for parent in ("lib", "lib/modules", description.modules):
                (self._images / name / str(parent)).mkdir(mode=0o700, exist_ok=True)
            write_checked(self._images / name / "description", description.pack(), "image")
        elif Path(description.modules).is_absolute():
            raise InputError(
                f"{name}: its module tree is {description.modules}, outside of the store, and is not written to",
                hint="load the files from where they are (kodojo modprobe ./FILE.ko finds what lies beside it),"
                " or add the kernel from its package",
            )

    def _identity(self, name: str) -> str:
        try:
            return _Description.read(self._images / name).identity
        except StoreError:
            return ""


def _newest(names: list[str]) -> str:
    """The newest kernel, described ones only if there are no others: those cannot be booted."""
    whole = [name for name in names if _HEADERS not in name]
    return _plain(names, (whole or names)[-1])


def _plain(names: list[str], name: str) -> str:
    """RELEASE rather than RELEASE+headers or RELEASE+DIGEST, if there is one: what is meant by who says neither."""
    for part in (r"\+[0-9a-f]{8}", re.escape(_HEADERS)):
        shorter = re.sub(f"{part}$", "", name)
        if shorter in names:
            name = shorter
    return name


def _open_headers(directory: Path, description: _Description, name: str) -> Image:
    from kodojo.image.described.image import DescribedImage  # noqa: PLC0415  (rarely needed)

    files = describe_build(directory / description.headers)
    if files is None:
        again = f"kodojo kernel remove {name}, then add it again"
        raise CorruptError(f"{directory / description.headers}: its Module.symvers has gone", hint=again)
    if description.modules:
        files = files._replace(modules=directory / description.modules)
    return DescribedImage(files, directory / "index")


def _of_file(path: Path) -> KernelFiles | DescriptionFiles:
    described = describe_build(path.parent) if "symvers" in path.name else None
    return described or files_around(path)


def _open_image(files: KernelFiles, index: Path) -> Image:
    from kodojo.image.image import Image  # noqa: PLC0415  (Image.open looks into the store: it imports this)

    return Image.from_files(files.vmlinuz, files.modules, files.config, index, additions_directory=index.parent)


def _lock_directory(path: Path) -> int:
    """An open descriptor that marks a directory as in use.

    :raises OSError: it is in use already.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _override(files: KernelFiles, modules: Path | None, config: Path | None) -> KernelFiles:
    return files._replace(modules=modules or files.modules, config=config or files.config)


def _digest_of(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_file_digest(path))
    return digest.hexdigest() if paths else ""


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _describe(image: Image, files: KernelFiles, directory: Path, unpacked: str) -> _Description:
    """Bring what is not yet below ``directory`` there, module trees excepted, and say where everything is."""
    release = image.release
    if not _SAFE_NAME.fullmatch(release):
        raise ImageError(f"{files.vmlinuz}: its release {release!r} is no name of a kernel")
    vmlinuz = _bring(files.vmlinuz, directory, f"boot/vmlinuz-{release}")
    config = _bring(files.config, directory, f"boot/config-{release}") if files.config else None
    modules = None
    if files.modules is not None and files.modules.is_relative_to(directory):
        modules = str(files.modules.relative_to(directory))
    elif files.modules is not None:
        modules = str(files.modules.resolve())
    digest = hashlib.sha256(f"{unpacked}\0{modules}\0".encode("utf-8", "surrogateescape"))
    for part in (vmlinuz, config):
        digest.update(_file_digest(directory / part) if part else b"")
    return _Description(release, vmlinuz, config, modules, "", digest.hexdigest(), "", image.identity)


def _describe_headers(
    files: DescriptionFiles, directory: Path, modules: Path | None, config: Path | None
) -> _Description:
    """Bring what describes a kernel below ``directory``: all of its headers, as one tree."""
    import shutil  # noqa: PLC0415

    from kodojo.image.described.image import DescribedImage  # noqa: PLC0415  (rarely needed)

    parts = files.parts() | ({".config": config} if config is not None else {})
    for name, path in parts.items():
        _copy(path, directory / "headers" / name)
    shutil.rmtree(directory / "usr", ignore_errors=True)  # what was unpacked has been copied
    described = describe_build(directory / "headers")
    image = DescribedImage(described or files, directory / "index")
    if "release" not in image.describes:
        raise ImageError(
            f"{directory}: nothing says which release this is, and so it cannot have a name",
            hint="add the headers as their package has them, or with include/generated/utsrelease.h of the build",
        )
    if not _SAFE_NAME.fullmatch(image.release):
        raise ImageError(f"{directory}: its release {image.release!r} is no name of a kernel")
    tree = find_modules(modules, image.release) if modules is not None else files.modules
    return _Description(
        release=image.release,
        vmlinuz="",
        config=None,
        modules=str(tree.resolve()) if tree is not None else None,
        source="",
        digest=image.identity,
        package="",
        identity=image.identity,
        headers="headers",
    )


def _bring(path: Path, directory: Path, name: str) -> str:
    """Copy a file to ``directory/name`` unless it is in the directory already; where it is then."""
    if path.is_relative_to(directory):
        return str(path.relative_to(directory))
    _copy(path, directory / name)
    return name


def _copy(path: Path, target: Path) -> None:
    import shutil  # noqa: PLC0415

    for parent in reversed(target.parents):
        parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with path.open("rb") as source, os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


@contextlib.contextmanager
def _messages_about(directory: Path, source: Path) -> Iterator[None]:
    """Let errors about what the user gave name that, not the directory where it is being prepared."""
    try:
        yield
    except (ImageError, InputError) as error:
        error.message = error.message.replace(str(directory), str(source))
        error.args = (error.message, *error.args[1:])
        raise
