"""The command that shows what the concepts of a run stand for."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import ROOT, student_flags
from small_runs import random_run
from small_text import sentences

import fit_dictionary
import train
from mlsm import concepts
from mlsm.pages import concept_view


@pytest.fixture(scope="module")
def students(teacher: Path) -> dict[str, Path]:
    runs = {objective: teacher.parent / objective for objective in ("lsm", "mlsm")}
    for objective, output in runs.items():
        train.main(student_flags(teacher, objective, output))
    return runs


@pytest.fixture(params=["lsm", "mlsm"])
def student(request: pytest.FixtureRequest, students: dict[str, Path]) -> Path:
    return students[request.param]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw: a figure takes a second."""
    monkeypatch.setattr(concept_view, "draw_concepts", lambda *_: None)


def test_the_command_writes_and_shows(
    students: dict[str, Path], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    flags = ["--k=24", "--num-tokens=1500", "--num-updates=5", "--batch-size=100", "--seed=5"]
    fit_dictionary.main([f"--teacher={teacher}", f"--output={other}", *flags])
    command = [
        str(students["mlsm"]),
        "--num-tokens=400",
        f"--text={sentences(1)[0]}",
        "--page",
        f"--output={tmp_path}",
    ]
    concepts.main([*command, f"--compare={other}", "--top=5"])
    shown = capsys.readouterr().out
    for part in ("Agreement with the teacher", "Stability", "bits about the token", "Concepts in the text"):
        assert part in shown
    report = json.loads((tmp_path / "concepts.json").read_text(encoding="utf-8"))
    assert set(report["sources"]) == {"teacher", "student"}
    for source in report["sources"].values():
        assert sum(source["share"]) == pytest.approx(1, abs=1e-3)
        assert {
            len(source[name]) for name in ("active", "entropy", "bits", "tokens", "near", "contexts")
        } == {24}
        assert len(source["token_concepts"]) == len(report["pieces"]) == len(report["counts"])
    assert sum(report["counts"]) == report["about"]["positions"] == 400
    assert (tmp_path / "concepts.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "concepts.html").read_text(encoding="utf-8")
    embedded = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    sentence = json.loads(embedded[1])["sentence"]
    tokens, strongest = sentence["tokens"], sentence["weights"]["student"]
    [row] = [line for line in shown.splitlines() if line.startswith(f"1 {tokens[0]} ")]
    assert f"#{strongest[0][0][0]} " in row
    assert f" {strongest[0][0][1]:.0%}" in row
    assert all(listed == sorted(listed, key=lambda item: -item[1]) for listed in strongest)
    for name in ("interest", "leader", "labels"):
        assert {len(source[name]) for source in report["sources"].values()} == {24}
    again = tmp_path / "again"
    concepts.main([*command[:3], f"--output={again}"])
    same = json.loads((again / "concepts.json").read_text(encoding="utf-8"))
    assert same["sources"]["student"]["contexts"] == report["sources"]["student"]["contexts"]
    assert not (again / "concepts.html").exists()


@pytest.mark.usefixtures("no_pictures")
def test_contexts_are_the_text_around_the_token(teacher: Path, tmp_path: Path) -> None:
    concepts.main([str(teacher), "--num-tokens=500", f"--output={tmp_path}"])
    report = json.loads((tmp_path / "concepts.json").read_text(encoding="utf-8"))
    text = (
        (teacher.parent.parent / "text.txt")
        .read_text(encoding="utf-8")
        .replace("\n", " ¶ ")
        .replace("  ", " ")
    )
    contexts = [context for listed in report["sources"]["teacher"]["contexts"] for context in listed]
    assert len(contexts) > 24
    for sequence, start, stop, place, weights, _ in contexts:
        pieces = [report["pieces"][i] for i in report["sequences"][sequence]]
        shown = "".join(pieces[start:stop]).replace("▁", " ").strip()
        assert shown in text
        assert start <= place < stop
        assert all(0 < weight <= 1 for _, weight in weights)
        assert place in dict(weights)
        for border in (start, stop):  # between two words
            assert border in (1, len(pieces) - 1) or pieces[border].startswith("▁")
    strongest = [dict(c[4])[c[3]] for c in report["sources"]["teacher"]["contexts"][0] if not c[5]]
    assert strongest == sorted(strongest, reverse=True)


@pytest.mark.usefixtures("no_pictures")
def test_a_hostile_name_of_a_run_is_made_printable(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "a\x1b[31m\u202eb"
    shutil.copytree(teacher, run)
    concepts.main([str(run), "--num-tokens=200", "--page"])
    report = json.loads((run / "concepts.json").read_text(encoding="utf-8"))
    assert report["about"]["run"].endswith("a\ufffd[31m\ufffdb")
    page = (run / "concepts.html").read_text(encoding="utf-8")
    assert page.replace("\n", "").isprintable()
    assert "u001b" not in page


@pytest.mark.usefixtures("no_pictures")
def test_a_student_without_its_teacher_is_shown_alone(
    students: dict[str, Path], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = students["lsm"]
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.safetensors", "tokenizer.model"):
        (alone / name).write_bytes((student / name).read_bytes())
    config = json.loads((student / "config.json").read_text())
    config["concepts"] |= {
        "teacher": str(tmp_path / "gone"),
        "dictionary": str(tmp_path / "gone.safetensors"),
    }
    (alone / "config.json").write_text(json.dumps(config))
    concepts.main([str(alone), "--num-tokens=200"])
    assert "the student alone" in capsys.readouterr().err
    assert list(json.loads((alone / "concepts.json").read_text())["sources"]) == ["student"]
    with pytest.raises(ValueError, match="--compare needs the dictionary"):
        concepts.main([str(alone), "--compare=x"])
    config["concepts"]["dictionary"] = str(next(teacher.glob("dictionary-*")))
    (alone / "config.json").write_text(json.dumps(config))
    stranger = random_run(tmp_path / "stranger")
    with pytest.raises(ValueError, match=r"no dictionary \S+ in .*stranger; is it the teacher of .*alone\?"):
        concepts.main([str(alone), f"--teacher={stranger}"])
    concepts.main([str(alone), "--num-tokens=200", f"--teacher={teacher}"])
    assert len(json.loads((alone / "concepts.json").read_text())["sources"]) == 2


def test_mistakes_are_named(teacher: Path, tmp_path: Path) -> None:
    bare = random_run(tmp_path / "bare")
    stranger = random_run(tmp_path / "stranger", seed=1)
    dictionary = next(teacher.glob("dictionary-*"))
    for flags, message in (
        ([str(tmp_path / "nothing")], "no run at"),
        ([str(bare)], "has no dictionary: python fit_dictionary.py --teacher"),
        ([str(bare), f"--dictionary={dictionary}"], "of another teacher"),
        ([str(teacher), f"--teacher={stranger}"], "--teacher is for students"),
        ([str(teacher), f"--compare={tmp_path / 'no.safetensors'}"], "no dictionary at"),
        ([str(teacher), "--text="], "the text has no tokens"),
        ([str(teacher), "--text=" + "the cat " * 400], "tokens, the model reads"),
        ([str(teacher), "--num-tokens=0"], "num_tokens must be above 0"),
        ([str(teacher), f"--corpus={tmp_path / 'no.txt'}"], "no corpus file"),
    ):
        with pytest.raises(ValueError, match=message):
            concepts.main(flags)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlsm.concepts", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run at")
    assert done.stderr.count("\n") == 1


def test_a_served_run_answers_until_it_is_interrupted(teacher: Path) -> None:
    command = [sys.executable, "-m", "mlsm.concepts", str(teacher), "--num-tokens=300", "--serve", "--port=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore SIGINT
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process,
        contextlib.ExitStack() as on_failure,
    ):
        on_failure.callback(process.kill)
        signal.signal(signal.SIGINT, handler)
        assert process.stderr
        said = next(line for line in process.stderr if "http://" in line)
        address = re.search(r"127\.0\.0\.1:\d+", said)
        assert address
        connection = http.client.HTTPConnection(address[0], timeout=60)
        body, headers = json.dumps(sentences(1)[0]), {"Content-Type": "application/json"}
        connection.request("POST", "/sentence", body, headers)
        answer = json.loads(connection.getresponse().read())
        assert len(answer["tokens"]) == len(answer["weights"]["teacher"]) > 3
        taken = [str(teacher), "--serve", f"--port={address[0].split(':')[1]}"]
        with pytest.raises(ValueError, match=r"port \d+ is taken or not allowed: name another with --port"):
            concepts.main(taken)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
