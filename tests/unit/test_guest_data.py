"""Whoever follows pointers of the guest, or counts by its numbers, does so by kodojo.kernel.bounds: found by reading.

Two rules for ``src/kodojo/kernel``. A loop that has no end of its own (``while``, ``iter(read, b"")``, recursion) and
reads the guest's memory is a :func:`~kodojo.kernel.bounds.walk`. A number that was read from there is not used as a
size, a count or a shift before :func:`~kodojo.kernel.bounds.at_most` has judged it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "kodojo"
HELPER = "kernel/bounds.py"
FILES = [path for path in sorted((SOURCE / "kernel").rglob("*.py")) if str(path.relative_to(SOURCE)) != HELPER]

# What reads the guest's memory, or asks its kernel
NUMBERS = {"u8", "u16", "u32", "u64", "checked", "syscall", "call_int", "argument", "result", "unpack", "from_bytes"}
READS = NUMBERS | {"read", "raw", "string", "struct", "look", "count", "call", "calls", "_calls", "operation"}
JUDGED = {"at_most", "walk", "count", "min"}

# Loops with an end of their own: file and function -> what ends them.
ENDING = {
    ("kernel/memory.py", "string"): "the limit gets smaller by each piece",
    ("kernel/files.py", "pieces"): "what is left gets smaller; the operation's limit of time",
    ("kernel/files.py", "_directory_pieces"): "the bytes of all answers are at most so many",
    ("kernel/files.py", "_entries"): "each entry has at least a byte, of bytes that are there",
    ("kernel/kernel.py", "sleep"): "the time that is left gets less",
    ("kernel/orc.py", "unwinding_at"): "halves what is left",
    ("kernel/requests.py", "settle"): "the limit of guest time",
    ("kernel/target/modules.py", "_wait_until"): "sleeps: so many ticks",
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def called(node: ast.AST) -> str:
    """The last part of a called function's name."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def functions(module: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, FUNCTIONS):
            yield node


# -- loops ------------------------------------------------------------------------------------------------


def endless(node: ast.AST, function: ast.FunctionDef) -> bool:
    """Whether it repeats something without an end that could be seen."""
    if isinstance(node, ast.While):
        return True
    if isinstance(node, ast.For | ast.comprehension):
        name = called(node.iter)
        return name in {"count", "cycle"} or (name == "iter" and len(node.iter.args) == 2)
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {function.name, f"self.{function.name}"}


def reads(node: ast.AST) -> bool:
    """Whether the guest's memory is read anywhere in it."""
    return any(called(part) in READS or guest_member(part) for part in ast.walk(node))


def loops(module: ast.Module) -> set[tuple[str, int]]:
    """Function and line of each loop over guest memory that nothing ends."""
    found = set()
    for function in functions(module):
        for node in ast.walk(function):
            if endless(node, function) and reads(function if isinstance(node, ast.Call) else node):
                found.add((function.name, getattr(node, "lineno", function.lineno)))
    return found


# -- numbers ----------------------------------------------------------------------------------------------


def guest_member(node: ast.AST) -> bool:
    """``view.get("member")``: a member of a structure."""
    return called(node) == "get" and len(node.args) == 1 and isinstance(node.args[0], ast.Constant)


def unjudged(node: ast.AST, names: set[str], sources: set[str]) -> bool:
    """Whether an expression has a number of the guest's that nobody has judged."""
    if called(node) in JUDGED:
        return False
    if called(node) in NUMBERS | sources or guest_member(node):
        return True
    if isinstance(node, ast.Name):
        return node.id in names
    return any(unjudged(child, names, sources) for child in ast.iter_child_nodes(node))


