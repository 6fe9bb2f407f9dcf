"""The formats of BabyLM 2026: mistakes are named with file and line; items are what the organisers score."""

from pathlib import Path

import pytest
from babylm_files import write_babylm
from task_files import write_lines

from mlsm.evaluation.babylm.formats import FULL, TASKS, Item, average, read_task

GOOD: dict[str, dict[str, object]] = {
    "blimp": {"sentence_good": "a b", "sentence_bad": "b a", "field": "syntax", "UID": "one"},
    "supplement": {"sentence_good": "a b", "sentence_bad": "b a"},
    "ewok": {"Domain": "d", "Context1": "It rains.", "Context2": "Sun.", "Target1": "Wet."},
    "entity": {"input_prefix": "Box 1 has", "options": [" a", " b"], "numops": 2},
    "comps": {"prefix_acceptable": "A cat", "prefix_unacceptable": "A tin", "property_phrase": "can run."},
    "global_piqa_nonparallel": {
        "prompt": "To sit,", "solution0": "stand.", "solution1": "use a chair.", "label": 1, "example_id": "e"
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blimp", {"sentence_bad": None}, "sentence_bad must be text, got None"),
        ("blimp", {"UID": 3}, "UID must be text"),
        ("supplement", {"sentence_good": " "}, "sentence_good is empty"),
        ("ewok", {"Target1": ["x"]}, "Target1 must be text"),
        ("entity", {"options": [" a"]}, "options must be a list of two or more texts"),
        ("entity", {"options": [" a", 1]}, "options must be a list of two or more texts"),
        ("entity", {"numops": "2"}, "numops must be a whole number in 0..999, got '2'"),
        ("entity", {"numops": True}, "numops must be a whole number"),
        ("comps", {"property_phrase": 1.5}, "property_phrase must be text"),
        ("global_piqa_nonparallel", {"label": 2}, "label must be a whole number in 0..1, got 2"),
        ("global_piqa_nonparallel", {"example_id": 7}, "example_id must be text"),
    ],
)
def test_wrong_fields_are_named_with_their_line(
    tmp_path: Path, name: str, change: dict[str, object], message: str
) -> None:
    write_lines(tmp_path / "file.jsonl", [GOOD[name], GOOD[name] | change])
    with pytest.raises(ValueError, match=rf"file\.jsonl, line 2: {message}"):
        read_task(tmp_path, TASKS[name])
    missing = next(iter(change))
    write_lines(tmp_path / "file.jsonl", [{k: v for k, v in GOOD[name].items() if k != missing}])
    with pytest.raises(ValueError, match=rf"file\.jsonl, line 1: no field '{missing}'"):
        read_task(tmp_path, TASKS[name])


def test_what_is_no_line_of_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.jsonl files in"):
        read_task(tmp_path, TASKS["comps"])
    (tmp_path / "file.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"file\.jsonl, line 1: a line must be an object"):
        read_task(tmp_path, TASKS["comps"])


def item(tmp_path: Path, name: str, file: str = "file") -> Item:
    write_lines(tmp_path / f"{file}.jsonl", [GOOD[name]])
    [found] = read_task(tmp_path, TASKS[name])
    return found.items[1]


def test_a_completion_is_the_end_of_its_sentence(tmp_path: Path) -> None:
    for name, task in TASKS.items():
        for found in read_task(write_babylm(tmp_path) / FULL / task.full, task):
            for one in found.items.values():
                assert all(text.sentence.endswith(text.completion) for text in one.candidates), name
                assert 0 <= one.label < len(one.candidates)


def test_groups_and_candidates(tmp_path: Path) -> None:
    assert item(tmp_path / "a", "blimp").group == "one"
    assert item(tmp_path / "b", "supplement").group == "file"
    ewok = item(tmp_path / "c", "ewok")
    assert [text.sentence for text in ewok.candidates] == ["It rains. Wet.", "Sun. Wet."]
    assert {text.completion for text in ewok.candidates} == {" Wet."}
    assert item(tmp_path / "d", "entity", "move_contents").group == "move_contents_2_ops"
    assert item(tmp_path / "e", "comps", "comps_wugs_dist-before").group == "wugs_dist_before"
    assert item(tmp_path / "f", "comps", "comps_wugs_dist-in-between").group == "wugs_dist_in_between"
    piqa = item(tmp_path / "g", "global_piqa_nonparallel")
    assert piqa.candidates[1].sentence == "To sit, use a chair."
    assert piqa.label == 1


def test_items_that_may_have_nothing_are_left_out(tmp_path: Path) -> None:
    other = GOOD["entity"] | {"options": [" a", " nothing"]}
    write_lines(tmp_path / "regular.jsonl", [other, GOOD["entity"], other])
    assert list(read_task(tmp_path, TASKS["entity"])[0].items) == [2]


def test_entity_tracking_is_averaged_over_kinds_first() -> None:
    shares = {"regular_0_ops": 1.0, "regular_1_ops": 0.0, "regular_2_ops": 0.5, "move_contents_0_ops": 0.1}
    assert average(TASKS["entity"], shares) == pytest.approx((0.5 + 0.1) / 2)
    assert average(TASKS["comps"], shares) == pytest.approx(0.4)
