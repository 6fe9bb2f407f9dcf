"""The model card: its numbers are those of the runs, and it promises nothing that a model cannot do."""

import shutil
from pathlib import Path

import pytest
import yaml
from small_runs import random_run

from mlsm.files import read_json, write_json
from mlsm.pages.model_card import Publication, model_card
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import load_run


def metadata(card: str) -> dict[str, object]:
    """The header that the hub reads."""
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_how_a_run_was_made(tmp_path: Path) -> None:
    teacher = random_run(tmp_path / "my-teacher")
    origin = {
        "objective": "lsm", "teacher": str(teacher), "teacher_fingerprint": fingerprint(teacher),
        "dictionary": "", "dictionary_fingerprint": "d1c7", "layer": 2, "k": 6, "lam": 0.07,
    }  # fmt: skip
    student, head = (random_run(tmp_path / name, num_concepts=6) for name in ("student", "head"))
    for run, objective, init in ((student, "lsm", "random"), (head, "token-head", str(student))):
        config = read_json(run / "config.json")
        config["train"] |= {"objective": objective, "init": init, "teacher": str(teacher), "seed": 77}
        config["data"]["corpus"] = [str(tmp_path / "my-text.txt")]
        write_json(run / "config.json", config | {"concepts": origin, "corpus": {"words": 4321, "lines": 99}})
    write_json(head / "results.json", {"demo": {"word accuracy": 0.125}})
    (student / "metrics.jsonl").write_text('{"step": 5, "words_seen": 5555}\n', encoding="utf-8")
    card = model_card(load_run(head))
    phases = [line.split(" | ")[0] for line in card.splitlines() if " sequences | " in line]
    assert phases == ["| my-teacher", "| student", "| head"]
    for text in (
        "`my-text.txt` (4,321 words",
        "5,555",
        "| 77 |",
        "layer 2 of",
        "lambda 0.07",
        "6 atoms",
        "0.125",
    ):
        assert text in card
    assert str(tmp_path) not in card
    assert "does not fill in words" not in card
    card = model_card(load_run(student))
    assert "does not fill in words" in card
    assert "There are no results" in card
    assert "fill-mask" not in card
    assert "MaskedLM" not in card


def set_record(run: Path, **parts: object) -> None:
    write_json(run / "config.json", read_json(run / "config.json") | parts)


def test_what_is_known_of_the_text_is_in_the_header(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    card = model_card(load_run(run))
    assert metadata(card) == {
        "license": "other",
        "license_name": "public-domain-text",
        "language": ["en"],
        "datasets": ["world-english-bible"],
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["deberta", "mlsm"],
    }
    assert "It reads at most 128 tokens" in card
    assert "AutoModelForMaskedLM.from_pretrained" in card
    data = read_json(run / "config.json")["data"]
    set_record(run, data=data | {"corpus": ["my-text.txt"]})
    header = metadata(model_card(load_run(run)))
    assert header["license"] == "unknown"
    assert not header.keys() & {"language", "datasets", "license_name"}
    hostile = 'x"\n---\n# not a text: {'
    header = metadata(model_card(load_run(run), Publication("mit", ("en", "no"), (hostile,))))
    assert (header["license"], header["language"]) == ("mit", ["en", "no"])
    assert header["datasets"] == [hostile]


@pytest.mark.parametrize("fault", ["other text", "converted", "removed", "changed"])
def test_the_text_of_a_student_is_known_only_if_that_of_its_teacher_is(tmp_path: Path, fault: str) -> None:
    teacher = random_run(tmp_path / "teacher")
    student = random_run(tmp_path / "student", num_concepts=6)
    origin = {
        "objective": "lsm", "teacher": str(teacher), "teacher_fingerprint": fingerprint(teacher),
        "dictionary": "", "dictionary_fingerprint": "d1c7", "layer": 2, "k": 6, "lam": 0.07,
    }  # fmt: skip
    set_record(student, concepts=origin)
    assert metadata(model_card(load_run(student)))["language"] == ["en"]
    match fault:
        case "other text":
            data = read_json(teacher / "config.json")["data"]
            set_record(teacher, data=data | {"corpus": ["my-text.txt"]})
        case "converted":
            set_record(teacher, source={"directory": "downloaded", "weights": "3a"})
        case "removed":
            shutil.rmtree(teacher)
        case "changed":
            weights = bytearray((teacher / "model.safetensors").read_bytes())
            weights[-1] ^= 1
            (teacher / "model.safetensors").write_bytes(weights)
    header = metadata(model_card(load_run(student)))
    assert header["license"] == "unknown"
    assert "language" not in header
