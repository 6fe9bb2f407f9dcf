"""Verdicts on the questions of a study follow the rules that its page states."""

from pathlib import Path

import answers
import pytest
from findings import TITLES, Findings
from study import Commands, Study


def nothing_yet(folder: Path, pairs_a_file: int) -> Findings:
    """The findings of a study that has not begun."""
    study = Study(("text.txt",), 100, "tiny", 1000, 32, 1e-3, 12, 1500, 0.05, ("cola",), pairs_a_file)
    return Findings(Commands(study, folder))


@pytest.mark.parametrize(
    ("lsm", "mlsm", "verdict"),
    [(0.69, 0.55, "yes"), (0.6, 0.65, "no"), (0.6, 0.5, "in part"), (0.69, 0.69, "in part")],
)
def test_the_first_verdict(
    lsm: float, mlsm: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"teacher": 0.7, "random weights": 0.5, "lsm-random-words": lsm, "mlsm-random-words": mlsm}
    findings = nothing_yet(tmp_path, 100)
    monkeypatch.setattr(findings, "value", lambda name, what: values.get(name) if what == "blimp" else None)
    assert answers.close_to_the_teacher(findings).endswith(f"**{verdict}**.")
    values["teacher"] = 0.51
    assert "BLiMP: **cannot tell**" in answers.close_to_the_teacher(findings)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((0.0, 0.0, 0.0), (0.19, 0.2, 0.21), "**yes**; 0 of 3 already without it."),
        ((0.0, 0.19, 0.2), (0.19, 0.2, 0.21), "**yes**; 2 of 3 already without it."),
        ((0.0, 0.0, 0.0), (0.1, 0.2, 0.1), "**in part**; 0 of 3 already without it."),
        ((0.0, 0.0, 0.0), (0.1, 0.1, 0.1), "**no**; 0 of 3 already without it."),
    ],
)
def test_the_second_verdict(
    before: tuple[float, ...],
    after: tuple[float, ...],
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each measure has its own: masked words say nothing about BLiMP."""
    words = {"teacher": 0.2}
    for objective, without, with_head in zip(TITLES, before, after, strict=True):
        words |= {f"{objective}-teacher": without, f"{objective}-teacher-words": with_head}
    values = {"blimp": {"teacher": 0.51, "random weights": 0.5}, "word accuracy": words}
    findings = nothing_yet(tmp_path, 100)
    monkeypatch.setattr(findings, "value", lambda name, what: values[what].get(name))
    said = answers.words_restored(findings)
    assert "BLiMP: **cannot tell**, the teacher has 0.510" in said
    assert said.endswith(verdict)


def test_differences_within_the_noise_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = nothing_yet(tmp_path, 1000)
    values = {"lsm-random": 0.6, "seed-13": 0.601, "tol-0.01": 0.6015, "fista-25": 0.55}
    monkeypatch.setattr(findings, "value", lambda name, what: values.get(name.removesuffix("-words")))
    said = answers.QUESTIONS["Would cheaper codes do?"](findings)
    assert "**tolerance 0.01, no difference that we can see**" in said
    assert "**25 FISTA steps, a difference**" in said
