"""Verdicts of the study follow their rules, on invented numbers."""

import random
import statistics
from collections.abc import Mapping

import pytest
import study_verdicts
from study_design import SEEDS, Claim
from study_verdicts import CANNOT_TELL, NO, UNFINISHED, YES, Value, Verdict, judge

CLOSE = Claim("", "close", "lsm")
BEHIND, BETTER, DIFFERS = (Claim("", rule, "lsm", "other") for rule in ("behind", "better", "differs"))


def values(means: Mapping[str, float], spread: float = 0.01) -> Value:
    """Three seeds around each mean. The bar is from 0 to 1 unless the means say otherwise."""
    means = {"random": 0.0, "teacher": 1.0, **means}

    def value(name: str, seed: int) -> float | None:
        by_chance = random.Random(f"{name} {seed}").uniform(-spread, spread)
        return means[name] + by_chance if name in means else None

    return value


@pytest.mark.parametrize(
    ("claim", "means", "answer"),
    [
        (CLOSE, {"lsm": 0.99}, YES),
        (CLOSE, {"lsm": 1.2}, YES),
        (CLOSE, {"lsm": 0.7}, NO),
        (CLOSE, {"lsm": 0.9}, CANNOT_TELL),
        (BEHIND, {"lsm": 0.5, "other": 0.9}, YES),
        (BEHIND, {"lsm": 0.85, "other": 0.9}, NO),
        (BEHIND, {"lsm": 0.72, "other": 0.9}, CANNOT_TELL),
        (BETTER, {"lsm": 0.8, "other": 0.6}, YES),
        (BETTER, {"lsm": 0.6, "other": 0.6}, NO),
        (BETTER, {"lsm": 0.4, "other": 0.6}, NO),
        (BETTER, {"lsm": 0.66, "other": 0.6}, CANNOT_TELL),
        (DIFFERS, {"lsm": 0.8, "other": 0.6}, YES),
        (DIFFERS, {"lsm": 0.4, "other": 0.6}, YES),
        (DIFFERS, {"lsm": 0.601, "other": 0.6}, NO),
        (DIFFERS, {"lsm": 0.54, "other": 0.6}, CANNOT_TELL),
    ],
)
def test_each_rule_says_yes_no_and_cannot_tell(claim: Claim, means: dict[str, float], answer: str) -> None:
    assert judge(claim, values(means), 1e-9).answer == answer


@pytest.mark.parametrize("claim", [CLOSE, BEHIND, BETTER, DIFFERS])
def test_nothing_can_be_told_by_a_bar_that_is_narrow_or_upside_down(claim: Claim) -> None:
    means = {"lsm": 5.0, "other": 0.0}
    for teacher in (0.02, 0.0, -1.0):
        verdict = judge(claim, values({**means, "teacher": teacher}), 1e-9)
        assert verdict.answer == CANNOT_TELL
        assert verdict.share is None
        assert verdict.bar
        assert verdict.bar.mean == pytest.approx(teacher, abs=0.01)
    assert judge(claim, values(means), least_error=0.4).answer == CANNOT_TELL


def test_a_wider_spread_over_seeds_takes_a_verdict_back() -> None:
    means = {"lsm": 0.8, "other": 0.6}
    assert judge(BETTER, values(means, spread=0.01), 1e-9).answer == YES
    assert judge(BETTER, values(means, spread=0.2), 1e-9).answer == CANNOT_TELL


def test_the_estimate_is_a_share_of_the_bar_with_its_error() -> None:
    verdict = judge(CLOSE, values({"teacher": 2.0, "random": 1.0, "lsm": 1.5}, spread=0.0), 0.02)
    assert verdict == Verdict(
        NO, study_verdicts.Estimate(1.0, 0.02, 3), study_verdicts.Estimate(0.5, 0.02, 3)
    )
    ahead = judge(BETTER, values({"lsm": 0.8, "other": 0.6}, spread=0.0), 0.02).share
    assert ahead
    assert ahead.mean == pytest.approx(0.2)
    seeds = [0.1, 0.2, 0.6]
    assert study_verdicts.estimate(seeds, 0.0).error == pytest.approx(statistics.stdev(seeds) / 3**0.5)
    assert study_verdicts.estimate(seeds, 0.5) == (pytest.approx(0.3), 0.5, 3)


def test_a_claim_waits_for_all_seeds_and_tells_what_is_known() -> None:
    found = values({"lsm": 0.99})
    some = judge(CLOSE, lambda name, seed: found(name, seed) if seed == SEEDS[0] else None, 1e-9)
    assert some.answer == UNFINISHED
    assert some.share
    assert some.share.num_seeds == 1
    assert judge(CLOSE, lambda name, seed: None, 1e-9) == Verdict(UNFINISHED)
    assert judge(BETTER, values({"lsm": 0.99}), 1e-9) == Verdict(UNFINISHED)  # no other model
