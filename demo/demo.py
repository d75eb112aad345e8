"""A session with kodojo: what ``make demo`` shows. Every line after a ``$`` is a command that you can type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
STORE = Path(os.environ.setdefault("KODOJO_STORE", str(HERE / ".cache" / "demo")))


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def kodojo(*words: str, refused: bool = False) -> None:
    """Run a command as a user does; stop the demo if it does not end as announced."""
    print(f"$ kodojo {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "kodojo", *words], check=False)
    if (done.returncode != 0) != refused:
        sys.exit(f"demo: that was not expected (exit status {done.returncode})")


def shortened(path: Path) -> Path:
    """Relative to here, if it is shorter so."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def module(name: str) -> str:
    """Path of a module of the kernel's own tree."""
    from kodojo import Image

    return str(shortened(Path(Image.installed()[-1].modules[name].path)))


def main() -> None:
    say("The distribution's newest kernel, fetched by the package manager; nothing is installed")
    kodojo("kernel", "add")
    kodojo("kernel", "show")

    say("Boot it, in a Python process: ten seconds or so the first time, then milliseconds from a snapshot")
    kodojo("boot")

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
    damaged = STORE / "truncated.ko"
    damaged.write_bytes(Path(module("dummy")).read_bytes()[:9000])
    kodojo("insmod", str(shortened(damaged)), refused=True)

    say("Will they load? That takes no machine: modules against kernels, on paper")
    kodojo("check", module("bridge"), str(shortened(damaged)), refused=True)
    kodojo("explain", str(shortened(damaged)), refused=True)

    say("And out again")
    kodojo("rmmod", "dummy")
    kodojo("rmmod", "stp", refused=True)
    kodojo("lsmod")
    print(f"\n# Go on by yourself:  . .venv/bin/activate;  export KODOJO_STORE={STORE};  kodojo --help")


if __name__ == "__main__":
    main()
