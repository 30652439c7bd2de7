"""The page in a real browser, where one is installed, driven over a pipe by the DevTools protocol."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxq
from fxq.coverage import Coverage
from fxq.explanation import QuantizedTensor
from fxq.reporting.content import GraphEdge, GraphNode, Histogram, Size, TensorRange

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
BROWSER = os.environ.get("FXQ_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(NAMES)}, or FXQ_CHROMIUM=its path")
HOSTILE = "</script><script>document['title']='obeyed'</script>"


class Browser:
    """Chromium without a window. A message is JSON and a zero byte; it reads from file 3 and writes to file 4."""

    def __init__(self, folder: Path) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        script = f'exec "$@" 3<&{read} 4>&{write}'
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        call = ["bash", "-c", script, "bash", str(BROWSER), *options]
        self._process = subprocess.Popen(call, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self._numbers = itertools.count(1)
        self._left = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found
                return dict(found["result"])

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def run(self, script: str) -> Any:
        """Return what a script gives, awaited."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.kill()
        self._process.wait()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._read, 2**16)
            assert part, "the browser has ended"
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        if "method" in found:
            self.events.append(found)
        return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module(HOSTILE, nn.Linear(4, 4))
    net.add_module("act", nn.ReLU())
    net.add_module("head", nn.Linear(4, 2))
    prepared = fxq.prepare(net.eval(), torch.ones(1, 4))
    data = [torch.randn(8, 4)]
    fxq.calibrate(prepared, data, progress=False)
    path = tmp_path_factory.mktemp("page") / "report.html"
    fxq.report(prepared, path, data, progress=False)
    return path


@pytest.mark.timeout(60)
def test_the_page_opens_without_errors_and_search_finds_a_node(page: Path, browser: Browser) -> None:
    browser.open(page.as_uri())
    assert browser.run("document.title") == "Sequential: tensorrt"  # nothing of a name was obeyed
    assert browser.run("document.querySelectorAll('#histograms svg').length") == 4
    assert browser.run("document.querySelectorAll('#layers .rows button').length") == 2
    browser.run(
        "const box = document.getElementById('search'); box.value = 'HEAD'; box.dispatchEvent(new Event('input'));"
        "box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))"
    )
    assert browser.run("document.getElementById('hits').innerText") == "head · linear · quantized"
    details = browser.run("document.getElementById('details').innerText")
    assert details.startswith("head\n")
    assert "tensorrt runs linear on quantized inputs" in details
    assert browser.run("location.hash") == "#head"
    said = [one for one in browser.events if one["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    said += [one for one in browser.events if one["method"] == "Log.entryAdded"]
    assert said == []
    asked = {one["params"]["request"]["url"] for one in browser.events if one["method"] == "Network.requestWillBeSent"}
    assert asked == {page.as_uri()}


@pytest.mark.timeout(60)
def test_a_link_opens_the_page_at_a_node_and_a_phone_shows_no_more_than_its_width(page: Path, browser: Browser) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=2, mobile=True)
    browser.open(f"{page.as_uri()}#act")
    assert browser.run("document.getElementById('details').innerText").startswith("act\n")
    assert browser.run("document.documentElement.scrollWidth") == 375
    # The canvas is drawn, sharp: something on it is not transparent.
    drawn = (
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {"
        "const c = document.getElementById('canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "done([c.width / c.clientWidth, d.data.some(value => value > 0)]) })))"
    )
    ratio, is_drawn = browser.run(drawn)
    assert ratio == pytest.approx(2, abs=0.02)
    assert is_drawn


def long_report(count: int) -> fxq.Report:
    """A chain of residual blocks, as many nodes as asked for."""
    tensors = [
        TensorRange(f"blocks.{i}.quantizer", False, -1.0, 1.0, 1, Histogram(0.0, 1.0, tuple(range(64)), True))
        for i in range(count)
    ]
    nodes = [
        GraphNode(
            f"conv_{i}", f"blocks.{i}", "conv", (1, 64, 56, 56),
            (QuantizedTensor("input", 0, one.quantizer, "int8 per tensor", "[-1, 1]", "plan_ops", "it is one"),), "",
        )
        for i, one in enumerate(tensors)
    ]  # fmt: skip
    edges = [GraphEdge(i, i + 1, f"blocks.{i + 1}.quantizer") for i in range(count - 1)]
    edges += [GraphEdge(i, i + 4, None) for i in range(0, count - 4, 4)]
    return fxq.Report(
        "Long", "calibrated", "tensorrt", "tensorrt", Coverage(), {"input": count}, None, Size(4, 1), {},
        tuple(nodes), tuple(edges), tuple(tensors),
    )  # fmt: skip


@pytest.mark.timeout(60)
def test_a_model_of_3000_nodes_stays_usable(tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "report.html"
    long_report(3000).write(path)
    assert path.stat().st_size < 3e6
    browser.open(path.as_uri())
    frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
    assert browser.run(frame) < 2000  # milliseconds until it is there; 300 on two shared cores
    seconds = browser.run(
        "const start = performance.now(); const box = document.getElementById('search'); box.value = 'blocks.2999';"
        "box.dispatchEvent(new Event('input')); box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}));"
        "(performance.now() - start) / 1000"
    )
    assert seconds < 0.5
    assert browser.run("document.getElementById('details').innerText").startswith("blocks.2999\n")
    browser.run("document.getElementById('fit').click()")
    begin = browser.run(frame)
    browser.run("for (let i = 0; i < 5; i += 1) document.getElementById('zoom-in').click()")
    assert browser.run(frame) - begin < 1000
