"""The updates of a run in order, on a GPU each prepared while the device computes the one before it.

An update is a function of the seed and its number (`mlsm.text.batches`), so it does not matter when it is
prepared. A checkpoint has the number of the last update that was computed, and a resumed run prepares the
next one again.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mlsm.coding.targets import Teacher
from mlsm.config import TrainConfig
from mlsm.device import Precision
from mlsm.model.language_model import LanguageModel
from mlsm.text.batches import Corpus, Update
from mlsm.training.objectives import find_objective

T = TypeVar("T")


def make_update(corpus: Corpus, config: TrainConfig, step: int, *, pads: bool) -> Update:
    """Update `step` (from 0) of a run. With `pads` the token budget counts padding: it is there where student
    or teacher pads. Raises ValueError as `Corpus.update`.
    """
    selection = find_objective(config.objective).selection(config.mask_share.at(step, config.num_steps))
    schedule = config.length_schedule
    return corpus.update(
        step,
        config.batch_size,
        config.token_budget,
        selection,
        config.seed,
        counts_padding=pads,
        longest=int(schedule.in_halves(step, config.num_steps)) if schedule else None,
    )


def pads_sequences(model: LanguageModel, teacher: Teacher | None, precision: Precision) -> bool:
    """Whether the student or the teacher computes every sequence of a call as long as the longest."""
    encoders = [model.encoder, *([teacher.encoder] if teacher else [])]
    return any(encoder.pads_sequences(precision.dtype) for encoder in encoders)


@contextlib.contextmanager
def prepared(make: Callable[[int], T], steps: range, *, in_thread: bool) -> Iterator[Iterator[T]]:
    """make(step) for each step in order. In a thread, the next one is made while the caller uses the one
    before it. What `make` raises is raised where its result is asked for. No thread is left when the `with`
    block ends, however it ends.
    """
    if not in_thread:
        yield map(make, steps)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare-updates") as pool:
        yield _one_ahead(pool, make, steps)


def _one_ahead(pool: ThreadPoolExecutor, make: Callable[[int], T], steps: range) -> Iterator[T]:
    """The results, each when the next one has been submitted."""
    submitted: deque[Future[T]] = deque()
    for step in steps:
        submitted.append(pool.submit(make, step))
        if len(submitted) > 1:
            yield submitted.popleft().result()
    while submitted:
        yield submitted.popleft().result()
