"""The rules of the house (see the contributor's guide), as far as a program can judge them."""

from __future__ import annotations

import ast
import re
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "kodojo"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# -- who may import whom ----------------------------------------------------------------------------------

# Rooms (packages and single files of kodojo), and those that they may import from.
ARROWS = {
    "errors": set(),
    "durable": {"errors"},
    "image": {"errors", "durable"},
    "machine": {"errors", "durable"},
    "loader": {"image", "errors"},
    "kernel": {"machine", "image", "errors", "durable", "loader", "kmod"},
    "kmod": {"image", "errors", "durable"},
    "check": {"loader", "kmod", "image", "errors", "durable"},
    "lab": {"kernel", "loader", "machine", "image", "errors", "durable"},
    "report": {"check", "lab", "kmod", "kernel", "loader", "machine", "image", "errors", "durable"},
    "cli": {"report", "check", "lab", "kmod", "kernel", "loader", "machine", "image", "errors", "durable"},
    "pytest_plugin": {"report", "lab", "kmod", "kernel", "loader", "machine", "image", "errors", "durable"},
    "__main__": {"cli"},
}

# Which files may use an arrow that is not for the whole room, and what they may import. The kernel's facade
# holds a loader, and its target is one side of the door between the two; nothing else of it knows the loader.
# It holds a modprobe, too, for its user and for what the kernel itself asks for (request_module).
NARROW = {
    ("kernel", "kmod"): {"kernel/kernel.py": None, "kernel/probing.py": None},
    ("kernel", "loader"): {
        "kernel/kernel.py": None,
        "kernel/module_calls.py": {"kodojo.loader.syscalls"},
        "kernel/probing.py": {"kodojo.loader.steps", "kodojo.loader.target"},
        "kernel/module.py": {"kodojo.loader.steps", "kodojo.loader.target"},
        "kernel/target/": {"kodojo.loader.target", "kodojo.loader.load_info", "kodojo.loader.refusal"},
    },
}

# Image.check() is the loader's check of an image, offered where users look for it: it is imported when it is called.
LAZY = {("image/image.py", "kodojo.loader.verdict")}


@lru_cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every imported module: name, line, and whether that is only for a function or for checking types."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports name their module in full"
            yield str(child.module), child.lineno, inside
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports(child, inside=inside or function or checking)


def room(module: str) -> str:
    """The room that a module of kodojo is in."""
    return module.split(".")[1] if "." in module else ""


def own_room(name: str) -> str:
    """The room that a file is in."""
    return name.partition("/")[0].removesuffix(".py")


def narrow_enough(name: str, target: str) -> bool:
    """Whether a file may use an arrow that only some files may use."""
    allowed = NARROW.get((own_room(name), room(target)))
    if allowed is None:
        return True
    for prefix, modules in allowed.items():
        if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
            return modules is None or target in modules
    return False


def test_imports_follow_the_arrows():
    """Each file imports only from rooms that its own may know, inside functions too."""
    wrong = []
    for path, name in zip(FILES, NAMES, strict=True):
        own = own_room(name)
        if own == "__init__":
            continue  # the public face: it imports everything, when it is used (test_public.py)
        for target, line, lazy in imports(tree(path)):
            there = room(target) if target.split(".")[0] == "kodojo" else own
            allowed = there in ARROWS[own] and narrow_enough(name, target)
            if there not in {own, ""} and not allowed and not (lazy and (name, target) in LAZY):
                wrong.append(f"{name}:{line}: {own} must not import {target}")
    assert wrong == []


def test_every_room_has_its_arrows():
    """A new room is entered into the table of arrows, and the exceptions are still needed."""
    rooms = set(map(own_room, NAMES)) - {"__init__"}
    assert rooms <= set(ARROWS)
    for name, target in LAZY:
        assert target in {module for module, _line, _lazy in imports(tree(SOURCE / name))}


def test_arrows_make_no_circle():
    """The rooms can be put in an order in which each knows only earlier ones."""
    known: set[str] = set()
    while missing := {room for room in ARROWS if room not in known}:
        ready = {room for room in missing if ARROWS[room] <= known}
        assert ready, f"a circle among {sorted(missing)}"
        known |= ready


def test_modules_make_no_circle():
    """Neither do files import each other in a circle when they are loaded."""
    modules = {}
    for path, name in zip(FILES, NAMES, strict=True):
        module = "kodojo." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        modules[module] = {target for target, _line, lazy in imports(tree(path)) if not lazy}
    graph = {name: {target for target in targets if target in modules} - {name} for name, targets in modules.items()}
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert graph == {}