def stored(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names that are given a value, and the value."""
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign) and node.value is not None:
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.For | ast.comprehension):
        pairs = [(node.target, node.iter)]
    else:
        return
    for target, value in pairs:
        targets = target.elts if isinstance(target, ast.Tuple) else [target]
        values = value.elts if isinstance(value, ast.Tuple) else []
        if len(values) != len(targets):  # each of them may be any part of it
            values = [value] * len(targets)
        named = zip(targets, values, strict=True)
        yield from ((each.id, part) for each, part in named if isinstance(each, ast.Name))


def strange_names(function: ast.FunctionDef, sources: set[str]) -> set[str]:
    """The local names that hold numbers of the guest's."""
    judged = {
        node.args[0].id
        for node in ast.walk(function)
        if called(node) == "at_most" and node.args and isinstance(node.args[0], ast.Name)
    }
    names: set[str] = set()
    while True:
        more = {
            name
            for node in ast.walk(function)
            for name, value in stored(node)
            if name not in judged and unjudged(value, names, sources)
        }
        if more <= names:
            return names
        names |= more


def sizes(node: ast.AST) -> list[ast.AST]:
    """The parts of an expression that say how much or how often."""
    if called(node) == "range":
        return list(node.args)
    if called(node) in {"read", "string"}:
        return node.args[1:]
    if called(node) in {"bytes", "bytearray"} and isinstance(node.func, ast.Name):
        return [part for part in node.args if not isinstance(part, ast.Call | ast.Subscript)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        return [node.right]
    return []


def returning(module: ast.Module, sources: set[str]) -> set[str]:
    """Functions that give numbers of the guest's."""
    found = set()
    for function in functions(module):
        names = strange_names(function, sources)
        values = [
            node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None
        ]
        is_number = "int" in ast.unparse(function.returns or ast.Constant(None))
        if is_number and any(unjudged(value, names, sources) for value in values):
            found.add(function.name)
    return found


def numbers(module: ast.Module) -> set[tuple[str, int]]:
    """Function and line of each size that is a number of the guest's."""
    sources: set[str] = set()
    while not (more := returning(module, sources)) <= sources:
        sources |= more
    found = set()
    for function in functions(module):
        names = strange_names(function, sources)
        for node in ast.walk(function):
            if any(unjudged(part, names, sources) for part in sizes(node)):
                found.add((function.name, node.lineno))
    return found


# -- the rules --------------------------------------------------------------------------------------------


def test_loops_over_guest_memory_end():
    """No loop follows the guest's memory but by the helper, or it is known what ends it."""
    found = {
        (str(path.relative_to(SOURCE)), function)
        for path in FILES
        for function, _line in loops(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - ENDING.keys() == set()
    assert ENDING.keys() - found == set(), "these loops are no more: take them out of the list"


def test_numbers_of_the_guest_are_judged():
    """No number of the guest's says how much is read, or how often something is done, as it is."""
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {function}"
        for path in FILES
        for function, line in numbers(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


BAD_LOOPS = {
    "a list": """
def addresses(self):
    node = self.memory.u64(head)
    while node != head:
        yield node
        node = self.memory.u64(node)
""",
    "a member": """
def tasks(self):
    while task.address != first:
        task = self.of(task.get("tasks.next"))
""",
    "calls": """
def list(self, path):
    while count := self.user.checked(path, "getdents64", fd, buffer, size):
        found.append(count)
""",
    "a sentinel": """
def all(self):
    return [piece for piece in iter(lambda: self.memory.read(0, 8), b"")]
""",
    "no end": """
def each(self):
    for index in itertools.count():
        yield self.memory.u8(base + index)
""",
    "recursion": """
def tree(self, node):
    return [node, *self.tree(self.memory.u64(node))] if node else []
""",
}

BAD_NUMBERS = {
    "range": """
def f(self):
    for index in range(view.get("num_kp")):
        pass
""",
    "a name": """
def f(self):
    count = view.get("num")
    size = 12 * count
    return self.memory.read(table, size)
""",
    "a shift": """
def f(self):
    return 1 << self.memory.u32(where)
""",
    "a pair": """
def f(self):
    start, size = abi.argument(cpu, 0), abi.argument(cpu, 1) * 4096
    cpu.read(start, size)
""",
    "an answer": """
def f(self):
    size = self.call_int("kernel_read_file")
    return self.memory.read(0, size)
""",
    "unpacked": """
def f(self):
    a, b = struct.unpack("<QQ", raw)
    return bytes(b)
""",
    "another function": """
def bits(self) -> int:
    return view.get("count_bits")

def f(self):
    for _ in range(1 << self.bits()):
        pass
""",
}


@pytest.mark.parametrize("text", BAD_LOOPS.values(), ids=BAD_LOOPS)
def test_rule_finds_loops(text):
    """Each kind of loop is one for the first rule."""
    assert loops(ast.parse(text))


@pytest.mark.parametrize("text", BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_rule_finds_numbers(text):
    """Each kind of unjudged number is one for the second rule; judged it is not."""
    assert numbers(ast.parse(text))


def test_judged_numbers_are_not_found():
    """What went through the helper may be a size."""
    text = """
def f(self):
    count = at_most(view.get("num"), 10, "things")
    for index in range(count):
        self.memory.read(base, 8)
    size = self.memory.u32(where)
    at_most(size, 4096, "bytes")
    return self.memory.read(base, size)
"""
    assert numbers(ast.parse(text)) == set()
