"""Tables of an entry: the order of the models, and what stands beside them."""

from mlsm.evaluation.babylm.choices import TaskResult
from mlsm.evaluation.babylm.curves import baselines, fast_table, full_table
from mlsm.evaluation.babylm.entry import RevisionResult


def result(words: int, *datasets: str) -> RevisionResult:
    return RevisionResult(words, "w", {name: TaskResult(0.75, 0.5, {"a": 0.75}, 4, 1) for name in datasets})


def test_models_are_in_the_order_of_their_words() -> None:
    results = {
        "chck_10M": result(10_000_000, "blimp_fast"),
        "chck_2M": result(2_000_000, "blimp_fast", "ewok_fast"),
        "main": result(11_000_000, "blimp_filtered"),  # not measured on a fast task
        "chck_0M": result(0, "blimp_fast"),
    }
    assert list(fast_table(results)) == ["chck_0M", "chck_2M", "chck_10M"]
    assert fast_table(results)["chck_2M"] == {"BLiMP": 0.75, "EWoK": 0.75}


def test_baselines_are_quoted_for_measured_tasks_only() -> None:
    table = full_table({"mine": result(5, "blimp_filtered", "ewok_filtered")})
    assert table["mine"] == {"BLiMP": 0.75, "EWoK": 0.75}
    assert table["mine, ties wrong"] == {"BLiMP": 0.5, "EWoK": 0.5}
    assert baselines(table)["GPT-2, strict *"] == {"BLiMP": 0.7453}
    assert not baselines(full_table({"mine": result(5, "blimp_fast")}))


def test_a_model_without_full_tasks_has_no_row() -> None:
    rows = full_table({"a": result(5, "blimp_fast"), "b": result(5, "comps")})
    assert list(rows) == ["b", "b, ties wrong"]
