"""The page in a real browser, where one is installed, driven over a pipe by the DevTools protocol."""

import itertools
import json
import os
import shutil
import statistics
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
from fxq.verification.finding import Finding

NAMES = (
    "chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell",
)  # fmt: skip
BROWSER = os.environ.get("FXQ_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(NAMES)}, or FXQ_CHROMIUM=its path"),
    pytest.mark.timeout(180),  # a browser that does not answer; the page itself takes seconds
]
# What is drawn is there two frames later.
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
PLACE = "document.getElementById('drawing')"
GRAPH = "Bokeh.documents.find(one => one.get_model_by_name('nodes'))"
# Whether all that is in view is drawn, at last.
DRAWN = """new Promise((done, failed) => {
  const end = performance.now() + 30000;
  const isThere = (one) => one.getBoundingClientRect().top > innerHeight || one.matches(".drawn");
  const wait = () => {
    if ([...document.querySelectorAll("#drawing, .plot, .histogram")].every(isThere))
      requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
    else if (performance.now() > end) failed("nothing is drawn");
    else requestAnimationFrame(wait);
  };
  wait();
})"""
CANVAS = """(function find(root) {
  for (const one of root.querySelectorAll("*")) {
    const found = one.tagName === "CANVAS" ? one : one.shadowRoot && find(one.shadowRoot);
    if (found) return found;
  }
})(document.getElementById("drawing"))"""
DETAILS = "document.getElementById('details').innerText"
LAYER = 62  # pixels from one layer of the graph to the next, at the scale of a small graph
FINDING = Finding("lone-quantizer", "", "head_input_quantizer", "warning", "remove it", "is read by nothing", "time")
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

    def open(self, address: str) -> float:
        """Return the milliseconds until what is in view is drawn."""
        self.ask("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()
        return float(self.run(DRAWN))

    def run(self, script: str) -> Any:
        """Return what a script gives, awaited."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def point(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Let the mouse do something at a place of the window."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.point(kind, x, y, button="left", clickCount=1)
        self.run("new Promise(done => setTimeout(done, 400))")  # another one, sooner, were a double click

    def touch(self, kind: str, *fingers: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(fingers)]
        self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=points)

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
    """Of a chain: an input, a linear layer, "act", "head", the output; with a finding at the quantizer of "head"."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module(HOSTILE, nn.Linear(4, 4))
    net.add_module("act", nn.ReLU())
    net.add_module("head", nn.Linear(4, 2))
    prepared = fxq.prepare(net.eval(), torch.ones(1, 4))
    data = [torch.randn(8, 4)]
    fxq.calibrate(prepared, data, progress=False)
    path = tmp_path_factory.mktemp("page") / "report.html"
    fxq.report(prepared, path, data, findings=[FINDING], progress=False)
    return path


def test_the_page_opens_without_errors_and_search_finds_a_node(page: Path, browser: Browser) -> None:
    browser.open(page.as_uri())
    assert browser.run("document.title") == "Sequential: tensorrt"  # nothing of a name was obeyed
    browser.run("document.getElementById('histograms').scrollIntoView()")
    browser.run(DRAWN)
    assert browser.run("document.querySelectorAll('#histograms .drawn').length") == 4
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


def test_a_link_opens_the_page_at_a_node_and_a_phone_shows_no_more_than_its_width(page: Path, browser: Browser) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=2, mobile=True)
    browser.open(f"{page.as_uri()}#act")
    assert browser.run("document.getElementById('details').innerText").startswith("act\n")
    assert browser.run("document.documentElement.scrollWidth") == 375
    # The canvas is drawn, sharp: something on it is not transparent.
    assert browser.run(f"{CANVAS}.width / {CANVAS}.clientWidth") == pytest.approx(2, abs=0.02)
    assert inked(browser) > 0


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