def test_only_the_engine_knows_unicorn():
    """Unicorn is behind one file."""
    users = {
        name
        for path, name in zip(FILES, NAMES, strict=True)
        if any(target.split(".")[0] == "unicorn" for target, _line, _lazy in imports(tree(path)))
    }
    assert users == {"machine/engine.py"}


# -- shape ------------------------------------------------------------------------------------------------


def test_files_are_short():
    """A file has at most 600 lines."""
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for path, name in zip(FILES, NAMES, strict=True)}
    assert {name: lines for name, lines in lengths.items() if lines > 600} == {}


def test_functions_are_short():
    """A function has at most 60 lines, with its docstring."""
    long = {}
    for path, name in zip(FILES, NAMES, strict=True):
        for node in ast.walk(tree(path)):
            if isinstance(node, FUNCTIONS) and (node.end_lineno or 0) - node.lineno >= 60:
                long[f"{name}:{node.lineno}: {node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    assert long == {}


# -- ask, never compare versions --------------------------------------------------------------------------

# The version in a bzImage's header is that of the boot protocol, a file format that says so of itself.
FORMAT_VERSIONS = {("image/vmlinuz.py", "version < _FIRST_WITH_PAYLOAD")}
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def test_versions_are_not_compared():
    """What a kernel can do is asked from its image; no release or version is less than another."""
    found = set()
    for path, name in zip(FILES, NAMES, strict=True):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare) and any(isinstance(operator, ORDER) for operator in node.ops):
                words = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
                words += [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
                if any(re.search("release|version|uname|kver", word.lower()) for word in words):
                    found.add((name, ast.unparse(node)))
    assert found == FORMAT_VERSIONS


# -- docstrings -------------------------------------------------------------------------------------------

# Their methods are described where the questions are: in the Protocol.
ANSWERING = re.compile(r"^(loader/dry\.py|kernel/target/.*|machine/(x86_64|arm64)\.py|kernel/abi_\w+\.py)$")
LONG = 6  # lines; what a shorter function does is told by its name


def public_names(module: ast.Module) -> set[str]:
    """The names in ``__all__``."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def needs_words(node: ast.AST) -> bool:
    """Whether a class or function should have a docstring and has none."""
    if isinstance(node, ast.ClassDef):
        return ast.get_docstring(node) is None
    if not isinstance(node, FUNCTIONS) or node.name.startswith("_"):
        return False
    lines = (node.end_lineno or 0) - node.body[0].lineno + 1
    return lines > LONG and ast.get_docstring(node) is None


def undocumented(path: Path, name: str) -> Iterator[str]:
    module = tree(path)
    offered = public_names(module)
    for node in module.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name not in offered:
            continue
        if needs_words(node):
            yield f"{name}:{node.lineno}: {node.name}"
        # What a class inherits or what a Protocol asks is described there.
        if isinstance(node, ast.ClassDef) and not node.bases and not ANSWERING.match(name):
            yield from (f"{name}:{each.lineno}: {node.name}.{each.name}" for each in node.body if needs_words(each))


def test_public_names_are_documented():
    """What a file offers in ``__all__`` has a docstring: each class, and what is too long to be told by its name."""
    assert [line for path, name in zip(FILES, NAMES, strict=True) for line in undocumented(path, name)] == []


# -- the repository -----------------------------------------------------------------------------------------

TEXTS = {".py", ".c", ".h", ".md", ".toml", ".cfg", ".txt", ".yml", ".yaml", ".sh", ".json", ".html", ".css", ""}
# Homes of people and of root, and a directory that no distribution has: paths of one machine.
OWN_PATHS = re.compile(r"(?<![\w.<$}{*])/(?:root|work|home/\w+)/")


def repository_files() -> Iterator[Path]:
    """The files that belong to the repository, or would if they were added."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}
    pending = [ROOT]
    while pending:
        for path in pending.pop().iterdir():
            if path.name in ignored or any(path.match(pattern) for pattern in ignored):
                continue
            if path.is_dir():
                pending.append(path)
            elif path.suffix in TEXTS and path.is_file():
                yield path


def test_nothing_belongs_to_one_machine():
    """No file has a path or the name of the machine that it was written on."""
    host = socket.gethostname()
    named = re.compile(rf"\b{re.escape(host)}\b") if len(host) > 5 and not host.isalpha() else None
    found = []
    for path in repository_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if OWN_PATHS.search(line) or (named is not None and named.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
