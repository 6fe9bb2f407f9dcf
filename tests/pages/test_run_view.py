"""The page about runs in a browser: what a reader switches, chooses and points at changes the drawings."""

import json
import re
from pathlib import Path

import pytest
from browser import browse, needs_browser, width_on_a_phone
from logged_runs import logged_run

from mlsm.files import write_json
from mlsm.pages.run_facts import RunFacts, read_facts
from mlsm.pages.run_view import SCRIPT, run_page

HOSTILE = "</script><img src=x onerror=\"document.title='ran'\">{data}"


def facts(folder: Path) -> list[RunFacts]:
    runs = [logged_run(folder / "first"), logged_run(folder / "second", num_lines=40)]
    write_json(runs[1] / "results.json", {"demo": {"word accuracy": 0.25, "pairs: a_b": 0.75}})
    return [read_facts(run, name) for run, name in zip(runs, (HOSTILE, "second"), strict=True)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_page(facts(tmp_path_factory.mktemp("runs")), {}, {}, {})


def drawing(document: str, measure: str = "concept_kl") -> str:
    """The drawing of a measure."""
    found = re.search(rf'data-measure="{measure}".*?(<svg.*?</svg>)', document, re.DOTALL)
    assert found
    return found[1]


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 200


def test_without_scripts_there_are_drawings_tables_and_a_legend(page: str) -> None:
    before, _, _ = page.partition("<script")
    assert before.index("<h2>Results") < before.index("<h2>Learning") < before.index("<h2>Settings")
    svg = drawing(before)
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 2
    assert before.count('<svg class="swatch"') == 2
    assert '<rect width="0.750" height="1"/>' in before  # the bar of a phenomenon


@needs_browser
def test_the_browser_draws_and_runs_nothing_of_a_name(page: str, tmp_path: Path) -> None:
    document = browse(page, tmp_path)
    assert "<title>&lt;/script&gt;" in document
    assert "<img" not in document
    assert 'id="legend"' not in document
    assert document.count('type="checkbox"') == 2
    assert drawing(document).count("<polyline") == 2
    assert 'class="grid"' in drawing(document)


PLAY = """
const done = {}, figure = document.querySelector('[data-measure="concept_kl"]');
const svg = figure.querySelector("svg");
const lines = () => [...svg.querySelectorAll("polyline")].map(line => line.getAttribute("points"));
const labels = () => [...svg.querySelectorAll("text")].map(text => text.textContent);
const tip = () => figure.querySelector(".tip").hidden ? null : figure.querySelector(".tip").textContent;
const at = (type, share) => {
  const {left, top, width} = svg.getBoundingClientRect();
  const clientX = left + width * (48 + share * 342) / 400;
  svg.dispatchEvent(new PointerEvent(type, {clientX, clientY: top + 9}));
};
const press = key => svg.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
const change = (id, type, value) => { $(id).value = value; $(id).dispatchEvent(new Event(type)); };
done.labels = labels();
at("pointermove", 0.125); done.both = tip();
done.dots = [...svg.querySelectorAll(".marks circle")].map(dot => getComputedStyle(dot).stroke);
at("pointermove", 0.5); done.tip = tip(); done.marks = document.querySelectorAll(".marks path").length;
at("pointerleave", 0.5); done.left = tip();
at("pointerdown", 0.25); at("pointermove", 0.5); at("pointerup", 0.5); done.zoom = state.zoom;
done.outside = labels(); press("Escape"); done.whole = state.zoom;
press("+"); done.pressed = state.zoom; press("ArrowRight"); done.moved = tip(); $("all").click();
change("axis", "change", "words"); done.words = labels();
change("axis", "change", "hours"); done.minutes = [labels(), $("axis").selectedOptions[0].textContent];
change("axis", "change", "step"); const raw = lines();
change("smoothing", "input", 2); done.smooth = [raw.length, lines().length, $("reach").textContent];
done.first = pointsOf(runs[0].training, "concept_kl"); done.mean = smoothed(done.first, 1);
document.querySelector("#runs input").click(); done.off = lines().length;
document.querySelector("#runs input").click(); done.on = lines().length;
document.querySelectorAll("#runs input").forEach(box => box.click()); done.none = figure.hidden;
const shown = {id: "done", textContent: JSON.stringify(done)};
document.body.append(Object.assign(document.createElement("pre"), shown));
"""


@needs_browser
def test_switches_axes_zoom_smoothing_and_values(page: str, tmp_path: Path) -> None:
    document = browse(page, tmp_path, script=PLAY)
    found = re.search(r'<pre id="done">(.*?)</pre>', document)
    assert found, "the script ended with an error"
    done = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert {"0", "100", "400"} <= set(done["labels"])
    assert done["both"].startswith("update 50 ")
    assert set(done["dots"]) == {"rgb(0, 114, 178)", "rgb(213, 94, 0)"}  # the first two of COLORS
    assert f" 1 {HOSTILE}" in done["both"]
    assert " 1 second" in done["both"]
    assert done["tip"] == "update 200 0.25 second"  # the other run ends at update 50
    assert done["marks"] >= 5  # a line in every drawing
    assert done["left"] is None
    assert done["zoom"] == pytest.approx([100, 200])
    assert "400" not in done["outside"]
    assert done["whole"] is None
    assert done["pressed"] == pytest.approx([100, 300])
    assert "update" in done["moved"]
    assert "2K" in done["words"]
    assert done["minutes"][1] == "minutes"
    assert "1" in done["minutes"][0]
    assert done["smooth"] == [2, 4, "mean of 5 values"]
    values = [y for _, y in done["first"]]
    assert [y for _, y in done["mean"]] == pytest.approx(
        [values[0], *(sum(values[i - 1 : i + 2]) / 3 for i in (1, 2, 3)), values[4]]
    )
    assert (done["off"], done["on"], done["none"]) == (2, 4, True)


@needs_browser
def test_nothing_sticks_out_on_a_phone(page: str, tmp_path: Path) -> None:
    cut = "[...page.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    width, available, num_cut = width_on_a_phone(page, tmp_path, cut)
    assert width == available <= 390
    assert num_cut == 0
