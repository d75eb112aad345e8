from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kodojo.check.results import Matrix
from kodojo.report.html import page
from tests.support.browser import Browser, Tab, browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One for all tests of a file: it takes a second to start."""
    with browser() as started:
        yield started


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Shows results in a tab of their own. In the end no tab has a message in its console or has fetched anything."""
    path = tmp_path / "page.html"
    tabs = []

    def shown(matrix: Matrix, **how: Any) -> Tab:
        path.write_text(page(matrix), encoding="utf-8")
        tab = Tab(chromium, **how)
        tabs.append(tab)
        tab.open(path)
        tab.settle()
        return tab

    yield shown
    for tab in tabs:
        assert tab.messages == []
        assert {request for request in tab.requests if not request.startswith("data:")} == {path.as_uri()}
        tab.close()
