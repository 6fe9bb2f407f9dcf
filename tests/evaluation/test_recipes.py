"""Which runs are averaged: repetitions with other seeds, and nothing else."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
from small_runs import random_run
from task_files import write_suites

import evaluate
from mlsm.config import DataConfig, ModelConfig, TrainConfig
from mlsm.evaluation.recipes import recipe_of
from mlsm.evaluation.summary import over_seeds
from mlsm.runs.record import ConceptsRecord, CorpusRecord, RunRecord


def test_runs_that_differ_in_their_seed_get_a_row_of_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_suites(tmp_path / "data")
    runs = [random_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (1, 2)]
    other = random_run(tmp_path / "other", num_concepts=4)
    evaluate.main([*map(str, runs), str(other), f"--data={data}", "--tasks=blimp"])
    averages = [json.loads((run / "results.json").read_text())["blimp"]["average"] for run in runs]
    mean, deviation = statistics.fmean(averages), statistics.stdev(averages)
    assert deviation > 0
    shown = capsys.readouterr().out
    assert f"mean of seed-1, seed-2  {mean:.3f} ±{deviation:.3f} (2)" in shown
    assert shown.count("mean of") == 1


def record_of(
    *, objective: str = "lsm", seed: int = 12, init: str = "random", lam: float = 0.05
) -> RunRecord:
    concepts = ConceptsRecord("lsm", "gone", "t", "gone too", "d", layer=12, k=4, lam=lam)
    train = TrainConfig(objective=objective, seed=seed, init=init)
    return RunRecord("tiny", ModelConfig(), DataConfig(), train, "", concepts=concepts)


def test_only_runs_that_were_made_alike_with_other_seeds_are_averaged(tmp_path: Path) -> None:
    def means(**records: RunRecord) -> list[str]:
        rows = {name: {"BLiMP": 0.5} for name in records}
        return list(over_seeds(rows, {name: recipe_of(record) for name, record in records.items()}))

    assert means(a=record_of(), b=record_of(seed=13)) == ["mean of a, b"]
    assert not means(a=record_of(), b=record_of())  # as of two checkpoints of a run
    assert not means(a=record_of(), b=record_of(seed=13), c=record_of(seed=13))
    assert not means(a=record_of(), b=record_of(seed=13, lam=0.2))
    assert not means(a=record_of(), b=record_of(seed=13, init="teacher"))
    students = [random_run(tmp_path / name, seed=seed) for name, seed in (("s1", 1), ("s2", 2))]
    heads = [record_of(objective="token-head", init=str(student)) for student in students]
    assert means(a=heads[0], b=heads[1]) == ["mean of a, b"]  # one seed, but that of their students differs
    record = json.loads((students[1] / "config.json").read_text())
    record["train"]["num_steps"] = 7
    (students[1] / "config.json").write_text(json.dumps(record))
    heads[1] = record_of(objective="token-head", init=str(students[1]))
    assert not means(a=heads[0], b=heads[1])


def test_the_recipe_does_not_depend_on_what_is_watched() -> None:
    record = record_of()
    watched = dataclasses.replace(record.train, eval_every=5, patience=3, tracker="wandb")
    assert recipe_of(dataclasses.replace(record, train=watched)) == recipe_of(record)
    longer = dataclasses.replace(watched, num_steps=watched.num_steps + 1)
    assert recipe_of(dataclasses.replace(record, train=longer)) != recipe_of(record)


def test_the_recipe_depends_on_the_text_and_not_on_the_folder_of_its_cache() -> None:
    record = record_of()
    elsewhere = dataclasses.replace(record, data=DataConfig(cache_dir="another folder"))
    assert recipe_of(elsewhere) == recipe_of(record)
    changed = [dataclasses.replace(record, corpus=CorpusRecord(lines=lines)) for lines in (1, 2)]
    assert recipe_of(changed[0]) != recipe_of(changed[1])
