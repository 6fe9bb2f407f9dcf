"""The choice of an implementation: the first that can run, logged once, and never another than the named
one."""

import importlib.util
import logging

import pytest
import torch

from kernels import backend
from kernels.backend import Candidate, choose, triton_obstacle


@pytest.fixture(autouse=True)
def forget_what_was_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_logged", set())


def candidates(fast_obstacle: str | None, expected: bool = False) -> list[Candidate]:
    return [
        Candidate("fast", "it is fast", lambda: fast_obstacle, expected),
        Candidate("plain", "it runs anywhere", lambda: None),
    ]


def test_auto_takes_the_first_that_can_run():
    assert choose("op", candidates(None)) == "fast"
    assert choose("op", candidates("no compiler")) == "plain"


def test_a_choice_is_logged_once_with_its_reason(caplog):
    with caplog.at_level(logging.INFO, "kernels"):
        for _ in range(3):
            choose("op", candidates(None))
    assert [record.getMessage() for record in caplog.records] == ["op: fast: it is fast"]


def test_an_unexpected_obstacle_is_a_warning_once(caplog):
    with caplog.at_level(logging.INFO, "kernels"):
        for _ in range(3):
            choose("op", candidates("no compiler"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["op: fast is left out: no compiler"]


def test_an_expected_obstacle_is_no_warning(caplog):
    with caplog.at_level(logging.INFO, "kernels"):
        assert choose("op", candidates("not on a GPU", expected=True)) == "plain"
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_a_name_that_cannot_run_is_an_error_with_the_reason():
    with pytest.raises(ValueError, match="'fast' cannot run here: no compiler"):
        choose("op", candidates("no compiler"), "fast")


def test_an_unknown_name_is_an_error_with_the_choices():
    with pytest.raises(ValueError, match=r"no solver 'slow'.*'auto', 'fast', 'plain'"):
        choose("op", candidates(None), "slow")


def test_nothing_that_can_run_is_an_error_with_all_reasons():
    with pytest.raises(ValueError, match="fast: no GPU"):
        choose("op", [Candidate("fast", "", lambda: "no GPU")])


def test_what_keeps_triton_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {torch.device("cuda", 0): (8, 0), torch.device("cuda", 1): (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.get)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("TRITON_INTERPRET")
    new, old = map(triton_obstacle, capabilities)
    assert (new, old) == (None, "it needs a GPU of compute capability 8.0, this one has 7.5")
    assert triton_obstacle(torch.device("cpu")) == "the tensors are on cpu, not on a GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_obstacle(torch.device("cpu")) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_obstacle(torch.device("cuda", 0)) == "triton is not installed"
