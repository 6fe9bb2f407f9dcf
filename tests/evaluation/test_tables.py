"""Tables: aligned, escaped, and printable whatever a name holds."""

import html

import pytest

from mlsm.evaluation.tables import Rows, Spread, as_html, as_markdown, as_text
from mlsm.log import printable

ROWS: Rows = {"first": {"a": 0.5, "b": 123.4, "c": "x y"}, "second": {"b": 1.0, "c": "7"}}


def test_text_aligns_numbers_to_the_right_and_text_to_the_left() -> None:
    assert as_text(ROWS, "Title").splitlines() == [
        "Title",
        "            a      b  c",
        "-" * 25,
        "first   0.500  123.4  x y",
        "second         1.000  7",
    ]


def test_markdown_has_the_same_cells_and_escapes_its_marks() -> None:
    assert as_markdown(ROWS) == (
        "|  | a | b | c |\n| --- | ---: | ---: | --- |\n| first | 0.500 | 123.4 | x y |\n"
        "| second |  | 1.000 | 7 |\n"
    )
    assert as_markdown({"a|b": {"c|d": "e|f"}}).splitlines()[2] == r"| a\|b | e\|f |"


def test_markdown_of_rows_without_names_may_repeat_one() -> None:
    rows = [{"text": "a", "n": 1}, {"text": "a", "n": 2}]
    assert as_markdown(rows) == "| text | n |\n| --- | ---: |\n| a | 1 |\n| a | 2 |\n"


def test_no_rows_are_no_error() -> None:
    assert as_html({}, "caption") == ""
    assert as_text({}, "Title").startswith("Title\n")
    assert as_markdown({})


def test_html_escapes_every_cell() -> None:
    mark = "<b>&\"'"
    table = as_html({mark: {mark: mark}}, mark, quoted=[mark])
    assert table.count(html.escape(mark)) == 5
    assert "<b>" not in table
    assert "<tr class=quoted>" in table


@pytest.mark.parametrize("write", [as_text, lambda rows, _: as_markdown(rows), as_html])
def test_no_table_holds_a_control_character(write) -> None:  # type: ignore[no-untyped-def]
    hostile = "a\x1b[31m\u202eb\x07\x9b"
    table = write({hostile: {hostile: hostile}}, "Title")
    assert table.replace("\n", "").isprintable()
    assert table.count("a\ufffd[31m\ufffdb\ufffd\ufffd") >= 3


def test_printable_keeps_every_script() -> None:
    assert printable("a\x1b[31m\u202eb\u0007 ▁é猫") == "a\ufffd[31m\ufffdb\ufffd ▁é猫"


def test_a_spread_shows_its_seeds_and_failures() -> None:
    spread = Spread(0.5, 0.012, 4, [13])
    assert "0.500 ±0.012 (4, 1 failed)" in as_text({"run": {"CoLA": spread}}, "Title")
