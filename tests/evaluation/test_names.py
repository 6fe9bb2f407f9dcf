"""The names that --help shows are those of the tasks that there are."""

from mlsm.evaluation import glue, minimal_pairs, names


def test_every_task_has_its_name() -> None:
    assert tuple(minimal_pairs.SUITES) == names.SUITES
    assert tuple(glue.TASKS) == names.GLUE
    assert set(names.GLUE_OF_2026) < set(names.GLUE)
