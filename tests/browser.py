"""A headless Chromium, where one is installed, spoken to through a pipe: pages at any width, light or dark."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")

# The contrast of each text with what lies behind its middle, by the formula of WCAG 2.2. Text that is scrolled out of
# its box is passed over.
CONTRASTS = """(() => {
  const channels = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => below.map((old, i) => top[3] * top[i] + (1 - top[3]) * old);
  const luminance = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const layers = element => {
    const style = getComputedStyle(element);
    if (element instanceof SVGGeometryElement) {
      if (style.fill === 'none') return [];
      const [r, g, b, a] = channels(style.fill);
      return [[r, g, b, a * style.fillOpacity * style.opacity]];
    }
    const image = style.backgroundImage.match(/rgba?\\([^)]*\\)/);
    return [channels(style.backgroundColor), ...image ? [channels(image[0])] : []];
  };
  document.querySelectorAll('details').forEach(part => { part.open = true; });
  const found = [], walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement, range = document.createRange();
    if (!node.data.trim() || element.closest('style, title, head, metadata')) continue;
    range.selectNodeContents(node);
    const box = range.getClientRects()[0];
    if (!box) continue;
    const stack = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    if (!stack.includes(element)) continue;
    const behind = stack.filter(e => !(e instanceof SVGTextContentElement)).reverse().flatMap(layers);
    const ground = behind.reduce((below, top) => over(top, below), [255, 255, 255]);
    const style = getComputedStyle(element);
    const ink = over(channels(element instanceof SVGElement ? style.fill : style.color), ground);
    const [high, low] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    found.push([node.data.trim(), (high + .05) / (low + .05)]);
  }
  return found;
})()"""


class Browser:
    """One page of a browser of its own. Scripts run in it as its console would run them, whatever the page forbids."""

    def __init__(self, executable: str, profile: Path) -> None:
        theirs, self._say = os.pipe()
        self._hear, said = os.pipe()
        flags = [*_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        # The browser reads from descriptor 3 and writes to 4.
        shell = f'exec "$0" "$@" 3<&{theirs} 4>&{said}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, executable, *flags], pass_fds=(theirs, said), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(said)
        self._kept, self._number, self._session = b"", 0, None
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            [page] = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
            attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
            self._session = attached["sessionId"]
            self.call("Page.enable")
            failed.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._say)
        self._process.terminate()
        self._process.wait(30)
        os.close(self._hear)

    def call(self, method: str, /, **parameters: Any) -> Any:
        """One command of the DevTools protocol and its result; events in between are passed over."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._say, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def show(self, place: Path | str, width: int, scheme: str) -> None:
        """Opens a file or an address in a window of that width, `light` or `dark`, as high as the page."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self._resize(width, 900)
        self.call("Page.navigate", url=place if isinstance(place, str) else place.absolute().as_uri())
        self.run("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")
        self._resize(width, self.run("Math.ceil(document.documentElement.getBoundingClientRect().height)"))

    def run(self, script: str) -> Any:
        """What an expression is in the page, as JSON; a promise is waited for."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": max(height, 1), "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._kept:
            more = os.read(self._hear, 1 << 16)
            assert more, f"the browser ended with {self._process.wait(30)}"
            self._kept += more
        message, _, self._kept = self._kept.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser that is closed at the end; without one on this machine the test is skipped."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(_NAMES)} is installed")
    with Browser(found, profile) as browser:
        yield browser
