"""A real browser that tests drive: Chromium without a window, by the DevTools protocol over two pipes.

What the protocol offers: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by a NUL;
the browser reads them from descriptor 3 and writes to 4 (``--remote-debugging-pipe``).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from tests.support.distribution import chromium

__all__ = ["Browser", "BrowserError", "Tab", "browser"]

PATIENCE = 120  # seconds, after which a browser that does not answer has failed
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it is unpacked without root, and shows pages of our own only
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
{directories}
<cachedir>{cache}</cachedir>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
<match><edit name="family" mode="append_last"><string>DejaVu Sans</string></edit></match>
</fontconfig>
"""
MESSAGES = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowUp": 38, "ArrowDown": 40, "/": 191}
WRITTEN = {"Enter": "\r", " ": " ", "/": "/"}


class BrowserError(Exception):
    """The browser is gone, does not answer, or answers that it could not do it."""


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser of one's own, with a new profile; it is gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="kodojo-browser-"))
    started = Browser(directory)
    try:
        yield started
    finally:
        started.close()
        shutil.rmtree(directory, ignore_errors=True)


class Browser:
    """A Chromium, and what it answered.

    :param directory: empty; for its profile.
    """

    def __init__(self, directory: Path) -> None:
        files = chromium()
        fonts = directory / "fonts.conf"
        named = "\n".join(f"<dir>{path}</dir>" for path in files.fonts if path.is_dir())
        fonts.write_text(FONTS.format(directories=named, cache=directory / "fonts"))
        environment = files.environment | {"FONTCONFIG_FILE": str(fonts), "HOME": str(directory), "LC_ALL": "C.UTF-8"}
        command = [str(files.program), *FLAGS, f"--user-data-dir={directory / 'profile'}", "about:blank"]
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        self._log = directory / "log"
        self._process = os.posix_spawn(
            command[0],
            command,
            environment,
            setpgroup=0,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, str(self._log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            ],
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._pending = b""
        self._events: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    def close(self) -> None:
        """End it, and all processes that it started."""
        with contextlib.suppress(BrowserError, OSError):
            self.call("Browser.close")
        for descriptor in (self._in, self._out):
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Have something done.

        :raises BrowserError: it was not.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)

    def wait_for(self, event: str, session: str) -> None:
        """Let the browser go on until it reports an event that has not been waited for yet."""
        deadline = time.monotonic() + PATIENCE
        while not self.events(event, session):
            self._note(self._read(deadline))
        self.forget([event], session)

    def events(self, name: str, session: str) -> list[dict[str, Any]]:
        """What was reported by that name."""
        return [content for kind, content in self._events.get(session, []) if kind == name]

    def forget(self, names: Container[str], session: str) -> None:
        """Forget what was reported by these names so far."""
        self._events[session] = [each for each in self._events.get(session, []) if each[0] not in names]

    def _note(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self._events.setdefault(message.get("sessionId", ""), []).append((message["method"], message["params"]))

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                what = "is gone" if ready else f"did not answer for {PATIENCE} seconds"
                raise BrowserError(
                    f"Chromium {what}; its last words: {self._log.read_text(errors='replace')[-2000:]}"
                )
            self._pending += data
        message, _, self._pending = self._pending.partition(b"\0")
        return dict(json.loads(message))


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are none of the descriptors that the browser wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


class Tab:
    """A page in the browser.

    :param width: of the window, in CSS pixels.
    :param features: of media: ``prefers-color-scheme="dark"``, with underscores for dashes.
    """

    def __init__(
        self, program: Browser, *, width: int = 1280, height: int = 800, script: bool = True, **features: str
    ):
        self._browser = program
        self._target = program.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = program.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._script = script
        self._call("Emulation.setScriptExecutionDisabled", value=not script)
        self.media(**features)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def media(self, kind: str = "", **features: str) -> None:
        """Pretend to be paper (``print``), or to have other features."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._call("Emulation.setEmulatedMedia", media=kind, features=listed)

    def open(self, path: Path) -> None:
        """Show a file, until all of it is loaded."""
        answer = self._call("Page.navigate", url=path.absolute().as_uri())
        if "errorText" in answer:
            raise BrowserError(f"{path}: {answer['errorText']}")
        self._browser.wait_for("Page.loadEventFired", self._session)

    def forget(self) -> None:
        """Forget the messages so far: they were provoked."""
        self._browser.forget(MESSAGES, self._session)

    @property
    def messages(self) -> list[str]:
        """What stands in the console: messages, exceptions, and the browser's own complaints."""
        console, exceptions, entries = (self._browser.events(name, self._session) for name in MESSAGES)
        found = [
            " ".join(str(each.get("value", each.get("description"))) for each in content["args"])
            for content in console
        ]
        for content in exceptions:
            details = content["exceptionDetails"]
            found.append(str(details.get("exception", {}).get("description", details["text"])))
        return [*found, *(content["entry"]["text"] for content in entries)]

    @property
    def requests(self) -> list[str]:
        """All addresses that were asked for."""
        asked = self._browser.events("Network.requestWillBeSent", self._session)
        return [content["request"]["url"] for content in asked]

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited.

        :raises BrowserError: it throws.
        """
        answer = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def settle(self) -> None:
        """Let the page do what it does before the next picture but one."""
        if not self._script:
            return
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def each(self, selector: str, value: str) -> list[Any]:
        """The value of an expression for all elements like that which can be seen.

        :param value: where ``e`` is the element and ``b`` its box in the window.
        """
        found = self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".filter(e => e.checkVisibility({{visibilityProperty: true}}))"
            f".map(e => [e, e.getBoundingClientRect()]).map(([e, b]) => ({value}))"
        )
        return list(found)

    def texts(self, selector: str) -> list[str]:
        """What can be read in all elements like that which can be seen."""
        return self.each(selector, "e.innerText.trim()")

    def text(self, selector: str) -> str:
        """The text of the only element like that.

        :raises BrowserError: there are several, or none.
        """
        found = self.texts(selector)
        if len(found) != 1:
            raise BrowserError(f"{len(found)} elements are like {selector}")
        return found[0]

    def count(self, selector: str) -> int:
        """How many elements are like that, seen or not."""
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str) -> None:
        """Press the mouse's button on the middle of the first element like that; whatever is there gets it."""
        place = self.run(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "center"}});
                const box = element.getClientRects()[0];
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            x, y = place
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, *keys: str) -> None:
        """Press keys, by their names: ``Tab``, ``Enter``, ``Shift+Tab``, ``/``, ``ArrowDown``."""
        for each in keys:
            shift = each.startswith("Shift+")
            key = each.removeprefix("Shift+")
            event = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 if shift else 0}
            text = {"text": WRITTEN[key]} if key in WRITTEN else {}
            self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event, **text)
            self._call("Input.dispatchKeyEvent", type="keyUp", **event)
        self.settle()

    def type(self, text: str) -> None:
        """Write where the focus is."""
        self._call("Input.insertText", text=text)
        self.settle()

    def choose(self, selector: str, value: str) -> None:
        """Choose one of a list, as a person's choice arrives in the page."""
        self.run(
            f"""(() => {{
                const list = document.querySelector({json.dumps(selector)});
                list.value = {json.dumps(value)};
                list.dispatchEvent(new Event("change", {{bubbles: true}}));
            }})()"""
        )
        self.settle()

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen as a PNG file."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=False)["data"])
