"""The page of concepts: well formed, closed to what a corpus holds, and working in a browser.

The browser is a headless Chromium that prints the document after its scripts. What a user would do is done by
a script that a test adds to a copy of the page.
"""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browse, needs_browser, width_on_a_phone
from small_reports import HOSTILE, NUM_CONCEPTS, small_report, small_sentence

from mlsm.pages import concept_view
from mlsm.pages.concept_report import ConceptReport

VOID = {"meta", "link", "input", "br", "img"}


@pytest.fixture(scope="module")
def report() -> ConceptReport:
    return small_report()


@pytest.fixture(scope="module")
def page(report: ConceptReport) -> str:
    return concept_view.concept_page(report, small_sentence())


class Outline(HTMLParser):
    """Every start tag with its attributes; fails where an element is not closed by its own end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_of_one_file(page: str) -> None:
    outline = Outline(page)
    identifiers = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert [tag for tag, _ in outline.tags].count("script") == 2
    loaded = [a.get("src") or a.get("href") for _, a in outline.tags if a.get("src") or a.get("href")]
    assert loaded == ["data:,", "#list"]
    assert "http" not in concept_view.TEMPLATE.read_text().replace("http-equiv", "")
    labelled = {attributes.get("for") for tag, attributes in outline.tags if tag == "label"}
    assert labelled == {"text", "search", "source", "sort", "grouped"}


def test_the_policy_names_the_page_s_own_script_and_style(page: str) -> None:
    for kind in ("script", "style"):
        inner = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert inner
        digest = base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_what_is_embedded_is_the_report(page: str, report: ConceptReport) -> None:
    embedded = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert embedded
    assert "<" not in embedded[1]
    assert json.loads(embedded[1]) == json.loads(report.to_json(small_sentence()))
    assert "▁</script><script>" not in page
    assert HOSTILE[0] in report.pieces
    assert json.loads(embedded[1])["sources"]["teacher"]["tokens"][7] == [[report.pieces.index("▁king"), 1.0]]
    assert embedded[1].isprintable()
    assert not re.search(r"\\u00[0189]", embedded[1].replace("\\u003c", ""))  # escaped control characters


def test_pictures_take_any_text(report: ConceptReport, tmp_path: Path) -> None:
    concept_view.draw_concepts(tmp_path / "concepts.png", report)
    assert (tmp_path / "concepts.png").read_bytes().startswith(b"\x89PNG")


def text_of(document: str, identifier: str) -> str:
    """The text of the element with this id, which must not hold another of the same tag."""
    element = re.search(rf'<(\w+)[^>]*id="{identifier}".*?</\1>', document, re.DOTALL)
    assert element, identifier
    return html.unescape(re.sub(r"<[^>]*>", "", element[0]))


def shown_concepts(document: str) -> list[int]:
    rows = re.search(r'<tbody id="rows">(.*?)</tbody>', document, re.DOTALL)
    assert rows
    return [int(number) for number in re.findall(r">#(\d+)</a>", rows[1])]


@needs_browser
def test_the_browser_shows_the_concepts_and_runs_nothing_of_the_corpus(page: str, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "grouped=no")
    assert text_of(document, "title") == text_of(document, "title").strip() == "Concepts of runs/<b>bold</b>"
    assert "<title>Concepts of runs/&lt;b&gt;bold&lt;/b&gt;</title>" in document
    assert not re.search(r"<(img|b|i)[ >]", document)
    assert len(shown_concepts(document)) == 200
    assert text_of(document, "more") == "Show 60 more"
    assert text_of(document, "status") == "260 concepts"
    for title in ("Use", "Dictionary", "Agreement with the teacher", "Stability"):
        assert f"<h3>{title}</h3>" in document
    assert document.count("<tbody>") == 5
    assert document.count("<circle") > 50


@needs_browser
def test_groups_hide_near_duplicates_until_one_asks(page: str, report: ConceptReport, tmp_path: Path) -> None:
    document = browse(page, tmp_path)
    source = report.sources["student"]
    used = [k for k in report.by_interest("student") if source.share[k]]
    assert shown_concepts(document) == used[:200]
    assert len(used) == report.tables["Use"]["groups"]["student"]
    assert f"are {len(used)} groups of near-duplicates" in text_of(document, "status")
    member = next(k for k, leader in enumerate(source.leader) if leader != k)
    alike = browse(page, tmp_path, f"concept={member}").split("Near-duplicates (")[1]
    assert re.search(rf'href="#concept={source.leader[member]}"', alike)


@needs_browser
def test_the_sentence_is_painted_for_each_reader(page: str, tmp_path: Path) -> None:
    sentence = small_sentence()
    strongest, weight = sentence.weights["student"][0][0]
    document = browse(page, tmp_path, f"concept={strongest}")
    shown = text_of(document, "sentence")
    assert f"#{strongest} by the teacher:" in shown
    assert f"{100 * weight:.0f} % #{strongest}" in shown
    assert document.count('class="painted"') == 2
    assert "chip chosen" in document
    assert not re.search(r"<(img|b|i)[ >]", document)


@needs_browser
def test_the_address_holds_the_state(page: str, report: ConceptReport, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "search=KING&sort=-concept&concept=7&source=teacher")
    assert shown_concepts(document) == [7]
    assert text_of(document, "status") == "1 of 260 concepts match “KING”"
    assert "<title>#7: Concepts" in document
    assert text_of(document, "heading") == "Concept #7: king"
    assert "100.0 %" in document
    assert html.escape(HOSTILE[0], quote=False) in document  # in a context
    assert not re.search(r"<(img|b|i)[ >]", document)
    document = browse(page, tmp_path, "sort=shared&grouped=no")
    shown = shown_concepts(document)
    assert (
        shown
        == sorted(
            range(NUM_CONCEPTS), key=lambda k: (report.shared[k], -report.sources["student"].share[k], k)
        )[:200]
    )


@needs_browser
def test_a_wrong_address_is_no_error(page: str, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "concept=99999&sort=nothing&source=nobody&search=%3Cimg%20src=x%3E")
    assert text_of(document, "status").startswith("0 of 260")
    assert "<title>Concepts of" in document
    assert "<img" not in document


KEYS = """
const done = [];
const wait = () => new Promise(resolve => setTimeout(resolve, 50));
const press = key => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const note = () => { const at = document.activeElement; done.push(at.id || at.textContent.slice(0, 20)); };
(async () => {
  document.body.focus(); press("/"); note();
  const search = document.getElementById("search");
  search.value = "queen"; search.dispatchEvent(new Event("input")); await wait(); done.push(location.hash);
  press("ArrowDown"); note(); press("ArrowDown"); note(); press("ArrowUp"); note();
  document.activeElement.click(); await wait(); note();
  press("Escape"); await wait(); note();
  press("Escape"); note();
  search.value = ""; search.dispatchEvent(new Event("input")); await wait();
  document.getElementById("grouped").click(); await wait();
  document.querySelector("#heads button").click(); await wait();
  done.push(document.querySelector("#heads th").getAttribute("aria-sort"), document.activeElement.id);
  document.getElementById("more").click(); done.push(document.querySelectorAll("#rows tr").length); note();
  const keys = Object.assign(document.createElement("pre"), {id: "keys", textContent: JSON.stringify(done)});
  document.body.append(keys);
})();
"""


@needs_browser
def test_the_keyboard_reaches_everything(page: str, tmp_path: Path) -> None:
    document = browse(page, tmp_path, script=KEYS)
    steps = json.loads(text_of(document, "keys"))
    assert steps[:2] == ["search", "#search=queen"]
    first, second, back = steps[2:5]
    assert first == back != second
    assert re.fullmatch(r"#\d+", first)
    assert steps[5] == "heading"  # the concept that was opened
    assert steps[6:8] == [first, "search"]
    assert steps[8] == "ascending"
    assert steps[10:] == [260, "#200"]


@needs_browser
@pytest.mark.parametrize("state", ["", "concept=7", "search=king"])
def test_nothing_sticks_out_on_a_phone(page: str, tmp_path: Path, state: str) -> None:
    count = "page.querySelectorAll('#rows tr').length"
    width, available, num_rows = width_on_a_phone(page, tmp_path, count, state)
    assert width == available <= 390
    assert num_rows > 0
