"""See :mod:`tests.dkms`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import kodojo
from tests.dkms import loads

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "dkms.json"
PAGE = ROOT / "docs" / "dkms.md"
# fmt: off
PACKAGES = (
    "acpi-call", "adv-17v35x", "apfs", "bbswitch", "dahdi", "ddcci", "digimend", "dm-writeboost",
    "dpdk-kmods", "evdi", "falcosecurity-scap", "gost-crypto", "iptables-netflow", "jool", "langford",
    "librem-ec-acpi", "lime-forensics", "lttng-modules", "nat-rtsp", "openrazer-driver",
    "openvpn-dco", "rapiddisk", "rtpengine-kernel", "tp-smapi", "v4l2loopback", "vpoll", "west-chamber",
    "xtables-addons", "xtrx",
)
# fmt: on
# Of one, of several.
WORDS = {
    "ok": ("loads", "load"),
    "refused": ("would not load", "would not load"),
    "not-built": ("does not build", "do not build"),
    "unchecked": ("was not checked", "were not checked"),
}
LONGEST = 130  # characters of a reason on the page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.dkms")
    parser.add_argument("--kernel", action="append", default=[], help="a kernel of the store")
    parser.add_argument("--packages", type=Path, help="a directory to keep the packages in, and to find them in")
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--only", action="append", metavar="PACKAGE", help="renew the results of this one")
    parser.add_argument("--load", metavar="KERNEL", help="build for this kernel only, and load what is built")
    parser.add_argument("--modules", type=Path, help="with --load: a new directory to keep what is built in")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    options = parser.parse_args()
    if not options.page:
        if bool(options.kernel) == bool(options.load):
            parser.error("either --kernel or --load is needed")
        names = options.only or PACKAGES
        with tempfile.TemporaryDirectory() as directory:
            packages = options.packages or Path(directory)
            if options.load:
                run_loads(packages, options.modules, options.load, options.jobs, names)
            else:
                run(packages, options.kernel, options.jobs, names)
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
    return 0


def run(directory: Path, kernels: list[str], jobs: str, names: list[str] | tuple[str, ...]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    before = json.loads(RESULTS.read_text())["packages"] if RESULTS.exists() else {}
    found = dict(before) if len(names) < len(PACKAGES) else {}
    for name in names:
        package = fetched(directory, f"{name}-dkms")
        shape = checked(package, kernels, jobs)
        found[name] = row(package, shape)
        if "loaded" in before.get(name, {}):
            found[name]["loaded"] = before[name]["loaded"]
        print(name, {kernel: cell["summary"] for kernel, cell in found[name]["kernels"].items()}, flush=True)  # noqa: T201
        write(found)  # a run takes long, and may be ended


def run_loads(
    directory: Path, modules: Path | None, kernel: str, jobs: str, names: list[str] | tuple[str, ...]
) -> None:
    """The load phase: each package is built for one kernel, and every module of it is loaded there."""
    directory.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULTS.read_text())["packages"]
    base = kodojo.Kernel.boot(kernel)
    for name in names:
        package = fetched(directory, f"{name}-dkms")
        with tempfile.TemporaryDirectory() as work:
            source = thinned(package, Path(work, "source"), name)
            built = (modules or Path(work, "built")).resolve() / name
            shape = checked(source, [kernel], jobs, built)
            counts = Counter(each["status"] for each in shape["results"])
            cell = {"kernel": kernel, "commit": commit(), "verdicts": dict(counts)}
            if name in loads.LEFT_OUT:
                cell["left_out"] = loads.LEFT_OUT[name][0][1].partition('"')[2].rstrip('"')
            found[name]["loaded"] = cell | {"modules": loads.loaded(base, built)}
        print(name, loads.words(found[name]["loaded"]), flush=True)  # noqa: T201
        write(found)


def thinned(package: Path, directory: Path, name: str) -> Path:
    """The package; or the directory with its source, where something has to be left out for the rest to build."""
    if name not in loads.LEFT_OUT:
        return package
    subprocess.run(["dpkg-deb", "--extract", package, directory], check=True)
    source = next(directory.glob("usr/src/*"))
    for file, first, number in loads.LEFT_OUT[name]:
        lines = (source / file).read_text().splitlines(keepends=True)
        start = lines.index(f"{first}\n")
        (source / file).write_text("".join(lines[:start] + lines[start + number :]))
    return source


def write(found: dict) -> None:
    columns = list(next(iter(found.values()))["kernels"])
    shape = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernels": columns,
        "packages": dict(sorted(found.items())),
        "counts": {kernel: counted([cell["kernels"][kernel] for cell in found.values()]) for kernel in columns},
        "loaded": loads.counted([cell["loaded"] for cell in found.values() if "loaded" in cell]),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(shape, indent=1) + "\n")


def counted(cells: list[dict]) -> dict:
    modules = sum((Counter(cell["summary"]) for cell in cells), Counter())
    return {"packages_built": sum(cell["built"] for cell in cells), "modules": dict(modules)}


def fetched(directory: Path, name: str) -> Path:
    packages = sorted(directory.glob(f"{name}_*.deb"))
    if not packages:
        command = ["apt-get", "-oAPT::Sandbox::User=root", "--quiet=2", "download", name]
        subprocess.run(command, cwd=directory, check=True)
        packages = sorted(directory.glob(f"{name}_*.deb"))
    return packages[-1]


def checked(package: Path, kernels: list[str], jobs: str, keep: Path | None = None) -> dict:
    """What ``kodojo check --build`` says.

    :param keep: where the modules are kept.
    """
    words = [word for kernel in kernels for word in ("--kernel", kernel)]
    words += [f"--keep-modules={keep}"] if keep is not None else []
    command = [sys.executable, "-m", "kodojo", "check", "--build", package.name, "--json", f"--jobs={jobs}", *words]
    done = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}") from None


def row(package: Path, shape: dict) -> dict:
    kernels = {}
    for kernel in shape["kernels"]:
        name = kernel["name"] if isinstance(kernel, dict) else kernel[0]
        results = [each for each in shape["results"] if each["kernel"] == name]
        bad = [each for each in results if each["status"] != "ok"]
        counts = Counter(each["status"] for each in results)
        kernels[name] = {
            "built": any(each["status"] in ("ok", "refused") for each in results),
            "summary": dict(counts),
            "why": bad[0]["why"] if bad else "",
            "modules": {each["module"].rpartition(":")[2]: each["status"] for each in results},
            "slugs": sorted({each["slug"] for each in bad}),
        }
    version = package.name.split("_")[1].replace("%3a", ":")
    return {"version": version, "commit": commit(), "kernels": kernels}


def commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def page(shape: dict) -> str:
    """The table, for people."""
    kernels = shape["kernels"]
    commits = ", ".join(sorted({package["commit"] for package in shape["packages"].values()}))
    when = f"{shape['date']}, {len(shape['packages'])} packages of Debian 12, commits {commits}."
    lines = [
        "# Debian's DKMS packages by `kodojo check --build`",
        "",
        "Written by `python -m tests.dkms` from [results/dkms.json](../results/dkms.json): " + when,
        "",
        "Each package was built for each kernel with Debian's headers and gcc, by DKMS's rules, and what it gave was",
        "checked against that kernel. `does not build` comes with the first line that the build complains about.",
        "",
    ]
    for kernel in kernels:
        counts = shape["counts"][kernel]
        words = ", ".join(number(count, status) for status, count in counts["modules"].items())
        lines.append(f"- {kernel}: {counts['packages_built']} of {len(shape['packages'])} packages build; {words}")
    lines += ["", *about_loads(shape)]
    heads = [*kernels, "loaded in the machine"]
    lines += ["", f"| package | version | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for name, package in shape["packages"].items():
        cells = [cell(package["kernels"][kernel]) for kernel in kernels]
        cells.append(loads.words(package.get("loaded")))
        lines.append(f"| {name} | {package['version']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def about_loads(shape: dict) -> list[str]:
    """What the last column means, and its sum."""
    cells = [package["loaded"] for package in shape["packages"].values() if "loaded" in package]
    if not cells:
        return []
    counts = loads.counted(cells)
    kernel = ", ".join(sorted({each["kernel"] for each in cells}))
    return [
        "The last column (`python -m tests.dkms --load KERNEL`): each module was built again and loaded into a fresh",
        f"machine with {kernel}, as `kodojo modprobe --fresh --path DIRECTORY ./FILE.ko` does it (by",
        "`kernel.fork().modprobe(FILE, path=DIRECTORY)`, in one process), then removed, loaded and removed again",
        f"(commits {', '.join(sorted({each['commit'] for each in cells}))}).",
        f"Of {counts['modules']} modules of {counts['packages']} packages {counts['load']} load;",
        f"{counts['removed_twice']} of these are removed both times. The others say why.",
    ]


def number(count: int, status: str) -> str:
    return f"{count} {WORDS[status][count != 1]}"


def cell(kernel: dict) -> str:
    words = ", ".join(number(count, status) for status, count in kernel["summary"].items() if status != "not-built")
    why = kernel["why"].replace("|", "\\|").replace("`", "'")
    why = f"{why[:LONGEST]}..." if len(why) > LONGEST else why
    words = words or "does not build"
    return f"{words}: `{why}`" if why else words


if __name__ == "__main__":
    sys.exit(main())
