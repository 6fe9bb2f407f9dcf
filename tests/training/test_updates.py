"""Updates that a thread prepares ahead are those without a thread, and the thread ends with the run."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_text import NANO_FLAGS, text_flags, write_corpus

import train
from mlsm import cli
from mlsm.files import read_tensors
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.text.batches import Update
from mlsm.training.updates import prepared


def num_threads() -> int:
    return sum(thread.name.startswith("prepare-updates") for thread in threading.enumerate())


def test_the_next_one_is_made_while_the_caller_uses_the_one_before_it() -> None:
    made = [threading.Event() for _ in range(4)]

    def make(step: int) -> int:
        made[step].set()
        return 10 * step

    with prepared(make, range(4), in_thread=True) as results:
        for step, result in enumerate(results):
            assert result == 10 * step
            assert made[min(step + 1, 3)].wait(timeout=60)
            assert not any(event.is_set() for event in made[step + 2 :])
    assert not num_threads()


@pytest.mark.parametrize("in_thread", [True, False])
def test_an_error_is_raised_at_its_own_step_and_leaves_no_thread(in_thread: bool) -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("the text has changed")
        return step

    seen: list[int] = []
    with (
        prepared(make, range(9), in_thread=in_thread) as results,
        pytest.raises(ValueError, match="the text has changed"),
    ):
        seen.extend(results)
    assert seen == [0, 1]
    assert not num_threads()


def test_a_run_with_the_thread_is_stopped_resumed_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "text.txt")
    flags = ["--objective=mlm", *text_flags(tmp_path), *NANO_FLAGS]
    plain, threaded = tmp_path / "plain", tmp_path / "threaded"
    train.main([*flags, f"--output={plain}"])

    def in_thread(
        make: Callable[[int], Update], steps: range, *, in_thread: bool
    ) -> contextlib.AbstractContextManager[Iterator[Update]]:
        assert not in_thread  # this run is on a CPU

        def make_and_stop(step: int) -> Update:
            if step == 3 and steps.start == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return make(step)

        return prepared(make_and_stop, steps, in_thread=True)

    monkeypatch.setattr(train, "prepared", in_thread)
    with pytest.raises(cli.Stopped):
        train.main([*flags, f"--output={threaded}"])
    assert not num_threads()
    train.main([*flags, f"--output={threaded}", "--resume"])
    one, other = read_tensors(plain / MODEL_FILE), read_tensors(threaded / MODEL_FILE)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
