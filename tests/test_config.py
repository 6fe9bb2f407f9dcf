"""Settings: validated once, each with a flag and a true help text; scripts that build what is missing."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import fit_dictionary
import train
from mlsm import cli
from mlsm.config import (
    PRESETS,
    DataConfig,
    DictionaryConfig,
    ModelConfig,
    TrainConfig,
    base,
    tiny,
)
from mlsm.settings import Line, from_json
from mlsm.training import plan

SET_ELSEWHERE = {"num_concepts", "has_token_head"}


@pytest.mark.parametrize("cls", [ModelConfig, DataConfig, TrainConfig, DictionaryConfig])
def test_every_field_has_a_flag_with_help(cls: type) -> None:
    flags = fit_dictionary.flags if cls is DictionaryConfig else train.flags
    actions = {action.dest: action for action in flags()._actions}
    for field in dataclasses.fields(cls):
        if field.name not in SET_ELSEWHERE:
            help_text = actions[field.name].help
            assert help_text is not None
            assert help_text.startswith(field.metadata["help"])
            assert "default" in help_text or field.default is None


def test_help_tells_the_defaults_of_presets_and_phases() -> None:
    actions = {action.dest: action.help for action in train.flags()._actions}
    assert (
        "(default for mlm / students / token-head: tiny 1000 / 500 / 200; baby 20000 / "
        in actions["num_steps"]
    )
    assert f"tiny {tiny().model.width}" in actions["width"]
    assert actions["seed"].endswith(f"(default: {TrainConfig().seed})")


def test_the_papers_settings() -> None:
    preset = base()
    assert (preset.model.width, preset.model.depth, preset.model.num_heads) == (768, 12, 12)
    assert preset.model.vocab_size == 25_000
    assert (preset.dictionary.k, preset.dictionary.lam, preset.dictionary.num_tokens) == (
        1500,
        0.05,
        1_000_000,
    )
    teacher = preset.train_for(1)
    assert (teacher.num_steps, teacher.batch_size, teacher.learning_rate) == (100_000, 1024, 1e-4)
    assert (teacher.mask_share.first, teacher.warmup_share, teacher.clip_norm) == (0.15, 0.01, 1.0)
    assert preset.train_for(2).num_steps == preset.train_for(3).num_steps == 10_000


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("part", ["model", "data", "dictionary", "teacher", "student", "token_head"])
def test_configurations_survive_json(preset: str, part: str) -> None:
    config = getattr(PRESETS[preset](), part)
    again = from_json(type(config), json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (ModelConfig, {"width": 0}, "width must be above 0"),
        (ModelConfig, {"width": 100, "num_heads": 3}, "not a multiple"),
        (ModelConfig, {"dropout": 1.0}, "dropout must be in"),
        (ModelConfig, {"has_token_head": True}, "needs num_concepts"),
        (ModelConfig, {"depth": "12"}, "depth must be int, got '12'"),
        (DataConfig, {"sequence_mode": "triples"}, "sequence_mode must be one of pairs, packed"),
        (DataConfig, {"max_length": 3}, "max_length must be at least 4"),
        (DataConfig, {"heldout_share": 1.0}, "heldout_share must be in"),
        (TrainConfig, {"num_steps": True}, "num_steps must be int"),
        (TrainConfig, {"mask_share": Line(0.0)}, "mask_share must be in"),
        (TrainConfig, {"mask_share": Line(0.4, 1.5)}, "mask_share must be in"),
        (TrainConfig, {"length_schedule": Line(3.0, 8.0)}, "whole numbers of at least 4, .* got 3:8"),
        (TrainConfig, {"length_schedule": Line(8.5)}, "whole numbers"),
        (TrainConfig, {"learning_rate": -1.0}, "learning_rate must be above 0"),
        (TrainConfig, {"weight_decay": -1.0}, "weight_decay must not be below 0, got -1.0"),
        (TrainConfig, {"mlm_weight": -1.0}, "mlm_weight must not be below 0"),
        (TrainConfig, {"solver": "lars"}, "solver must be one of auto, .*, got 'lars'"),
        (TrainConfig, {"warmup_share": 2.0}, "warmup_share must be in"),
        (TrainConfig, {"checkpoint_words": "1M,2K"}, "checkpoint_words takes strict-small, .* or numbers"),
        (TrainConfig, {"checkpoint_words": "-1"}, "checkpoint_words takes"),
        (DictionaryConfig, {"lam": 0.0}, "lam must be above 0"),
        (DictionaryConfig, {"k": 0}, "k must be above 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_the_schedule_of_the_challenge() -> None:
    millions = [n // 1_000_000 for n in TrainConfig(checkpoint_words="babylm").word_counts()]
    assert millions == [*range(11), *range(20, 101, 10), *range(200, 1001, 100)]
    assert TrainConfig(checkpoint_words="strict").word_counts() == tuple(n * 1_000_000 for n in millions)
    small = TrainConfig(checkpoint_words="strict-small").word_counts()
    assert [n // 1_000_000 for n in small] == [n for n in millions if n <= 100]
    assert TrainConfig(checkpoint_words="1M, 2500,0,2500").word_counts() == (0, 2500, 1_000_000)
    assert TrainConfig().word_counts() == ()


def test_unknown_fields_are_named_and_younger_ones_have_their_default() -> None:
    values = dataclasses.asdict(DataConfig(max_length=77))
    with pytest.raises(ValueError, match="unknown or missing: colour"):
        from_json(DataConfig, values | {"colour": 1})
    del values["heldout_share"]
    assert from_json(DataConfig, values) == DataConfig(max_length=77)


def test_what_is_missing_is_built_first_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def start(command: list[str], env: dict[str, str]) -> Any:
        assert env["WORLD_SIZE"] == "1"  # under torchrun, too, it is alone
        commands.append([Path(command[1]).name, *command[2:]])
        return type("Process", (), {"wait": lambda self: 3})()

    monkeypatch.setattr(cli.subprocess, "Popen", start)
    with pytest.raises(SystemExit) as stopped:
        plan.make_plan(
            {"objective": "lsm", "init": "random", "preset": "small", "corpus": ("a.txt", "b.txt")}
        )
    assert stopped.value.code == 3
    with pytest.raises(SystemExit):
        fit_dictionary.main(["--layer=12", "--k=1500", "--lam=0.05"])
    expected = ["train.py", "--objective", "mlm", "--resume"]
    assert commands == [[*expected, "--preset", "small", "--corpus", "a.txt", "b.txt"], expected]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        "the teacher runs/teacher-a is missing; building it first: python train.py --objective mlm"
    )


def test_mistakes_are_one_line_and_a_bug_can_be_debugged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])
    with pytest.raises(ValueError, match="two"):
        cli.run(main)
