"""``kodojo depmod``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, json_option, kernel_option, pass_app
from kodojo.cli.habits import version_option
from kodojo.errors import InputError, KodojoError, encode
from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.image.depmod_config import DepmodConfig
    from kodojo.image.module_search import SearchedFile
    from kodojo.image.tree import ModuleTree
    from kodojo.kmod.depmod import Graph, KernelSymbols
    from kodojo.kmod.depmod.output import Output

__all__ = ["depmod"]

_VERSION = re.compile(r"\s*[+-]?\d+\.\s*[+-]?\d")
_FATAL = 1
_REMARKS_FROM = 2  # -vv


@click.command(short_help="Write modules.dep and the other lists of a module tree.")
@click.argument("words", nargs=-1, metavar="[RELEASE [FILE...]]")
@click.option("-a", "--all", "every", is_flag=True, help="Look at all modules of the tree. [unless FILEs are given]")
@click.option("-A", "--quick", is_flag=True, help="Do nothing if no module is newer than modules.dep.")
@click.option("-b", "--basedir", metavar="ROOT", help="Work on ROOT/lib/modules/RELEASE.")
@click.option("-m", "--moduledir", default="lib/modules", metavar="DIR", help="Not lib/modules, but DIR, in ROOT.")
@click.option("-o", "--outdir", metavar="ROOT", help="Write to this ROOT.")
@click.option(
    "-C", "--config", "paths", multiple=True, metavar="PATH", help="Read this file or directory, not depmod.d."
)
@click.option("-e", "--errsyms", is_flag=True, help="Report symbols that nobody exports; needs -E or -F.")
@click.option("-E", "--symvers", metavar="FILE", help="The kernel's symbols and CRCs: Module.symvers.")
@click.option("-F", "--filesyms", metavar="FILE", help="The kernel's symbols: System.map.")
@click.option("-n", "--show", "--dry-run", "show", is_flag=True, help="Print the lists, and write nothing.")
@click.option("-P", "--symbol-prefix", "prefix", default="", metavar="C", help="A character that symbols begin with.")
@click.option("-v", "--verbose", count=True, help="Print which module needs which.")
@click.option("-w", "--warn", is_flag=True, help="Warn of what there is twice.")
@version_option
@kernel_option
@json_option
@pass_app
def depmod(app: App, /, words: tuple[str, ...], **options: Any) -> None:
    """Find out what the modules of a tree need, and write modules.dep and the other lists, as depmod does.

    The tree is ROOT/lib/modules/RELEASE, or that of a kernel of the store: RELEASE without -b, or --kernel. From then
    on modprobe goes by what was written.

    Exit status: 0 if it is done; 1 if the tree cannot be read or written, or modules need each other in a circle.
    """
    if not _Run(app, Wishes(**options)).work(words):
        raise click.exceptions.Exit(_FATAL)


@dataclass(frozen=True)
class Wishes:
    """The options."""

    every: bool
    quick: bool
    basedir: str | None
    moduledir: str
    outdir: str | None
    paths: tuple[str, ...]
    errsyms: bool
    symvers: str | None
    filesyms: str | None
    show: bool
    prefix: str
    verbose: int
    warn: bool


class _Run:
    def __init__(self, app: App, wishes: Wishes) -> None:
        self._app = app
        self._wishes = wishes
        self._messages: list[tuple[str, str]] = []

    def work(self, words: Sequence[str]) -> bool:
        """Do it all; whether all is well."""
        wishes = self._wishes
        if len(wishes.prefix) > 1:
            return self._fatal("-P only takes a single char")
        if wishes.basedir is not None and words and _VERSION.match(words[0]) is None:
            self._say("ERROR", f"Bad version passed {words[0]}")
            return False
        tree = self._tree(words[0] if words else None)
        root = Path(tree.root or "")
        try:
            kernel = self._kernel_symbols()
            if wishes.quick and (wishes.show or _is_up_to_date(tree)):
                return True
            files = None if wishes.every or len(words) < 2 or wishes.quick else _given(tree, words[1:])
        except InputError as error:
            return self._fatal(error.message)
        if files is None and not self._search(tree):
            return False
        graph = self._link(tree, files, kernel)
        if graph.cycles:
            for cycle in graph.cycles:
                self._say("ERROR", f"Cycle detected: {cycle}")
            self._say("ERROR", f"Found {graph.cyclic} modules in dependency cycles!")
            self._shape(graph, root, ())
            return False
        return self._output(graph, root, self._out_directory(root))

    # -- where ------------------------------------------------------------------------------------------
    def _tree(self, release: str | None) -> ModuleTree:
        from kodojo.image.depmod_config import CONFIG_DIRECTORIES, DepmodConfig  # noqa: PLC0415  not for --help
        from kodojo.image.tree import ModuleTree  # noqa: PLC0415

        wishes = self._wishes
        paths = [Path(path) for path in wishes.paths]
        if wishes.basedir is None:
            image = self._app.kernel_image() if release is None else self._app.open_kernel(release)
            tree = image.modules
            if tree.root is None:
                raise InputError(
                    f"{image.release}: this kernel came without a tree of modules",
                    hint="give the root of a system that has them: kodojo depmod -b ROOT RELEASE",
                )
            if not paths:
                self._note_config(tree.config)
                return tree
            release = image.release
            root = tree.root
        else:
            modules = Path(f"{os.path.abspath(wishes.basedir)}/{wishes.moduledir.strip('/')}")  # noqa: PTH100  as text
            release = release or _only_release(modules)
            root = modules / release
            paths = paths or [Path("/", name) for name in CONFIG_DIRECTORIES]  # the host's, as kmod has it
        config = DepmodConfig.read(paths, release)
        self._note_config(config)
        return ModuleTree(root, config)

    def _out_directory(self, root: Path) -> Path:
        """Where the files go."""
        if self._wishes.outdir is not None:
            return Path(self._wishes.outdir, self._wishes.moduledir.strip("/"), root.name).absolute()
        if self._wishes.basedir is None and not self._wishes.show and not root.is_relative_to(self._app.store.root):
            raise InputError(
                f"{root}: this tree is not in the store, which only refers to it; nothing was written",
                hint="write to it by its path: kodojo depmod -b ROOT RELEASE; or elsewhere: -o ROOT",
            )
        return root

    # -- the steps --------------------------------------------------------------------------------------
    def _note_config(self, config: DepmodConfig) -> None:
        for problem in config.problems:
            self._say("ERROR", problem)
        if self._wishes.verbose >= _REMARKS_FROM:
            for remark in config.remarks:
                self._say("INFO", remark)

    def _kernel_symbols(self) -> KernelSymbols | None:
        from kodojo.kmod.depmod import KernelSymbols  # noqa: PLC0415

        wishes = self._wishes
        found = None
        if wishes.symvers is not None:
            found = KernelSymbols.from_symvers(Path(wishes.symvers), encode(wishes.prefix))
        elif wishes.filesyms is not None:
            found = KernelSymbols.from_system_map(Path(wishes.filesyms), encode(wishes.prefix))
        elif wishes.errsyms:
            self._say("WARNING", "-e needs -E or -F")
        for problem in found.problems if found is not None else ():
            self._say("ERROR", problem)
        return found

    def _search(self, tree: ModuleTree) -> bool:
        """Look for the modules, and say what was left out; False if there is no tree."""
        from kodojo.image.module_search import EXCLUDED  # noqa: PLC0415

        try:
            found = tree.found
        except InputError as error:
            cause = error.message.rpartition(": ")[2]
            self._say("ERROR", f"could not open directory {tree.root}: {cause}")
            return self._fatal(f"could not search modules: {cause}")
        for path, why in found.passed_over:
            if why != EXCLUDED:
                self._say("ERROR", f"{path}: passed over: {why}")
        for file in found.shadowed:
            winner = found.modules[file.name].path
            self._say("WARNING", f"two files are called {file.name}: {winner} goes first, {file.path} is left out")
        return True

    def _link(self, tree: ModuleTree, files: dict[str, SearchedFile] | None, kernel: KernelSymbols | None) -> Graph:
        from kodojo.kmod.depmod import Wishes as Asked  # noqa: PLC0415
        from kodojo.kmod.depmod import link, scan  # noqa: PLC0415

        wishes = self._wishes
        unknown = wishes.errsyms and kernel is not None
        with self._app.bar() as bar:
            modules = scan(tree, files, checksums=unknown, progress=bar.update)
        order = Path(tree.root or "", "modules.order")
        if not order.exists():
            self._say("WARNING", f"could not open modules.order at {tree.root}: No such file or directory")
        for module in modules:
            if module.problem:
                self._say("ERROR", f"failed to load symbols from {module.file}: {module.problem}")
        asked = Asked(unknown, wishes.symvers is not None, wishes.verbose > 0, encode(wishes.prefix))
        graph = link(modules, kernel.crcs if kernel is not None else None, asked)
        if graph.needs and not self._app.json:
            self._app.out([clean(line) for line in graph.needs])
        for warning in graph.warnings:
            self._say("WARNING", warning)
        return graph

    def _output(self, graph: Graph, root: Path, directory: Path) -> bool:
        from kodojo.kmod.depmod import FILES, TEXTS, files_of, write_files  # noqa: PLC0415

        out = files_of(graph, root, TEXTS if self._wishes.show else FILES)
        self._note_output(out)
        if self._wishes.show:
            if not self._app.json:
                self._app.out_bytes(b"".join(out.files.values()))
            self._shape(graph, root, ())
            return True
        try:
            write_files(out.files, directory)
        except KodojoError as error:
            raise InputError(error.message, hint="write to a directory that you may write to: -o ROOT") from error
        self._shape(graph, root, [str(directory / name) for name in out.files])
        return True

    def _note_output(self, out: Output) -> None:
        duplicates = [("WARNING", text) for text in out.duplicates] if self._wishes.warn else []
        messages = [("WARNING", text) for text in out.warnings] + [("ERROR", text) for text in out.errors]
        for priority, text in duplicates + messages:
            self._say(priority, text)

    # -- saying -----------------------------------------------------------------------------------------
    def _say(self, priority: str, text: str) -> None:
        self._messages.append((priority, text))
        if not self._app.json:
            style = "yellow" if priority in ("WARNING", "INFO") else "red"
            lines = "\n".join(map(clean, text.split("\n")))
            self._app.say(f"{self._app.error_paint(f'depmod: {priority}:', 'bold', style)} {lines}")

    def _fatal(self, text: str) -> bool:
        self._say("FATAL", text)
        if self._app.json:
            raise InputError(text)
        return False

    def _shape(self, graph: Graph, root: Path, written: Sequence[str]) -> None:
        if self._app.json:
            self._app.out_json(
                {
                    "ok": not graph.cycles,
                    "tree": str(root),
                    "modules": {
                        module.name: {
                            "path": module.path,
                            "depends": [graph.modules[other].name for other in reversed(depends)],
                        }
                        for module, depends in zip(graph.modules, graph.depends, strict=True)
                    },
                    "cycles": graph.cycles,
                    "messages": [{"priority": priority, "text": text} for priority, text in self._messages],
                    "written": list(written),
                }
            )


def _only_release(modules: Path) -> str:
    """The one release that a root has modules of."""
    try:
        names = sorted(path.name for path in modules.iterdir() if path.is_dir())
    except OSError as error:
        raise InputError(f"{modules}: cannot be read: {error.strerror or error}") from error
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise InputError(f"{modules}: there are modules of these releases: {listed}", hint="name the one you mean")
    return names[0]


def _given(tree: ModuleTree, paths: Sequence[str]) -> dict[str, SearchedFile]:
    """Modules that are named one by one."""
    from kodojo.image.module_search import SearchedFile  # noqa: PLC0415
    from kodojo.image.tree import module_name  # noqa: PLC0415

    found = {}
    for path in paths:
        name = module_name(path)
        if not path.startswith("/"):
            raise InputError(f"{path}: not absolute path.")
        if name is None or not Path(path).is_file():
            raise InputError(
                f"could not create module {path}: {'No such file or directory' if name else 'no module'}"
            )
        inside = path.startswith(f"{tree.root}/")
        shown = path.removeprefix(f"{tree.root}/")
        base = os.path.basename(path)  # noqa: PTH119  as it was given
        found[name] = SearchedFile(name, shown, shown.removesuffix(base), base, inside)
    return found


def _is_up_to_date(tree: ModuleTree) -> bool:
    """Whether no module is newer than modules.dep (``depfile_up_to_date``)."""
    root = Path(tree.root or "")
    try:
        written = int((root / "modules.dep").stat().st_mtime)
        files = (*tree.found.modules.values(), *tree.found.shadowed)
        return all(int((root / file.path).stat().st_mtime) <= written for file in files)
    except (OSError, InputError):
        return False
