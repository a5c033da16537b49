"""A page in headless Chromium, driven over DevTools' pipe: no driver and no library."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .serving import until


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab."""

    def __init__(self, commands: int, answers: int):
        self.commands, self.answers, self.buffer, self.numbers = commands, answers, b"", itertools.count(1)
        self.session: str | None = None
        self.problems: list[Any] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != number:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(answer["params"])
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.answers, 1 << 16)
            assert part, "the browser ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")
        size = {"width": 900, "height": 720, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        until(lambda: self.run("document.readyState") == "complete" and self.run("location.href") != "about:blank")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def choose(self, selector: str, path: Path) -> None:
        """A file, as a person chooses it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a new browser, which ends with the block."""
    assert CHROMIUM is not None
    out_of_us, commands = os.pipe()
    answers, into_us = os.pipe()
    # DevTools' pipe is file descriptors 3 and 4
    script = f'exec "$0" "$@" 3<&{out_of_us} 4>&{into_us}'
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
    with subprocess.Popen(
        ["bash", "-c", script, CHROMIUM, *flags],
        pass_fds=(out_of_us, into_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(out_of_us)
        os.close(into_us)
        try:
            yield Page(commands, answers)
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)
