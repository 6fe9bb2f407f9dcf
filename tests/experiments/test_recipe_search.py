"""The search for a recipe: which candidates it has, that it keeps the best, and that its page says so."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import recipe_page
import recipe_search
from nano_studies import here, nano
from recipe_page import Found, Trial
from small_text import write_corpus

import train
from mlsm.config import PRESETS
from mlsm.files import read_json
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.settings import from_json


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipe_search.Settings:
    """A search of seconds with a nano model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", nano)
    monkeypatch.setattr(recipe_search, "SPEED_LOGGED", 3)
    corpus = write_corpus(tmp_path / "text.txt")
    return recipe_search.Settings(
        corpus=(str(corpus),), budget=0.01, candidates=4, jobs=1, shapes=("1x64",), result=Path("page.md")
    )


def test_every_ingredient_is_changed_alone_and_the_rest_is_drawn(settings: recipe_search.Settings) -> None:
    start, *others = recipe_search.candidates(dataclasses.replace(settings, candidates=40))
    assert start == recipe_search.start_recipe(settings)
    assert start["shape"] == "3x16"
    changed = [sum(value != start[name] for name, value in recipe.items()) for recipe in others]
    num_single = sum(len(values) - 1 for values in recipe_search.grid(settings).values())
    assert changed[:num_single] == [1] * num_single
    assert min(changed[num_single:]) > 1
    assert len(others) == 39 == len({recipe_search.name_of(recipe) for recipe in others})


@pytest.mark.parametrize("phase", ["teacher", "student"])
def test_train_takes_the_flags_of_every_recipe(phase: str, settings: recipe_search.Settings) -> None:
    settings = dataclasses.replace(recipe_search.Settings(corpus=settings.corpus, candidates=300))
    object.__setattr__(settings, "phase", phase)
    parser = train.flags()
    for recipe in recipe_search.candidates(settings):
        given = parser.parse_args(["--objective", "mlm", *recipe_search.flags_of(recipe)])
        assert given.learning_rate == pytest.approx(float(recipe["learning-rate"]))


def loss_of(trial: Trial) -> float:
    return trial.values["heldout_cross_entropy"]


def test_a_search_keeps_the_best_and_continues_where_it_stopped(
    settings: recipe_search.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipe_search.GRIDS, "teacher", {"schedule": ("wsd",), "feed-forward": ("x1",)})
    monkeypatch.setattr(recipe_search, "RATES", (1, 8))
    done: list[str] = []
    recipe_search.run(settings, here(done))
    file = settings.folder() / recipe_page.FILE
    found = from_json(Found, read_json(file))
    rungs = found.rungs()
    assert [len(rung) for rung in rungs[:2]] == [5, len(rungs[1])]
    for before, after in itertools.pairwise(rungs):
        kept = [trial.recipe for trial in after]
        assert before[0].recipe in kept
        assert found.start in kept
    assert {trial.seed for trial in rungs[-1]} == {*recipe_search.SEEDS}
    best = min(rungs[-1], key=lambda trial: recipe_page.mean_loss(found, rungs[-1], trial.recipe))
    page = Path("page.md").read_text(encoding="utf-8")
    [said] = re.findall(r"\*\*The best recipe is .*\*\*", page)
    assert all(f"{name} {value}" in said for name, value in best.recipe.items() if value != found.start[name])
    assert f"{loss_of(best):.3f}" in page
    assert page.count("| learning-rate | ") >= 1
    assert (
        f"    python experiments/recipe.py --phase teacher --budget {settings.budget:g} --equal time" in page
    )

    [last] = {t.num_updates for t in rungs[0] if t.recipe == found.start}
    stopped = settings.folder() / f"{recipe_search.name_of(found.start)}-{last}-seed12"
    (stopped / MODEL_FILE).rename(stopped / "away")
    recipe_search.run(dataclasses.replace(settings, report=True), here([]))
    assert len(from_json(Found, read_json(file)).trials) == len(rungs[0]) - 1
    assert "has not come to its last rung" in Path("page.md").read_text(encoding="utf-8")
    (stopped / "away").rename(stopped / MODEL_FILE)
    num_before = len(done)
    recipe_search.run(settings, here(done))
    assert len(done) == num_before
    assert from_json(Found, read_json(file)).trials == found.trials


def test_what_an_ingredient_is_worth_is_read_from_recipes_with_that_change_alone() -> None:
    start = {"schedule": "linear", "batch-size": "8"}
    recipes = {4.0: start, 3.5: {**start, "batch-size": "16"}, 3.0: {"schedule": "wsd", "batch-size": "16"}}
    trials = [
        Trial(recipe, 0, 12, 9, 99, 1.0, {"heldout_cross_entropy": loss, "heldout_token_accuracy": 1 / loss})
        for loss, recipe in recipes.items()
    ]
    found = Found("teacher", "time", 1.0, "tiny", start, tuple(map(dataclasses.asdict, trials)), "command")
    _, _, row = recipe_page.alone_table(found, trials).splitlines()
    assert row == "| batch-size | 8 | 16 | -0.500 | +0.036 |"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": 0.0}, "budget must be above 0"),
        ({"shapes": ("4x100",)}, "a multiple of 64; got '4x100'"),
        ({"phase": "student", "teacher": Path("no")}, "no finished teacher at no"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_search.Settings(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no search in nowhere"):
        recipe_page.write(Path("nowhere"), Path("page.md"))
