"""The page that ``kodojo check --html`` writes about real modules and kernels, in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kodojo.image.store import Store
from tests.support import distribution
from tests.support.browser import Tab, browser

pytestmark = pytest.mark.kernel

NAMES = ("dummy", "loop", "zram", "nft_compat", "e1000e")


def test_modules_of_one_kernel_for_another(tmp_path: Path) -> None:
    """Modules of 6.12 against 6.1 and 6.12: each answer that the page shows is that of the same run's JSON."""
    kernels = distribution.kernels()
    store = Store(distribution.cache_directory() / "cli-store")
    for files in kernels.values():
        store.add(files.image_root)
    found = sorted(path for path in kernels["6.12"].image_root.rglob("*.ko*") if path.name.split(".")[0] in NAMES)
    assert len(found) == len(NAMES)
    page = tmp_path / "page.html"
    chosen = [word for files in kernels.values() for word in ("--kernel", files.release)]
    done = subprocess.run(
        [sys.executable, "-m", "kodojo", "check", *map(str, found), *chosen, "--json", "--html", str(page)],
        env={**os.environ, "KODOJO_STORE": str(store.root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (1, "")
    value = json.loads(done.stdout)
    with browser() as started:
        tab = Tab(started)
        tab.open(page)
        tab.settle()
        assert tab.messages == []
        assert tab.text("h1") == "5 of 5 modules are refused by at least one kernel"
        assert tab.texts("#heads th")[2:] == [kernel["name"] for kernel in value["kernels"]]
        shown = {
            row[0]: row[1:]
            for row in tab.each(
                "#rows > tr",
                "[e.querySelector('.name').innerText, [...e.querySelectorAll('.why')].map(w => w.innerText),"
                " [...e.querySelectorAll('.of-kernel b')].map(m => m.innerText)]",
            )
        }
        assert len(shown) == len(NAMES)
        for module in value["modules"]:
            answers = [result for result in value["results"] if result["module"] == module]
            causes, marks = shown[Path(module).name]
            assert marks == [answer["errno_name"] or "loads" for answer in answers]
            assert causes == [answer["why"] for answer in answers if not answer["ok"]]
