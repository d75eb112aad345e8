"""A session with kodojo: what ``make demo`` shows. Every line after a ``$`` is a command that you can type.

The kernel is the distribution's newest, or the one that is given, by its name or as a package's file:
``make demo KERNEL=linux-image-6.12/bookworm``.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kodojo.image.tree import ModuleTree

HERE = Path(__file__).resolve().parents[1]
KERNEL = sys.argv[1:]  # none: the distribution's newest
# A store for each, so that the kernel of the demo is the one in it.
NAME = "-".join(["demo", *(re.sub(r"[^\w.+-]+", "-", kernel) for kernel in KERNEL)])[:100]
STORE = Path(os.environ.setdefault("KODOJO_STORE", str(HERE / ".cache" / NAME)))
ANOTHER = "linux-image-6.12/bookworm"


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def kodojo(*words: str, refused: bool = False) -> None:
    """Run a command as a user does; stop the demo if it does not end as announced."""
    print(f"$ kodojo {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "kodojo", *words], check=False)
    if (done.returncode != 0) != refused:
        sys.exit(f"demo: that was not expected (exit status {done.returncode})")


def begin(*words: str) -> None:
    """Run one of the commands that need a kernel which kodojo can boot."""
    print(f"$ kodojo {shlex.join(words)}", flush=True)
    if subprocess.run([sys.executable, "-m", "kodojo", *words], check=False).returncode:
        advice = "" if KERNEL else f" Try another kernel:\n    make demo KERNEL={ANOTHER}"
        sys.exit(f"demo: this kernel cannot be used.{advice}")


def shortened(path: Path) -> Path:
    """Relative to here, if it is shorter so."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def tree() -> ModuleTree:
    """The modules of the kernel."""
    from kodojo import Image

    return Image.installed()[-1].modules


def module(name: str) -> str:
    """Path of a module of the kernel's own tree."""
    return str(shortened(Path(tree()[name].path)))


def cut_off(name: str) -> str:
    """Path of a copy of a module that ends before its table of sections, wherever that is."""
    whole = tree()[name].read()  # unpacked, if the distribution packs its modules
    (e_shoff,) = struct.unpack_from("<Q", whole, 40)  # the table comes last, behind what it describes
    path = STORE / "truncated.ko"
    path.write_bytes(whole[: e_shoff * 2 // 3])
    return str(shortened(path))


def main() -> None:
    which = "A kernel" if KERNEL else "The distribution's newest kernel"
    say(f"{which}, fetched by the package manager; nothing is installed")
    begin("kernel", "add", *KERNEL)
    kodojo("kernel", "show")

    say("Boot it, in a Python process: ten seconds or so the first time, then milliseconds from a snapshot")
    begin("boot")

    say("A network driver. --steps shows what the kernel's loader does, done here in Python")
    kodojo("insmod", "--steps", module("dummy"), "numdummies=2")
    kodojo("lsmod")
    kodojo("ls", "/sys/class/net")
    kodojo("cat", "/proc/modules")

    say("A bridge needs its libraries first. Without them the kernel says so, and kodojo says why")
    kodojo("insmod", module("bridge"), refused=True)
    for name in ("llc", "stp", "bridge"):
        kodojo("insmod", module(name))
    kodojo("lsmod")

    say("A damaged file: what the real kernel would say, and what is wrong with it")
    damaged = cut_off("dummy")
    kodojo("insmod", damaged, refused=True)

    say("Will they load? That takes no machine: modules against kernels, on paper")
    kodojo("check", module("bridge"), damaged, refused=True)
    kodojo("explain", damaged, refused=True)

    say("And out again")
    kodojo("rmmod", "dummy")
    kodojo("rmmod", "stp", refused=True)
    kodojo("lsmod")
    print(f"\n# Go on by yourself:  . .venv/bin/activate;  export KODOJO_STORE={STORE};  kodojo --help")


if __name__ == "__main__":
    main()