def test_a_model_of_3000_nodes_stays_usable(tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "report.html"
    long_report(3000).write(path)
    assert path.stat().st_size < 4.5e6  # 1.3 MB of it is Bokeh
    assert browser.open(path.as_uri()) < 4000  # milliseconds; 900 on two shared cores
    seconds = browser.run(
        "const start = performance.now(); const box = document.getElementById('search'); box.value = 'blocks.2999';"
        "box.dispatchEvent(new Event('input')); box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}));"
        "(performance.now() - start) / 1000"
    )
    assert seconds < 0.5
    assert browser.run("document.getElementById('details').innerText").startswith("blocks.2999\n")
    browser.run("document.getElementById('fit').click()")
    assert milliseconds_of_a_frame(browser) < 200  # all nodes are drawn; 40 on two shared cores
    for _ in range(12):
        browser.run("document.getElementById('zoom-in').click()")
    assert milliseconds_of_a_frame(browser) < 200  # 20, with some labels


def milliseconds_of_a_frame(browser: Browser) -> float:
    """Return the median over twenty steps of a drag."""
    x, y = middle_of_graph(browser)
    browser.run(
        "window.frames_at = []; window.record = (now) => { frames_at.push(now); requestAnimationFrame(record); };"
        "requestAnimationFrame(record)"
    )
    browser.point("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    for step in range(20):
        browser.point("mouseMoved", x + 2 * step, y - 4 * step, button="left", buttons=1)
    browser.point("mouseReleased", x + 40, y - 80, button="left", clickCount=1)
    found = browser.run(f"{FRAMES}.then(() => {{ window.record = () => {{}}; return frames_at; }})")
    return statistics.median(later - sooner for sooner, later in itertools.pairwise(found))


def middle_of_graph(browser: Browser) -> tuple[float, float]:
    """Return where the middle of the graph is in the window, which scrolls there."""
    browser.run(f"{PLACE}.scrollIntoView({{block: 'center'}})")
    x, y = browser.run(
        f"(() => {{ const b = {PLACE}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
    )
    return x, y


def seen(browser: Browser) -> tuple[float, float, float]:
    """Return what is in the middle of the graph, and how many pixels a unit is."""
    browser.run(FRAMES)
    left, right, bottom, top, width = browser.run(
        f"(() => {{ const {{x_range: x, y_range: y}} = {GRAPH}.all_roots[0];"
        f"return [x.start, x.end, y.start, y.end, {PLACE}.clientWidth]; }})()"
    )
    return (left + right) / 2, (bottom + top) / 2, width / (right - left)


def inked(browser: Browser) -> int:
    """Return how many pixels of the graph are drawn on."""
    browser.run(FRAMES)
    count: int = browser.run(
        f"(() => {{ const c = {CANVAS}, d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )
    return count


def test_a_click_on_a_node_shows_its_reason_and_range(page: Path, browser: Browser) -> None:
    browser.open(f"{page.as_uri()}#act")  # in the middle of the canvas
    x, y = middle_of_graph(browser)
    browser.click(x, y + LAYER)
    details = browser.run(DETAILS)
    assert details.startswith("head\n")
    assert "range [-" in details
    assert "tensorrt runs linear on quantized inputs" in details
    browser.run("document.getElementById('details').scrollIntoView()")
    browser.run(DRAWN)
    assert browser.run("document.querySelectorAll('#details figure .drawn').length") == 2
    x, y = middle_of_graph(browser)
    browser.click(x, y)
    details = browser.run(DETAILS)
    assert details.startswith("act\n")
    assert "Nothing is quantized for it: tensorrt computes it in the epilogue" in details
    browser.click(x + 300, y)  # beside all nodes
    assert browser.run(DETAILS) == details
    assert browser.run("location.hash") == "#act"


def test_zoom_changes_what_is_drawn(page: Path, browser: Browser) -> None:
    browser.open(f"{page.as_uri()}#act")
    x, y = middle_of_graph(browser)
    start = inked(browser)
    browser.run("document.getElementById('zoom-in').click()")
    closer = inked(browser)
    assert closer > 1.3 * start  # 1.4 times as wide and as high, but some of it is outside now
    browser.run("document.getElementById('zoom-out').click()")
    assert inked(browser) == pytest.approx(start, rel=0.01)
    browser.point("mouseWheel", x, y, deltaX=0, deltaY=100, modifiers=2)  # with Ctrl
    further = inked(browser)
    assert further < 0.8 * start
    browser.run("document.getElementById('fit').click()")
    whole = inked(browser)
    browser.click(x, y)  # the middle of the whole is "act" again
    assert browser.run(DETAILS).startswith("act\n")
    assert whole > further


def test_a_pinch_keeps_what_the_fingers_touch_and_a_swipe_beside_the_graph_scrolls(
    page: Path, browser: Browser
) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=2, mobile=True)
    browser.ask("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    browser.open(f"{page.as_uri()}#act")
    x, y = middle_of_graph(browser)
    start = seen(browser)
    for factor in (2, 0.5):
        before = seen(browser)
        fingers = [((x, y - 40 * size), (x, y + 40 * size)) for size in (1, (1 + factor) / 2, factor)]
        browser.touch("touchStart", *fingers[0])
        for pair in fingers[1:]:
            browser.touch("touchMove", *pair)
        browser.touch("touchEnd")
        assert seen(browser) == pytest.approx((*start[:2], before[2] * factor), rel=0.01, abs=1)
    browser.touch("touchStart", (x, y))
    for step in range(1, 6):
        browser.touch("touchMove", (x, y - 20 * step))
    browser.touch("touchEnd")
    assert seen(browser)[1] == pytest.approx(start[1] - 100 / start[2], abs=2)
    top = browser.run("scrollY")
    browser.run("document.getElementById('histograms').scrollIntoView()")
    assert browser.run("getComputedStyle(document.querySelector('.histogram')).touchAction") == "auto"
    assert browser.run("scrollY") != top


def test_labels_are_drawn_where_they_can_be_read(page: Path, browser: Browser) -> None:
    labelled = f"{GRAPH}.get_model_by_name('labelled').indices"
    browser.open(f"{page.as_uri()}#act")
    assert browser.run(labelled) == [0, 1, 2, 3, 4]
    sizes = []
    for _ in range(5):
        sizes.append(browser.run(f"parseFloat({GRAPH}.get_model_by_name('name label').text_font_size.value)"))
        browser.run("document.getElementById('zoom-out').click()")
        browser.run(FRAMES)
    assert all(sooner == pytest.approx(1.4 * later) for sooner, later in itertools.pairwise(sizes))
    assert browser.run(labelled) == []


def test_the_wheel_scrolls_the_page_and_keys_move_the_graph(page: Path, browser: Browser) -> None:
    browser.open(f"{page.as_uri()}#act")
    x, y = middle_of_graph(browser)
    start = seen(browser)
    browser.point("mouseWheel", x, y, deltaX=0, deltaY=30)
    assert seen(browser) == start
    browser.run(f"{PLACE}.focus()")
    for key, moved in (("ArrowDown", (0, -40, 1)), ("ArrowRight", (40, 0, 1)), ("+", (0, 0, 1.2))):
        before = seen(browser)
        browser.run(f"{PLACE}.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        right, up, factor = moved
        after = (before[0] + right / before[2], before[1] + up / before[2], before[2] * factor)
        assert seen(browser) == pytest.approx(after, abs=0.01)


def test_hits_are_marked_and_names_of_others_are_text_in_what_the_pointer_shows(page: Path, browser: Browser) -> None:
    browser.open(f"{page.as_uri()}#act")
    browser.run(
        "const box = document.getElementById('search'); box.value = 'linear'; box.dispatchEvent(new Event('input'))"
    )
    browser.run(FRAMES)
    assert browser.run(f"{GRAPH}.get_model_by_name('matches').indices") == [1, 3]
    x, y = middle_of_graph(browser)
    browser.point("mouseMoved", x, y - LAYER)
    browser.run(FRAMES)
    shown = f"({EVERYWHERE}).find(one => one.matches('.bk-Tooltip')).shadowRoot.textContent"
    assert HOSTILE in browser.run(shown)
    assert browser.run("document.title") == "Sequential: tensorrt"


def test_a_click_in_a_plot_shows_the_layer_below_it(page: Path, browser: Browser) -> None:
    browser.open(page.as_uri())
    browser.run("document.querySelector('#layers .plot').scrollIntoView({block: 'center'})")
    browser.run(DRAWN)
    x, y, width = browser.run(
        "(() => { const b = document.querySelector('#layers .plot').getBoundingClientRect();"
        "return [b.x, b.y + 60, b.width]; })()"
    )
    browser.click(x + 0.9 * width, y)
    browser.run(FRAMES)
    assert browser.run(DETAILS).startswith("head\n")
    assert browser.run(f"{GRAPH}.get_model_by_name('nodes').selected.indices") == [3]


def test_findings_and_passes_are_shown_and_a_finding_at_a_quantizer_at_what_reads_it(
    page: Path, browser: Browser
) -> None:
    browser.open(f"{page.as_uri()}#head")
    row = browser.run("document.querySelector('#findings tbody tr').innerText")
    assert all(part in row for part in ("head_input_quantizer", "lone-quantizer", "is read by nothing", "remove it"))
    assert browser.run("document.getElementById('passes').innerText").startswith("What each pass did")
    assert browser.run("document.querySelectorAll('#passes tbody tr').length") >= 1
    assert "warning: lone-quantizer\n\nis read by nothing remove it" in browser.run(DETAILS)
    browser.run("location.hash = 'act'")
    browser.run(FRAMES)
    assert browser.run(DETAILS).startswith("act\n")
    assert "lone-quantizer" not in browser.run(DETAILS)


# Elements of the page, and those that Bokeh keeps to itself.
EVERYWHERE = """(function all(root) {
  return [...root.querySelectorAll("*")].flatMap((one) => [one, ...(one.shadowRoot ? all(one.shadowRoot) : [])]);
})(document.body)"""
# WCAG 2.2, 1.4.3: (lighter + 0.05) / (darker + 0.05) of relative luminances. Of each element with text of its own, what
# is painted under it is the first ancestor that is not transparent.
CONTRASTS = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const under = (one) => {
    for (; one; one = one.parentElement ?? one.getRootNode().host) {
      const color = parts(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
  };
  const hasText = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const shown = EVERYWHERE.filter((one) => one.tagName !== "STYLE" && hasText(one) && one.getClientRects().length);
  return shown.map((one) => {
    const style = getComputedStyle(one);
    const pair = [parts(style.color), under(one)].map(luminance);
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), one.tagName + ": " + one.textContent];
  });
})()""".replace("EVERYWHERE", EVERYWHERE)


def test_all_text_is_readable_in_light_and_in_dark(page: Path, browser: Browser) -> None:
    browser.open(f"{page.as_uri()}#head")
    browser.point("mouseMoved", *middle_of_graph(browser))  # text at the pointer
    found = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.ask("Emulation.setEmulatedMedia", features=[feature])
        contrasts = browser.run(CONTRASTS)
        assert len(contrasts) > 40
        assert min(contrasts) > [4.5, ""], scheme
        browser.run(FRAMES)
        browser.run(FRAMES)
        corner = f"{CANVAS}.getContext('2d').getImageData({CANVAS}.width / 2, {CANVAS}.height / 2 - 15, 1, 1).data"
        found[scheme] = (
            browser.run("getComputedStyle(document.body).backgroundColor"),
            browser.run("getComputedStyle(document.body).color"),
            browser.run(f"[...{corner}].join()"),  # the fill of "head", above its text
        )
    assert all(one != other for one, other in zip(found["light"], found["dark"], strict=True))
