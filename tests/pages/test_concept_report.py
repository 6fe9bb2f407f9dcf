"""The report on concepts: its lists fit together, its texts are printable, its JSON holds all of it."""

import dataclasses
import json

import pytest
from small_reports import HOSTILE, NUM_CONCEPTS, PIECES, small_report, small_sentence

from mlsm.pages.concept_report import MEANINGS, ConceptReport, concept_rows, sentence_rows

KING = 7  # the concept that is "▁king" and nothing else


@pytest.fixture(scope="module")
def report() -> ConceptReport:
    return small_report()


def test_a_planted_concept_is_its_token(report: ConceptReport) -> None:
    king = report.pieces.index("▁king")
    for reader in report.sources.values():
        assert reader.tokens[KING] == [(king, 1.0)]
        assert reader.token_concepts[king] == [(KING, 1.0)]
        assert reader.entropy[KING] == 0
        assert reader.active[KING] == pytest.approx(report.counts[king] / report.about.positions, abs=1e-6)
        assert {report.pieces[report.sequences[c.sequence][c.place]] for c in reader.contexts[KING]} == {
            "▁king"
        }
        assert reader.share[-1] == 0
        assert reader.contexts[-1] == []
        assert report.label("teacher", KING) == "king"
        assert reader.leader[KING] == KING
        assert reader.interest[KING] == 0


def test_a_space_alone_is_a_label(report: ConceptReport) -> None:
    pieces = ["▁" if piece == "▁king" else piece for piece in report.pieces]
    assert dataclasses.replace(report, pieces=pieces).label("teacher", KING) == "▁"


def test_every_measure_has_a_meaning(report: ConceptReport) -> None:
    assert {measure for table in report.tables.values() for measure in table} == MEANINGS.keys()
    used = report.tables["Use"]["concepts used"]["teacher"]
    assert used + report.tables["Use"]["dead concepts"]["teacher"] == NUM_CONCEPTS


def test_the_table_of_the_dictionary_has_codes_between_zeros_and_states(report: ConceptReport) -> None:
    table = report.tables["Dictionary"]
    assert table["variance explained"] == {"codes": 0.8}
    assert table["cross-entropy"] == {"codes": 2.5, "states themselves": 2.0, "zeros": 7.0}
    for name, recovered in (("loss recovered", 0.9), ("KL recovered", 0.9)):
        assert table[name] == {"codes": pytest.approx(recovered), "states themselves": 1, "zeros": 0}


def test_a_dictionary_is_found_again_in_reverse(report: ConceptReport) -> None:
    assert report.again == [(NUM_CONCEPTS - 1 - k, 1.0) for k in range(NUM_CONCEPTS)]
    assert report.tables["Stability"]["found again"]["other dictionary"] == 1


def test_the_sentence_lists_its_concepts(report: ConceptReport) -> None:
    sentence = small_sentence()
    rows = sentence_rows(report, sentence)
    assert [name.split(" ", 1)[0] for name in rows] == ["1", "2", "3"]
    for row, listed in zip(rows.values(), sentence.weights["student"], strict=True):
        concept, weight = listed[0]
        assert str(row["student"]).startswith(
            f"#{concept} {report.label('student', concept, 1)} {weight:.0%}"
        )


def test_rows_are_the_most_interesting_concepts_one_of_each_group(report: ConceptReport) -> None:
    first = concept_rows(report, "student", 3)
    use = report.sources["student"]
    leaders = sorted({*use.leader}, key=lambda k: (-use.interest[k], -use.share[k], k))
    assert list(first) == [f"#{k}" for k in leaders[:3]]
    rows = concept_rows(report, "student", NUM_CONCEPTS)
    assert sum(int(str(row["alike"])) for row in rows.values()) == NUM_CONCEPTS
    assert rows[f"#{KING}"]["tokens"] == "▁king 100%"
    assert rows[f"#{KING}"]["again"] == 1.0


def test_json_holds_everything_and_no_tag(report: ConceptReport) -> None:
    text = report.to_json()
    assert "<" not in text
    assert text.isprintable()
    content = json.loads(text)
    assert content.keys() == vars(report).keys() | {"meanings", "sentence", "served"}
    assert content["sources"]["teacher"]["share"] == report.sources["teacher"].share
    assert HOSTILE[0] in content["pieces"]
    assert "\x1b[31m" in PIECES
    assert "\ufffd[31m" in content["pieces"]
