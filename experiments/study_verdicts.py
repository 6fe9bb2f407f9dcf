"""The rules by which a claim of the study is judged: yes, no, or cannot tell.

A rule gives one number for each seed, which is above zero if the claim holds. Its mean over seeds has to be
`ERRORS` standard errors away from zero. Before that, the bar of the measure, from random weights to the
teacher, has to be `BAR_ERRORS` standard errors wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from study_design import BAR_ERRORS, BEHIND, CLOSE, EFFECT, ERRORS, SEEDS, Claim

YES, NO, CANNOT_TELL, UNFINISHED = "yes", "no", "cannot tell", "unfinished"

Value = Callable[[str, int], float | None]  # of a model and a seed by one measure; more is better


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    error: float  # its standard error; infinite for one seed
    num_seeds: int


class Verdict(NamedTuple):
    """How a claim is judged by one measure."""

    answer: str  # yes, no, cannot tell or unfinished
    bar: Estimate | None = None  # from random weights to the teacher, in units of the measure
    share: Estimate | None = (
        None  # of the bar: the model's way along it, or what it is ahead of the other model
    )


class Seed(NamedTuple):
    """The values of one seed, each as the distance from random weights."""

    model: float
    other: float  # 0 for a claim without another model
    top: float  # the bar


RULES: dict[str, Callable[[Seed], float]] = {
    "close": lambda seed: seed.model - CLOSE * seed.top,
    "behind": lambda seed: BEHIND * seed.other - seed.model,
    "better": lambda seed: seed.model - seed.other - EFFECT * seed.top,
    "worse": lambda seed: seed.other - seed.model - EFFECT * seed.top,
}  # "differs" is "better" or "worse", by the sign of the mean difference


def estimate(values: Sequence[float], least_error: float) -> Estimate:
    """The mean of values and its standard error, which is taken to be at least `least_error`."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(statistics.fmean(values), max(error, least_error), len(values))


def judge(claim: Claim, value: Value, least_error: float) -> Verdict:
    """The verdict on a claim by one measure."""
    low, high = claim.bar
    seeds = list[Seed]()
    for seed in SEEDS:
        random, top, model = (value(name, seed) for name in (low, high, claim.model))
        other = value(claim.other, seed) if claim.other else random
        if random is not None and top is not None and model is not None and other is not None:
            seeds.append(Seed(model - random, other - random, top - random))
    if not seeds:
        return Verdict(UNFINISHED)
    bar = estimate([seed.top for seed in seeds], least_error)
    is_difference = claim.rule in ("better", "differs")
    ahead = estimate([seed.model - is_difference * seed.other for seed in seeds], least_error)
    if len(seeds) == len(SEEDS) and bar.mean < BAR_ERRORS * bar.error:
        return Verdict(CANNOT_TELL, bar)
    share = Estimate(ahead.mean / bar.mean, abs(ahead.error / bar.mean), len(seeds)) if bar.mean else None
    if len(seeds) < len(SEEDS):
        return Verdict(UNFINISHED, bar, share)
    rule = ("better" if ahead.mean > 0 else "worse") if claim.rule == "differs" else claim.rule
    result = estimate([RULES[rule](seed) for seed in seeds], least_error)
    if abs(result.mean) < ERRORS * result.error:
        return Verdict(CANNOT_TELL, bar, share)
    return Verdict(YES if result.mean > 0 else NO, bar, share)
