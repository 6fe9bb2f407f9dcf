"""The one place that decides which implementation of an operation runs, for every door of this package.

An implementation is named by the caller or picked by "auto": the first in the door's order of preference that
can run. The choice is said once, with its reason, on this package's logger. Naming one that cannot run is an
error and never a quiet swap: a measurement or a test that asked for a kernel must not time or check something
else.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

logger = logging.getLogger(__package__)

_already_said: set[tuple[str, str]] = set()


class Candidate(NamedTuple):
    name: str
    """What callers write to ask for it."""
    reason: str
    """Why it is the one to take where it can run; goes to the log."""
    obstacle: Callable[[], str | None]
    """Says why it cannot run on this call, or None. Asked only when this candidate's turn comes."""
    expected: bool = False
    """True where its obstacle on this call is ordinary (a GPU kernel for a CPU tensor) and needs no
    warning."""


def choose(operation: str, candidates: Sequence[Candidate], wanted: str = "auto") -> str:
    """The name of the candidate to run. ValueError for a name that is unknown or cannot run."""
    by_name = {candidate.name: candidate for candidate in candidates}
    if wanted != "auto":
        if wanted not in by_name:
            raise ValueError(f"{operation}: no solver {wanted!r}, choose from {['auto', *by_name]}")
        if obstacle := by_name[wanted].obstacle():
            raise ValueError(f"{operation}: {wanted!r} cannot run here: {obstacle}")
        say_once(logging.INFO, operation, f"{wanted}, as asked by name")
        return wanted
    obstacles = []
    for candidate in candidates:
        obstacle = candidate.obstacle()
        if obstacle is None:
            say_once(logging.INFO, operation, f"{candidate.name}: {candidate.reason}")
            return candidate.name
        obstacles.append(f"{candidate.name}: {obstacle}")
        if not candidate.expected:
            say_once(logging.WARNING, operation, f"{candidate.name} is left out: {obstacle}")
    raise ValueError(f"{operation}: nothing can run here ({'; '.join(obstacles)})")


def say_once(level: int, operation: str, message: str) -> None:
    """One line a process and message: a coder called in every training step must not fill the log."""
    if (operation, message) not in _already_said:
        _already_said.add((operation, message))
        logger.log(level, "%s: %s", operation, message)
