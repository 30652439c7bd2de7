"""The page of fxq.report: whole in itself, and what a model's names are, text."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.reporting.page import as_inert_json
from fxq.runtimes import Latency
from fxq.verification.finding import Finding

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028\u202e'`${1}"


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(name, nn.Linear(4, 4))
        self.child, self.last = name, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._modules[self.child](x).relu())


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[int, str]] = []
        self.open: list[tuple[str, int]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1][1] if self.open else -1, data))

    def within(self, tag: str, **attributes: str) -> str:
        """Return the text of the one element of this tag with these attributes."""
        (found,) = [
            index
            for index, (name, given) in enumerate(self.elements)
            if name == tag and all(given.get(key) == value for key, value in attributes.items())
        ]
        return "".join(self.parts(found))

    def parts(self, element: int) -> list[str]:
        return [data for index, data in self.text if index == element]


def prepared(name: str = "first") -> torch.fx.GraphModule:
    result = fxq.prepare(Named(name).eval(), X, fxq.recipe("tensorrt").with_accuracy("fast").replace(name=name))
    fxq.calibrate(result, [X], progress=False)
    return result


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxq.Report, str]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    finding = Finding(**dict.fromkeys(("rule", "node", "path", "severity", "fix", "what", "cost"), HOSTILE + '"'))
    report = fxq.report(prepared(HOSTILE), path, [X], findings=[finding], latency={HOSTILE: Latency((1.0,))})
    return report, path.read_text(encoding="utf-8")


def test_the_page_holds_the_data_of_the_report(hostile: tuple[fxq.Report, str]) -> None:
    report, text = hostile
    page = Page(text)
    assert page.open == []
    data = json.loads(page.within("script", id="data"))
    states, places = data.pop("states"), data.pop("places")
    assert data == json.loads(json.dumps(report.to_dict()))
    assert states == ["other", "quantized", "other", "quantized", "other"]
    assert len(places) == len(report.findings) == 1
    assert json.loads(page.within("script", id="figures")).keys() == {"drawing", "histogram", "layers", "sensitivity"}
    assert HOSTILE in {node["path"] for node in data["nodes"]}
    for step in report.calibration.steps:
        assert any(step.name == part for _, part in page.text)


def test_nothing_of_a_name_is_markup(hostile: tuple[fxq.Report, str]) -> None:
    page = Page(hostile[1])
    assert [tag for tag, _ in page.elements].count("script") == 4
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    title = page.within("title")
    assert title == "Named: " + HOSTILE.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")


def test_the_page_asks_for_nothing_else(hostile: tuple[fxq.Report, str]) -> None:
    page = Page(hostile[1])
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys()
    style = page.within("style")
    assert "url(" not in style
    assert "@import" not in style
    _, own = scripts = ["".join(page.parts(index)) for index, one in enumerate(page.elements) if one == ("script", {})]
    assert not re.search(r"fetch\(|XMLHttpRequest|import[ (]|innerHTML|eval\(", own)
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    checksums = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{checksum}'" for checksum in checksums)
    assert policy == f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'"


def test_the_same_report_is_the_same_page(hostile: tuple[fxq.Report, str], tmp_path: Path) -> None:
    report, text = hostile
    report.write(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_a_page_without_its_library_is_refused_first_and_json_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("page", "figures", "graph_figure"):  # as in a process that has not drawn anything yet
        monkeypatch.delitem(sys.modules, f"fxq.reporting.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(fxq.MissingExtraError, match=r"pip install 'fxq\[report\]'"):
        fxq.report(prepared(), tmp_path / "report.html", [object()], progress=False)
    fxq.report(prepared(), tmp_path / "report.json", [X], progress=False)
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]


def test_inert_json_is_the_same_data_without_markup() -> None:
    value = {HOSTILE: [HOSTILE, "\ud800", 1.5, None]}
    text = as_inert_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_json_is_the_same_data(tmp_path: Path) -> None:
    report = fxq.report(prepared(), tmp_path / "report.json", [X], progress=False)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(report.to_dict())
    )


def test_a_name_that_no_file_can_hold_is_escaped(tmp_path: Path) -> None:
    report = fxq.report(prepared())
    object.__setattr__(report, "model", "a\ud800b")
    report.write(tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).within("h1") == "a\\ud800b"


@pytest.mark.parametrize(
    ("name", "match"),
    [("report.txt", r"\.html for a page or \.json for data"), ("no/report.html", "no does not exist")],
    ids=["suffix", "folder"],
)
def test_a_place_where_nothing_can_be_written_is_refused_first(tmp_path: Path, name: str, match: str) -> None:
    with pytest.raises(fxq.ExportError, match=match):
        fxq.report(prepared(), tmp_path / name, [object()], progress=False)
    assert list(tmp_path.iterdir()) == []
