"""Every module of a package loaded into a machine of its own, with what it depends on, and removed; twice.

What ``kodojo modprobe --fresh --path DIRECTORY FILE [PARAMETERS]`` does, by the Python API and so in one process.
"""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path

import kodojo
from kodojo.image.tree import module_name

# What a module wants to be given before it loads.
PARAMETERS = {"lime.ko": ("path=/lime.dump", "format=padded", "digest=sha1")}
# Lines to take out of a package, without which the rest builds: (file, first line, number of lines).
LEFT_OUT = {
    "lttng-modules": (
        ("dkms.conf", 'BUILT_MODULE_NAME[$i]="lttng-probe-timer"', 4),
        ("src/probes/Kbuild", "obj-$(CONFIG_LTTNG) += lttng-probe-timer.o", 1),
    )
}
PATIENCE = 300.0  # seconds of the guest: lime writes all of its memory


def loaded(base: kodojo.Kernel, directory: Path) -> dict[str, dict]:
    """The answer of each module below a directory, by the module's file name."""
    paths = {path.name: path for path in sorted(directory.rglob("*.ko"))}
    return {name: _loaded(base, path, directory) for name, path in paths.items()}


def _loaded(base: kodojo.Kernel, path: Path, directory: Path) -> dict:
    kernel = base.fork()
    kernel.limit(PATIENCE)
    parameters = PARAMETERS.get(path.name, ())
    found: dict = {"parameters": list(parameters)} if parameters else {}
    start = len(kernel.log)
    try:
        module = kernel.modprobe(path, *parameters, path=directory)
    except kodojo.LoadError as error:
        file = Path(error.file).name
        found |= {"answer": errno.errorcode[error.errno], "slug": error.slug, "why": error.why}
        found |= {"refused": file} if file and file != path.name else {}
        return found | {"log": [record.text for record in kernel.log[start:]][-5:]}
    except kodojo.KodojoError as error:
        return found | {"answer": type(error).__name__, "why": error.message}
    others = [each.name for each in reversed(kernel.modules) if each != module]
    found |= {"answer": "loads", "state": module.state, "first": others}
    try:
        found["removal"] = _removed(kernel, path)
        if found["removal"] == "ok":
            kernel.modprobe(path, *parameters, path=directory)
            found["second_removal"] = _removed(kernel, path)
    except kodojo.KodojoError as error:
        step = "second_removal" if "removal" in found else "removal"
        found[step] = f"{type(error).__name__}: {error.message}"
    if kernel.warnings:
        found["warnings"] = [report.cause for report in kernel.warnings]
    return found


def _removed(kernel: kodojo.Kernel, path: Path) -> str:
    name = module_name(path.name)
    kernel.rmmod(name)
    return "still there" if name in {each.name for each in kernel.modules} else "ok"


def counted(cells: list[dict]) -> dict:
    """Numbers of packages and modules; of packages those of which at least one module was built."""
    modules = [module for cell in cells for module in cell["modules"].values()]
    return {
        "packages": sum(bool(cell["modules"]) for cell in cells),
        "packages_that_load": sum(_all(cell, "answer", "loads") for cell in cells),
        "modules": len(modules),
        "load": sum(module["answer"] == "loads" for module in modules),
        "removed_twice": sum(module.get("second_removal") == "ok" for module in modules),
        "refused": dict(Counter(module["answer"] for module in modules if module["answer"] != "loads")),
    }


def _all(cell: dict, key: str, value: str) -> bool:
    return bool(cell["modules"]) and all(module.get(key) == value for module in cell["modules"].values())


def words(cell: dict | None) -> str:
    """A package's cell on the page."""
    if cell is None:
        return ""
    modules = cell["modules"]
    if not modules:
        return "-"
    good = sum(module["answer"] == "loads" for module in modules.values())
    lines = [f"{good} of {len(modules)}"]
    for name, module in modules.items():
        if module["answer"] != "loads":
            lines.append(f"`{name}`: {_reason(module)}")
        elif module.get("second_removal") != "ok":
            lines.append(f"`{name}` at removal: {_plain(module.get('second_removal', module['removal']))}")
        elif module.get("warnings"):
            lines.append(f"`{name}`: {_plain(module['warnings'][0])}")
        if module.get("parameters"):
            lines.append(f"`{name}` with `{' '.join(module['parameters'])}`")
    return "; ".join(lines + ([f"without {cell['left_out']}"] if cell.get("left_out") else []))


def _reason(module: dict) -> str:
    by = f"`{module['refused']}`, which it needs, says " if module.get("refused") else ""
    return f"{by}{module['answer']} ({module.get('slug') or _plain(module['why'])})"


def _plain(text: str) -> str:
    text = text.splitlines()[0].replace("|", "\\|").replace("`", "'")
    return f"{text[:110]}..." if len(text) > 110 else text
