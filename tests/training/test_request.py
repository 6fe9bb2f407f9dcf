"""From flags to settings, without a file: which of flags, origin and preset decides, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from mlsm.config import DataConfig, ModelConfig, TrainConfig, base, small, tiny
from mlsm.runs.record import RunRecord
from mlsm.settings import Flags, Line
from mlsm.training.objectives import OBJECTIVES
from mlsm.training.request import Origin, Settings, read_request, resolve

MODEL = ModelConfig(vocab_size=90, width=48, depth=3, num_heads=3, ffn_width=96, num_concepts=7)
ORIGIN = Origin(
    Path("runs/teacher"),
    RunRecord("small", MODEL, DataConfig(max_length=50, corpus=("a.txt",)), TrainConfig(seed=3), "t"),
)


def settings_of(origin: Origin | None = None, **flags: object) -> Settings:
    return resolve(read_request(flags), origin)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "init", "output"),
    [
        ({"objective": "mlm"}, "random", "runs/teacher"),
        ({"objective": "mlm", "init": "runs/old"}, "runs/old", "runs/mlm-old"),
        (
            {"objective": "mlm", "init": "runs/a/checkpoints/best"},
            "runs/a/checkpoints/best",
            "runs/mlm-a-best",
        ),
        ({"objective": "lsm"}, "teacher", "runs/lsm-teacher"),
        ({"objective": "lsm", "init": "random"}, "random", "runs/lsm-random"),
        ({"objective": "token-head", "init": "runs/x"}, "runs/x", "runs/token-head-x"),
        ({"objective": "lsm", "output": "elsewhere"}, "teacher", "elsewhere"),
        ({"objective": "mlm", "corpus": ("embedded",)}, "random", "runs/teacher"),
        ({"objective": "mlm", "corpus": ("text/my book.txt",)}, "random", "runs/teacher-my-book"),
        ({"objective": "mlm", "corpus": ("10M/a.train", "10M/b.train")}, "random", "runs/teacher-10M"),
        ({"objective": "mlm", "corpus": ("a.train", "b.train")}, "random", "runs/teacher-a"),
        ({"objective": "mlm", "corpus": ("../../..",)}, "random", "runs/teacher-text"),
        ({"objective": "lsm", "corpus": ("a.txt",)}, "teacher", "runs/lsm-teacher-a"),
        ({"objective": "lsm", "teacher": "runs/teacher-a"}, "teacher", "runs/lsm-teacher-a"),
        ({"objective": "lsm", "teacher": "runs/mine", "init": "random"}, "random", "runs/lsm-random-mine"),
        (
            {"objective": "lsm", "teacher": "runs/teacher-a", "corpus": ("a",)},
            "teacher",
            "runs/lsm-teacher-a",
        ),
        ({"objective": "lsm", "teacher": "runs/v3", "corpus": ("a",)}, "teacher", "runs/lsm-teacher-v3-a"),
        (
            {"objective": "token-head", "init": "runs/lsm-random-a"},
            "runs/lsm-random-a",
            "runs/token-head-lsm-random-a",
        ),
    ],
)
def test_start_and_place_of_a_run(flags: Flags, init: str, output: str) -> None:
    request = read_request(flags)
    assert (request.init, request.output) == (init, Path(output))


def test_the_default_teacher_is_that_of_the_text() -> None:
    assert read_request({"objective": "lsm"}).teacher == Path("runs/teacher")
    assert read_request({"objective": "lsm", "corpus": ("a.txt",)}).teacher == Path("runs/teacher-a")
    assert read_request({"objective": "lsm", "corpus": ("a.txt",), "teacher": "t"}).teacher == Path("t")
    settings = settings_of(ORIGIN, objective="lsm", init="teacher", corpus=("a.txt",))
    assert (settings.train.teacher, settings.start) == ("runs/teacher-a", Path("runs/teacher-a"))


def test_an_objective_is_required_and_known() -> None:
    with pytest.raises(ValueError, match="--objective is required, one of mlm, mlsm"):
        read_request({})
    with pytest.raises(ValueError, match=r"objective must be one of mlm, .* got 'bert'"):
        read_request({"objective": "bert"})


def test_the_preset_follows_the_text() -> None:
    assert settings_of(objective="mlm").model == tiny().model
    assert settings_of(objective="mlm", corpus=("mine.txt",)).model == base().model
    assert settings_of(objective="mlm", corpus=("mine.txt",), preset="small").model == small().model


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_phase_has_the_settings_of_its_preset(name: str) -> None:
    origin = None if name == "mlm" else ORIGIN
    init = "runs/student" if name == "token-head" else "random"
    settings = settings_of(origin, objective=name, init=init, preset="tiny")
    expected = tiny().train_for(OBJECTIVES[name].phase)
    assert settings.train == dataclasses.replace(expected, objective=name, init=init)


def test_flags_win_over_the_origin_and_the_origin_over_the_preset() -> None:
    settings = settings_of(ORIGIN, objective="lsm", init="random", max_length=40, depth=2, seed=5)
    assert settings.preset == "small"
    assert settings.model == dataclasses.replace(MODEL, depth=2)
    assert settings.data == dataclasses.replace(ORIGIN.record.data, max_length=40)
    assert settings.train.num_steps == small().student.num_steps
    assert settings.train.seed == 5
    with_preset = settings_of(ORIGIN, objective="lsm", init="random", preset="tiny")
    assert with_preset.model == tiny().model
    assert with_preset.data == ORIGIN.record.data


@pytest.mark.parametrize(
    ("init", "start"), [("random", None), ("teacher", "runs/t"), ("runs/other", "runs/other")]
)
def test_where_the_weights_come_from(init: str, start: str | None) -> None:
    settings = settings_of(ORIGIN, objective="lsm", init=init, teacher="runs/t")
    assert settings.start == (start and Path(start))


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length 600 is more than max_positions 512"):
        settings_of(objective="mlm", max_length=600)
    with pytest.raises(ValueError, match="length_schedule 16:200 is more than max_length 64: raise --max-l"):
        settings_of(objective="mlm", length_schedule=Line(16, 200))
    teacher = Origin(ORIGIN.directory, dataclasses.replace(ORIGIN.record, model=tiny().model))
    with pytest.raises(ValueError, match="runs/teacher predicts no concepts: --init takes a concept student"):
        settings_of(teacher, objective="token-head", init="runs/teacher")


@pytest.mark.parametrize(
    ("name", "flags", "unused"),
    [
        (
            "lsm",
            {"vocab_size": 9, "mask_share": Line(0.5), "mlm_weight": 2.0, "lam": 1},
            "--vocab-size, --mask-share, --mlm-weight",
        ),
        ("mlm+mlsm", {"mlm_weight": 2.0, "code_tolerance": 0.1}, None),
        ("mlm", {"solver": "fista", "teacher": "x", "mask_share": Line(0.5)}, "--solver, --teacher"),
    ],
)
def test_flags_without_effect_are_named(
    name: str, flags: Flags, unused: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_of(None if name == "mlm" else ORIGIN, objective=name, init="random", **flags)
    said = capsys.readouterr().err
    expected = f"without effect: {unused} (with --objective {name} --init random)\n"
    assert said == (expected if unused else "")
