"""The tasks that there are, and metrics as scikit-learn computes them."""

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from mlsm.evaluation.tasks import GLUE, GLUE_OF_2026, TASKS, accuracy, f1, matthews


def test_every_name_is_one_task() -> None:
    assert len(set(TASKS)) == len(TASKS)
    assert set(GLUE_OF_2026) < set(GLUE)


def test_the_eleven_rows_of_the_paper() -> None:
    assert [task.title for task in GLUE.values()] == [
        "BoolQ", "CoLA", "MNLI", "MNLI-mm", "MRPC", "MultiRC", "QNLI", "QQP", "RTE", "SST2", "WSC",
    ]  # fmt: skip
    assert {name for name, task in GLUE.items() if task.metric is f1} == {"mrpc", "qqp"}
    assert {name for name, task in GLUE.items() if task.metric is matthews} == {"cola"}
    assert GLUE["mnli-mm"].trained_on == "mnli"
    assert {name for name, task in GLUE.items() if task.num_labels == 3} == {"mnli", "mnli-mm"}


@pytest.mark.parametrize("seed", range(20))
def test_metrics_equal_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    true = [draw.randrange(2) for _ in range(50)]
    predicted = [label if draw.random() < 0.7 else draw.randrange(2) for label in true]
    assert accuracy(predicted, true) == pytest.approx(accuracy_score(true, predicted))
    assert f1(predicted, true) == pytest.approx(f1_score(true, predicted))
    assert matthews(predicted, true) == pytest.approx(matthews_corrcoef(true, predicted))
    of_three = [draw.randrange(3) for _ in range(50)]
    assert accuracy(of_three, true) == pytest.approx(accuracy_score(true, of_three))


@pytest.mark.parametrize(("predicted", "true"), [([1, 1], [1, 0]), ([0, 0], [1, 0]), ([0, 0], [0, 0])])
def test_metrics_of_a_single_label(predicted: list[int], true: list[int]) -> None:
    assert f1(predicted, true) == pytest.approx(f1_score(true, predicted, zero_division=0))
    assert matthews(predicted, true) == 0.0
