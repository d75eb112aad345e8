r"""What ``--json`` prints: one value, whose shape is an interface.

Names are only ever added. Times are seconds, sizes bytes, errno numbers the guest's (positive, 0 for none) with
their names beside them. Addresses and registers are texts ("0xffffffffc0000000"), and so is any number among a
step's facts that a double cannot hold. Text that is no UTF-8 has its stray bytes as ``\xNN``.

==================  =========================================================================================
``insmod``          {file, arguments, ok, errno, errno_name, log: [record], steps: [{name, title, source, facts}],
                    step, slug, why, hint, module: module or null, warnings: [cause], notes: [sentence]}; a note is
                    about how the file is packed
``check``           the matrix: docs/check.md
``explain``         {file, kernel, ok, errno, errno_name, slug, why, hint, log: [record], notes: [detail],
                    problems: [{slug, errno, step, log: [record], why, hint, details: [detail]}],
                    warnings: [sentence], suitable_kernels: [name]: those of the store that the module is for};
                    the first problem is the kernel's answer; a detail is {subject, text, facts: {name: value},
                    more: [line]}
``explain`` REASON  {slug, page: text in Markdown}
``rmmod``           {ok, modules: [{name, ok, errno, errno_name, message, hint}], log: [record], warnings: [cause]}
``lsmod``           [module]: {name, size, refcount, users: [name], state, address, taints}
``dmesg``           [record]: {level, text, time}
``cat``             [{path, ok, errno, errno_name, message, encoding: "utf-8" or "base64", content}]
``ls``              {path, ok, errno, errno_name, message, entries: [{name, kind}]}; with ``-l`` each has also
                    {mode: 0 to 0o7777, links, uid, gid, size, major, minor, modified, target}
                    (target: null if it is no link)
``modprobe -c``     {configuration: [line], aliases: [[alias, module]], symbols: [[symbol, module]]}
``modprobe          [{symbol, crc: text}]: also of ``--show-modversions``
--show-exports``
``mount``           without words: [{source, target, type, options}]
``mkdir``, ``rm``   [{path, ok, errno, errno_name, message}], and so for ``mknod``, ``chmod``, ``umount``, ``mount``
``write``           {path, ok, errno, errno_name, message, size}
``boot``            {release, architecture, cmdline, memory, time}
``kernel list``     [{name, release, architecture, modules, snapshots, current, problem}]
``kernel show``     {name, release, architecture, vermagic, build_id, exports, config: {option: value, "" if not
                    set} or null, modules, builtin, size, snapshots: [{cmdline, memory}], current}
``kernel add``      {name, release, architecture, modules, added: whether it was not there before}
``kernel remove``   {removed: name}
``kernel use``      {current: name}
any failure else    {ok: false, error: {kind, message, hint}}; kind is the exception's name. MachineFault and
                    MachineHang have also {cause, registers: {name: value}, backtrace: [{address, symbol,
                    reliable}], log: [record]}
==================  =========================================================================================
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from kodojo.errors import FaultReport, GuestOSError, KodojoError, LoadError, LogRecord, MachineFault, UnloadError
from kodojo.report.errnos import errno_name
from kodojo.report.paint import HIDDEN

if TYPE_CHECKING:
    from kodojo.kernel.module import Module
    from kodojo.loader.steps import Step
    from kodojo.report.listing import ListedFile

__all__ = [
    "answer",
    "content",
    "dumps",
    "error",
    "escaped",
    "insmod",
    "listed",
    "module",
    "plain",
    "record",
    "record_list",
    "refused",
    "removal",
]


_BEYOND_DOUBLE = 1 << 53
_HIDDEN = re.compile(f"[{HIDDEN}]")


def dumps(value: Any) -> str:
    """JSON of dictionaries, lists, dataclasses and texts, indented; what a terminal must not get is escaped."""
    return escaped(json.dumps(plain(value), indent=2, ensure_ascii=False))


def escaped(text: str) -> str:
    r"""JSON with the characters that are not seen, or turn text around, as ``\uNNNN``: the same for who reads it."""
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def plain(value: Any) -> Any:
    r"""The same of what JSON has: no dataclasses, no integers beyond doubles, no bytes that are no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if value < _BEYOND_DOUBLE else f"{value:#x}"  # int(): enumerations too
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {plain(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def record(entry: LogRecord) -> dict[str, Any]:
    return {"level": entry.level, "text": entry.text, "time": entry.time}


def record_list(entries: Iterable[LogRecord]) -> list[dict[str, Any]]:
    return [record(entry) for entry in entries]


def module(loaded: Module) -> dict[str, Any]:
    """A module that is loaded, with what lsmod and /proc/modules tell of it."""
    return {
        "name": loaded.name,
        "size": loaded.size,
        "refcount": loaded.refcount,
        "users": list(loaded.users),
        "state": loaded.state,
        "address": f"{loaded.address:#x}",
        "taints": loaded.taints,
    }


def listed(file: ListedFile) -> dict[str, Any]:
    """A name in a directory; a long listing has more of it."""
    shape: dict[str, Any] = {"name": file.name, "kind": file.kind}
    status = file.status
    if status is not None:
        names = ("mode", "links", "uid", "gid", "size", "major", "minor", "modified")
        shape |= {name: getattr(status, name) for name in names}
        shape["target"] = file.target or None
    return shape


def answer(failure: GuestOSError | UnloadError | None) -> dict[str, Any]:
    """The part that tells how a request to the guest went."""
    errno = failure.errno if failure else 0
    return {
        "ok": failure is None,
        "errno": errno,
        "errno_name": errno_name(errno),
        "message": failure.message if failure else "",
    }


def insmod(
    file: str,
    arguments: str,
    *,
    log: Iterable[LogRecord] = (),
    steps: Iterable[Step] = (),
    loaded: dict[str, Any] | None = None,
    warnings: Iterable[FaultReport] = (),
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """A load that went well; :func:`refused` makes it one that did not."""
    return {
        "file": file,
        "arguments": arguments,
        "ok": True,
        "errno": 0,
        "errno_name": "",
        "log": record_list(log),
        "steps": list(steps),
        "step": "",
        "slug": "",
        "why": "",
        "hint": "",
        "module": loaded,
        "warnings": [report.cause for report in warnings],
        "notes": list(notes),
    }


def refused(
    shape: dict[str, Any], *, errno: int, why: str, hint: str, refusal: LoadError | None = None
) -> dict[str, Any]:
    """What :func:`insmod` made, for a load that failed, by the kernel (``refusal``) or before."""
    failure = {"ok": False, "errno": errno, "errno_name": errno_name(errno), "why": why, "hint": hint}
    if refusal is not None:
        failure |= {"step": refusal.step, "slug": refusal.slug, "log": record_list(refusal.log)}
    return shape | failure


def removal(name: str, failure: UnloadError | None) -> dict[str, Any]:
    return {"name": name, **answer(failure), "hint": failure.hint if failure else ""}


def content(data: bytes) -> dict[str, str]:
    """A file's content: text if it is UTF-8, else base64."""
    try:
        return {"encoding": "utf-8", "content": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"encoding": "base64", "content": base64.b64encode(data).decode("ascii")}


def error(failure: KodojoError) -> dict[str, Any]:
    """Any failure that is not a command's own answer."""
    shape: dict[str, Any] = {"kind": type(failure).__name__, "message": failure.message, "hint": failure.hint}
    if isinstance(failure, MachineFault):
        report = failure.report
        shape |= {
            "cause": report.cause,
            "registers": {name: f"{value:#x}" for name, value in report.registers.items()},
            "backtrace": [
                {"address": f"{frame.address:#x}", "symbol": frame.symbol, "reliable": frame.reliable}
                for frame in report.backtrace
            ],
            "log": record_list(report.log),
        }
    return {"ok": False, "error": shape}
