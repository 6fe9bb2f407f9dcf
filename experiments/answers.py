"""The five questions of a study, answered by rules that the answers state, with the numbers they rest on."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from findings import RANDOM_WEIGHTS, TITLES, Findings

CLOSE = 0.9  # of the way from random weights to the teacher
BEHIND = 0.8  # of the way that LSM has come
MIN_WORD_ACCURACY = 0.02  # by which a teacher has to exceed random weights
NOT_MEASURED = "Not measured yet."


class Measure(NamedTuple):
    """What models are compared by: a value for the name of a model, None where it was not measured."""

    title: str
    value: Callable[[str], float | None]
    min_gap: float  # by which a teacher has to exceed random weights for the measure to tell anything
    suffix: str = "-words"  # of the names of students with a token head, where that takes part in the measure


def measures(findings: Findings) -> list[Measure]:
    spreads = {name: findings.glue_average(name) for name in ("teacher", RANDOM_WEIGHTS)}
    deviations = [spread.deviation if spread else 0.0 for spread in spreads.values()]

    def glue(name: str) -> float | None:
        spread = findings.glue_average(name)
        return spread.mean if spread else None

    def word_accuracy(name: str) -> float | None:
        return 0.0 if name == RANDOM_WEIGHTS else findings.value(name, "word accuracy")

    return [
        Measure("fine-tuning average", glue, 2 * math.hypot(*deviations), suffix=""),
        Measure("BLiMP", lambda name: findings.value(name, "blimp"), 4 * findings.blimp_error),
        Measure("accuracy of masked words", word_accuracy, MIN_WORD_ACCURACY),
    ]


def _verdict(holds: Sequence[bool]) -> str:
    return "yes" if all(holds) else "in part" if any(holds) else "no"


def _judged(measures: Sequence[Measure], judge: Callable[[Measure, float, float], str | None]) -> str:
    """A sentence for each measure: what `judge` says of the values of random weights and of the teacher, or
    that the two are too close for the measure to tell anything. Empty if nothing is measured yet.
    """
    sentences = []
    for measure in measures:
        low, high = measure.value(RANDOM_WEIGHTS), measure.value("teacher")
        if low is None or high is None:
            continue
        if high - low <= measure.min_gap:
            text = f"**cannot tell**, the teacher has {high:.3f} and random weights {low:.3f}"
        elif (text := judge(measure, low, high) or "") == "":
            continue
        sentences.append(f"{measure.title[0].upper()}{measure.title[1:]}: {text}.")
    return " ".join(sentences)


def close_to_the_teacher(findings: Findings) -> str:
    """Table 3: students from random weights, between random weights and the teacher."""

    def judge(measure: Measure, low: float, high: float) -> str | None:
        values = {title: measure.value(f"{name}-random{measure.suffix}") for name, title in TITLES.items()}
        ways = {title: (v - low) / (high - low) for title, v in values.items() if v is not None}
        if not {"LSM", "MLSM"} <= ways.keys():
            return None
        verdict = _verdict([ways["LSM"] >= CLOSE, ways["MLSM"] < BEHIND * ways["LSM"]])
        return f"{', '.join(f'{title} {way:.0%}' for title, way in ways.items())}: **{verdict}**"

    sentences = _judged(measures(findings), judge)
    rule = f"Of the way from random weights to the teacher, close is {CLOSE:.0%}, and behind less than "
    return f"{rule}{BEHIND:.0%} of LSM's. {sentences}" if sentences else NOT_MEASURED


def words_restored(findings: Findings) -> str:
    """Table 4: students from the teacher, without and with a token head."""

    def judge(measure: Measure, low: float, high: float) -> str | None:
        goal, changes = low + CLOSE * (high - low), {}
        for name, title in TITLES.items():
            before, after = (measure.value(f"{name}-teacher{suffix}") for suffix in ("", measure.suffix))
            if before is not None and after is not None:
                changes[title] = before, after
        if not changes:
            return None
        shown = ", ".join(
            f"{title} {before:.3f} to {after:.3f}" for title, (before, after) in changes.items()
        )
        verdict = _verdict([after >= goal for _, after in changes.values()])
        num_before = sum(before >= goal for before, _ in changes.values())
        return (
            f"the teacher {high:.3f}, students from it, without and with the head, {shown}: "
            f"**{verdict}**; {num_before} of {len(changes)} already without it"
        )

    sentences = _judged(measures(findings)[1:], judge)
    rule = f"Restored is at least {CLOSE:.0%} of the way from random weights to the teacher."
    return f"{rule} {sentences}" if sentences else NOT_MEASURED


def _compared(findings: Findings, groups: Mapping[str, str]) -> str:
    """Changes against the default student, and whether they exceed those of another seed and of sampling.
    `groups` has the beginning of the students' names for each title.
    """

    def values(name: str) -> tuple[float, float] | None:
        accuracy, average = (findings.value(f"{name}-words", m) for m in ("word accuracy", "blimp"))
        return None if accuracy is None or average is None else (accuracy, average)

    default, other_seed = values("lsm-random"), values("seed-13")
    if default is None or other_seed is None:
        return NOT_MEASURED
    sampling = (0.005, math.sqrt(2) * findings.blimp_error)
    noise = [2 * max(abs(a - b), x) for a, b, x in zip(default, other_seed, sampling, strict=True)]
    sentences = []
    students = [student.name for student in findings.commands.students]
    for title, prefix in groups.items():
        names = [name for name in students if name.startswith(prefix)]
        measured = {name: found for name in names if (found := values(name)) is not None}
        changes = {n: [v - d for v, d in zip(found, default, strict=True)] for n, found in measured.items()}
        if changes:
            shown = "; ".join(f"{n.replace('-', ' ')} {a:+.3f} and {b:+.3f}" for n, (a, b) in changes.items())
            matters = any(abs(x) > bound for c in changes.values() for x, bound in zip(c, noise, strict=True))
            verdict = "a difference" if matters else "no difference that we can see"
            sentences.append(f"{shown}: **{title}, {verdict}**.")
    return (
        f"Against the usual student (word accuracy {default[0]:.3f}, BLiMP {default[1]:.3f}, with words), "
        f"and counting as a difference what exceeds {noise[0]:.3f} and {noise[1]:.3f} (twice the change of "
        f"another seed, or of sampling): {' '.join(sentences) or 'nothing measured yet.'}"
    )


QUESTIONS: dict[str, Callable[[Findings], str]] = {
    "Does LSM from random weights come close to its teacher in a tenth of the updates, and MLSM not?": (
        close_to_the_teacher
    ),
    "Does the token head restore BLiMP?": words_restored,
    "Do k, lambda and the layer matter?": lambda findings: _compared(
        findings, {"k": "k-", "lambda": "lam-", "layer": "layer-"}
    ),
    "Would cheaper codes do?": lambda findings: _compared(
        findings, {"tolerance 0.01": "tol-0.01", "25 FISTA steps": "fista-25"}
    ),
    "Can a student have half its teacher's width?": lambda findings: _compared(
        findings, {"half the width": "half-width"}
    ),
}


def answers(findings: Findings) -> str:
    """The questions and their answers as a numbered list."""
    return "\n".join(
        textwrap.fill(f"{number}. **{question}** {answer(findings)}", 110, subsequent_indent="   ")
        for number, (question, answer) in enumerate(QUESTIONS.items(), start=1)
    )
