from __future__ import annotations

import copy
import pickle
import re

import pytest

from kodojo import errors
from kodojo.errors import FaultReport, Frame, KodojoError, LogRecord, Refusal, TaskReport, decode, encode

LOG = (LogRecord(3, "one", 1.5), LogRecord(7, "two \udcff", 2.0))
REFUSAL = Refusal(errno=8, step="elf_validity_check", slug="not-elf", log=LOG, why="no ELF file", hint="build it")
REPORT = FaultReport(
    "BUG: it broke",
    {"rip": 5},
    (Frame(5, "function+0x1/0x2"), Frame(6, "x", reliable=False)),
    LOG,
    (TaskReport("init", 1, "S"),),
)

PLAIN = ("message",), {"hint": "what to do"}
ARGUMENTS = {
    "LoadError": (("message", REFUSAL), {}),
    "DamageError": (("message", REFUSAL), {}),
    "ModuleFileError": (("message", 22), {"hint": "what to do"}),
    "UnloadError": (("message", 16), {"hint": "what to do"}),
    "GuestOSError": (("message", 2), {"hint": "what to do"}),
    "MachineFault": (("message", REPORT), {"hint": "what to do"}),
    "MachineHang": (("message", REPORT), {"hint": "what to do"}),
}


def all_types() -> list[type[KodojoError]]:
    found, pending = [], [KodojoError]
    while pending:
        kind = pending.pop()
        if kind.__module__ == "kodojo.errors":
            found.append(kind)
        pending += kind.__subclasses__()
    return sorted(found, key=lambda kind: kind.__name__)


def example(kind: type[KodojoError]) -> KodojoError:
    arguments, options = ARGUMENTS.get(kind.__name__, PLAIN)
    return kind(*arguments, **options)


each_type = pytest.mark.parametrize("kind", all_types(), ids=lambda kind: kind.__name__)


@pytest.mark.parametrize(
    "carry",
    [copy.copy, copy.deepcopy, *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(2, 6))],
    ids=["copy", "deepcopy", *(f"pickle-{p}" for p in range(2, 6))],
)
@each_type
def test_errors_survive_carrying(kind, carry):
    """Each error comes out of copying and pickling as it went in, with all that it carries."""
    error = example(kind)
    error.extra = {"noted": "later"}
    carried = carry(error)
    assert type(carried) is kind
    assert carried is not error
    assert (str(carried), carried.args, carried.__dict__) == (str(error), error.args, error.__dict__)
    assert carried.hint == error.hint != ""


@each_type
def test_errors_are_one_sentence(kind):
    """str() is the message alone; how the rest looks is the report's business."""
    error = example(kind)
    assert str(error) == error.message == "message"


@each_type
def test_errors_are_offered(kind):
    """Each error is among the public names of kodojo."""
    import kodojo

    assert kind.__name__ in errors.__all__
    assert getattr(kodojo, kind.__name__) is kind


def drawn_tree() -> dict[str, str]:
    """Name -> name of the parent, from the drawing in the docstring."""
    parents, path = {}, []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)(├── |└── |)(\w+Error|MachineFault|MachineHang)\b", line)
        if match:
            depth = len(match[1]) // 4 + bool(match[2])
            path = [*path[:depth], match[3]]
            parents[match[3]] = path[depth - 1] if depth else "Exception"
    return parents


def test_tree_is_the_one_that_is_drawn():
    """The docstring draws the tree as it is."""
    assert drawn_tree() == {kind.__name__: kind.__bases__[0].__name__ for kind in all_types()}


def test_load_error_shows_its_refusal():
    """What the kernel said about a module can be asked from the error."""
    error = errors.DamageError("message", REFUSAL)
    shown = (error.errno, error.step, error.slug, error.log, error.why, error.hint)
    assert shown == (8, "elf_validity_check", "not-elf", LOG, "no ELF file", "build it")


def test_fault_shows_its_report():
    """What a crash looked like can be asked from the error."""
    error = errors.MachineHang("message", REPORT)
    assert (error.registers, error.backtrace, error.log) == (REPORT.registers, REPORT.backtrace, REPORT.log)
    assert error.tasks == REPORT.tasks
    left = pickle.loads(pickle.dumps(errors.MachineHang("message", REPORT, survived=True, left=True)))
    assert (left.survived, left.left, error.survived, error.left) == (True, True, False, False)


@pytest.mark.parametrize("record", [LOG[0], REFUSAL, REPORT, REPORT.backtrace[0]], ids=lambda r: type(r).__name__)
def test_records_are_values(record):
    """What errors carry is compared by content and cannot be changed."""
    assert copy.deepcopy(record) == record == pickle.loads(pickle.dumps(record))
    with pytest.raises(AttributeError):
        setattr(record, next(iter(type(record).__slots__)), None)


@pytest.mark.parametrize("raw", [b"", b"plain", "ä€".encode(), b"\xff\x80\0\n", bytes(range(256))])
def test_text_loses_nothing(raw):
    """Bytes of any kind come back as they were."""
    assert encode(decode(raw)) == raw
