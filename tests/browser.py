"""A headless Chromium, spoken to by its DevTools protocol through a pipe: no port, and no library for it."""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from tests.support import program

WITHIN = 30.0  # seconds, for any one thing that it is asked to do

# Chromium reads its orders from descriptor 3 and writes to 4 (--remote-debugging-pipe).
LAUNCH = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
for fd, theirs in zip(ours, (3, 4)):
    os.dup2(fd, theirs)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One process, for several pages."""

    def __init__(self, profile: Path) -> None:
        chromium = program("chromium")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), chromium, *options],
            pass_fds=(theirs_in, theirs_out),
            env={**os.environ, "HOME": str(profile)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._asked = 0
        self._read = b""
        self.heard: collections.deque[dict[str, Any]] = collections.deque()

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group is its own, and has its children
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """What it answers; what else it says meanwhile is in `heard`."""
        self._asked += 1
        order = {"id": self._asked, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(order).encode() + b"\0")
        while (said := self.next()).get("id") != self._asked:
            self.heard.append(said)
        assert "error" not in said, (method, said)
        result: dict[str, Any] = said["result"]
        return result

    def next(self) -> dict[str, Any]:
        """The next thing that it says."""
        end = time.monotonic() + WITHIN
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0], "Chromium says nothing"
            data = os.read(self._in, 2**20)
            assert data, "Chromium has ended"
            self._read += data
        said, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(said))


class Tab:
    """One page, without JavaScript, on a screen of this size."""

    def __init__(self, browser: Browser, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        browser.heard.clear()
        for domain in ("Page", "Log", "Network", "Audits"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setScriptExecutionDisabled", value=True)
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> Tab:
        """Goes there, and waits until the page is loaded."""
        said = self._call("Page.navigate", url=url)
        assert "errorText" not in said, said
        while not self.heard("Page.loadEventFired"):
            self._browser.heard.append(self._browser.next())
        return self

    def heard(self, method: str) -> list[dict[str, Any]]:
        """What has been said of that so far."""
        self._call("Page.getFrameTree")  # after what was on its way
        return [
            each["params"]
            for each in self._browser.heard
            if each.get("method") == method and each.get("sessionId") == self._session
        ]

    def evaluate(self, expression: str) -> Any:
        said = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def requests(self) -> list[str]:
        """The addresses of all that has been asked for."""
        return [each["request"]["url"] for each in self.heard("Network.requestWillBeSent")]

    def complaints(self) -> list[Any]:
        """What the browser has to say of the page: what was refused, what could not be loaded, what is obsolete."""
        return [*self.heard("Log.entryAdded"), *self.heard("Audits.issueAdded")]

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])


def different_rows(png: bytes) -> int:
    """How many rows of a picture are unlike the others, as they are filtered (PNG, 9); of an empty one it is one or
    two."""
    position, data, size = 8, b"", (0, 0)
    while position < len(png):
        length, kind = int.from_bytes(png[position : position + 4], "big"), png[position + 4 : position + 8]
        chunk = png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            size = int.from_bytes(chunk[:4], "big"), int.from_bytes(chunk[4:8], "big")
        elif kind == b"IDAT":
            data += chunk
        position += 12 + length
    rows = zlib.decompress(data)
    stride = len(rows) // size[1]
    return len({rows[start : start + stride] for start in range(0, len(rows), stride)})
