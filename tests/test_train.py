"""The loop: what it learns, what it leaves alone, and that a stopped run ends as if it had not been."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import ROOT, flags_for, nano_teacher, run_script, student_flags, wait_for
from safetensors import SafetensorError
from small_text import NANO_FLAGS, text_flags, write_corpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import fit_dictionary
import train
from mlsm import cli, files
from mlsm.board import tag_of
from mlsm.evaluation.heldout import predictions
from mlsm.files import file_digest, read_json, read_tensors, write_tensors
from mlsm.log import read_metrics
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.record import read_record
from mlsm.runs.run import load_run
from mlsm.text.batches import Corpus

CONCEPT_OBJECTIVES = ("mlsm", "lsm", "lsm15", "mlm+mlsm")


@pytest.fixture(scope="module")
def student(teacher: Path) -> Path:
    path = teacher.parent / "lsm-random"
    train.main(student_flags(teacher, "lsm", path))
    return path


def test_the_teacher_learns(teacher: Path) -> None:
    losses = [line["cross_entropy"] for line in read_metrics(teacher) if "cross_entropy" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert set(read_metrics(teacher)[-1]) == {"step", "heldout_cross_entropy", "heldout_token_accuracy"}


@pytest.mark.parametrize("objective", CONCEPT_OBJECTIVES)
def test_students_learn_the_concepts(objective: str, teacher: Path, tmp_path: Path) -> None:
    flags = student_flags(teacher, objective, tmp_path / "run")
    enough = ["--num-steps=100", "--batch-size=16", "--mask-share=0.5", "--learning-rate=0.01"]
    train.main([*flags, *enough, "--token-budget=300"])
    metrics = [line for line in read_metrics(tmp_path / "run") if "concept_kl" in line]
    # The sentences are drawn at random, so a masked token says little about its concepts.
    assert metrics[-1]["concept_kl"] < 0.95 * metrics[0]["concept_kl"]
    assert all(line["gap_max"] <= 1e-3 * 1.01 for line in metrics)
    assert ("cross_entropy" in metrics[0]) == (objective == "mlm+mlsm")
    concepts = read_json(tmp_path / "run" / "config.json")["concepts"]
    assert concepts["teacher_fingerprint"] == fingerprint(teacher)
    assert (concepts["k"], concepts["layer"], concepts["objective"]) == (24, 2, objective)


def test_codes_of_a_few_steps_are_what_a_student_learns_where_asked(teacher: Path, tmp_path: Path) -> None:
    train.main([*student_flags(teacher, "lsm", tmp_path / "run"), "--solver=fista", "--code-steps=2"])
    assert all(line["gap_max"] > 1e-3 for line in read_metrics(tmp_path / "run") if "gap_max" in line)


def test_what_is_logged(teacher: Path, student: Path, tmp_path: Path) -> None:
    loop = {"step", "words_seen", "epoch", "skipped_updates", "learning_rate", "gradient_norm"}
    loop |= {"seconds", "processor_seconds", "tokens_per_s", "cross_entropy", "token_accuracy"}
    coding = {"concept_kl", "top_concept_accuracy", "nonzeros_per_code", "dead_concepts", "gap_max"}
    train.main([*student_flags(teacher, "mlm+mlsm", tmp_path / "run"), "--log-every=3"])
    lines = read_metrics(tmp_path / "run")
    assert [set(line) for line in lines[:2]] == [loop | coding | {"coding_share"}] * 2
    for line in lines[:2]:
        assert 0 < line["coding_share"] < 1
        assert 1 <= line["nonzeros_per_code"] <= 24 - line["dead_concepts"]
    assert lines[1]["words_seen"] > lines[0]["words_seen"] > 0
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8").partition("| name | what it is |")[2]
    names = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in page.split("\n") if "|" in line))
    assert set(names) == loop | coding | {"coding_share"}

    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    heldout = {"cross_entropy", "token_accuracy", "concept_kl", "top_concept_accuracy", "target_entropy"}
    tags = {tag_of(name) for name in (loop | coding | {"coding_share"}) - {"step"}}
    assert set(board.Tags()["scalars"]) == tags | {f"heldout/{name}" for name in heldout}
    assert {tag.partition("/")[0] for tag in tags} == {"train", "codes", "speed"}
    assert board.Tags()["histograms"] == ["codes/concept_use"]
    [uses] = board.Histograms("codes/concept_use")  # the accumulator keeps the last
    assert (uses.step, uses.histogram_value.num) == (6, 24)
    texts = {
        name: board.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in board.Tags()["tensors"]
    }
    assert json.loads(texts["config/text_summary"].strip("`json\n")) == read_json(
        tmp_path / "run/config.json"
    )
    run = load_run(tmp_path / "run")
    shown = predictions(run.model, run.tokenizer, Corpus(run.record.data, run.tokenizer), 0.15)
    assert texts["predictions/text_summary"] == shown  # without dropout
    rows = shown.splitlines()[2:]
    assert len(rows) == 6  # sequences held out
    assert all(row.count("[?]") == 1 and row.count(",") >= 2 for row in rows)


def test_the_token_head_changes_no_other_weight_by_one_bit(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    train.main([*flags_for("token-head", teacher, student, tmp_path / "run"), "--learning-rate=0.1"])
    before, after = read_tensors(student / MODEL_FILE), read_tensors(tmp_path / "run" / MODEL_FILE)
    assert after.keys() - before.keys() == {"token_head.weight", "token_head.bias"}
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    losses = [line["cross_entropy"] for line in read_metrics(tmp_path / "run") if "cross_entropy" in line]
    assert losses[-1] < losses[0]


def test_a_student_may_be_narrower_and_shallower(teacher: Path, tmp_path: Path) -> None:
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    train.main([*flags, "--width=8", "--depth=1", "--num-heads=1", "--ffn-width=8"])
    assert read_tensors(tmp_path / "run" / MODEL_FILE)["encoder.token_embedding.weight"].shape[1] == 8


def test_init_teacher_copies_what_fits(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f for f in student_flags(teacher, "lsm", tmp_path / "run") if f != "--init=random"]
    train.main([*flags, "--num-steps=1", "--learning-rate=1e-30", "--weight-decay=0"])
    assert f"from {teacher}; random: concepts" in capsys.readouterr().err
    before, after = read_tensors(teacher / MODEL_FILE), read_tensors(tmp_path / "run" / MODEL_FILE)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    with pytest.raises(ValueError, match=r"cannot start from .*: encoder\.\S+ is \(.*\) there"):
        train.main([*flags, "--width=8", "--num-heads=1", f"--output={tmp_path / 'other'}"])


def test_a_corpus_too_small_to_hold_text_out_is_trained_on(
    teacher: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([*flags_for("mlm", teacher, student, tmp_path / "run"), "--heldout-share=0"])
    assert "no text held out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no text was held out"):
        evaluate.main([str(tmp_path / "run")])


def test_a_run_refused_before_its_first_update_leaves_nothing_in_the_way(
    teacher: Path, tmp_path: Path
) -> None:
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    with pytest.raises(ValueError, match="an update needs 9000 sequences"):
        train.main([*flags, "--batch-size=9000"])
    train.main(flags)
    assert (tmp_path / "run" / MODEL_FILE).exists()


def test_a_run_with_another_tokenizer_is_no_start(teacher: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "text.txt", seed=9)
    flags = [*text_flags(tmp_path), *NANO_FLAGS]
    train.main([*flags, "--objective=mlm", f"--output={tmp_path / 'other'}"])
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    with pytest.raises(ValueError, match="it has another tokenizer"):
        train.main([*flags, f"--init={tmp_path / 'other'}"])


def test_masked_lm_from_a_token_head_trains_and_keeps_the_vocabulary_rows(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words"
    train.main(flags_for("token-head", teacher, student, words))
    train.main([*flags_for("mlm", teacher, student, tmp_path / "run"), f"--init={words}"])
    names = read_tensors(tmp_path / "run" / MODEL_FILE).keys()
    assert not any(name.startswith(("token_head", "concepts")) for name in names)


def test_a_second_dictionary_does_not_confuse_a_student(teacher: Path, tmp_path: Path) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    flags = student_flags(own, "lsm", tmp_path / "run")
    train.main(flags)
    first = next(own.glob("dictionary-*"))
    fit_dictionary.main(
        [f"--teacher={own}", "--k=30", "--num-tokens=900", "--num-updates=2", "--batch-size=90"]
    )
    (tmp_path / "run" / MODEL_FILE).unlink()
    train.main([*flags, "--resume"])
    with pytest.raises(ValueError, match="several dictionaries"):
        train.main(student_flags(own, "lsm", tmp_path / "new"))
    atoms, other = first.read_bytes(), ["--num-tokens=900", "--num-updates=2", "--batch-size=90"]
    with pytest.raises(ValueError, match=r"dictionary-\S+ exists; students may depend on it: remove it, or"):
        fit_dictionary.main([f"--teacher={own}", "--k=24", *other])
    fit_dictionary.main(
        [f"--teacher={own}", "--k=24", "--num-tokens=2000", "--num-updates=20", "--batch-size=100"]
    )
    assert first.read_bytes() == atoms
    first.unlink()
    fit_dictionary.main([f"--teacher={own}", "--k=24", *other])
    with pytest.raises(ValueError, match="has changed since the student was trained on it"):
        evaluate.main([str(tmp_path / "run")])


@pytest.mark.parametrize("content", ["{}", "[]", '{"model": 3}', "nonsense"])
def test_a_damaged_config_is_named(content: str, teacher: Path, tmp_path: Path) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    (own / "config.json").write_text(content)
    for main in (
        lambda: train.main(student_flags(own, "lsm", tmp_path / "run")),
        lambda: fit_dictionary.main([f"--teacher={own}"]),
        lambda: evaluate.main([str(own)]),
    ):
        with pytest.raises(ValueError, match=r"config\.json"):
            main()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_too(precision: str, teacher: Path, tmp_path: Path) -> None:
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    train.main([*flags, f"--amp={precision}", "--num-steps=40", "--learning-rate=0.01"])
    metrics = [line for line in read_metrics(tmp_path / "run") if "concept_kl" in line]
    assert metrics[-1]["concept_kl"] < metrics[0]["concept_kl"]
    assert all(line["gap_max"] <= 1e-3 * 1.01 for line in metrics)


# ---- stopping and resuming


def start(flags: list[str]) -> subprocess.Popen[str]:
    """train.py in a process of its own, with as many threads as this one (their number decides rounding)."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(ROOT / "train.py"), *flags]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_prerequisite_that_is_stopped_saves_its_work(tmp_path: Path) -> None:
    """SIGTERM to the script that builds its teacher first reaches the teacher's training, which saves."""
    corpus = write_corpus(tmp_path / "text.txt")
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--objective=lsm",
        "--preset=tiny",
        f"--corpus={corpus}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: read_metrics(tmp_path / "runs" / "teacher-text"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in said.strip().splitlines()[-1]
    assert list(tmp_path.glob("runs/teacher-text/checkpoints/step-*"))


def test_sigterm_saves_and_says_how_to_go_on(teacher: Path, student: Path, tmp_path: Path) -> None:
    flags = [
        *flags_for("mlm", teacher, student, tmp_path / "run"),
        "--num-steps=4000",
        "--checkpoint-every=3000",
    ]
    process = start(flags)
    wait_for(lambda: read_metrics(tmp_path / "run"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in said.strip().splitlines()[-1]
    assert len(list(tmp_path.glob("run/checkpoints/step-*"))) == 1


def test_only_the_newest_checkpoints_are_kept(teacher: Path, tmp_path: Path) -> None:
    train.main([*student_flags(teacher, "lsm", tmp_path / "run"), "--num-steps=10", "--keep-checkpoints=2"])
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step-8", "step-10"}


def test_models_are_kept_for_good_by_words_seen(teacher: Path, tmp_path: Path) -> None:
    """A model is kept once each number of words is reached. A resumed run keeps the same models."""
    flags = [*student_flags(teacher, "lsm", tmp_path / "run"), "--keep-checkpoints=1", "--log-every=1"]
    train.main([*flags, "--checkpoint-words=0,1,200,201,300,1M"])
    folder = tmp_path / "run" / "checkpoints"
    names = {"step-6", "words-0M", "words-1", "words-200", "words-201", "words-300"}
    assert {p.name for p in folder.iterdir()} == names
    untrained = LanguageModel(read_record(folder / "words-0M").model, seed=12).state_dict()
    kept_weights = read_tensors(folder / "words-0M" / MODEL_FILE)
    assert all(torch.equal(weight, kept_weights[name]) for name, weight in untrained.items())
    seen = {line["step"]: line["words_seen"] for line in read_metrics(tmp_path / "run") if "epoch" in line}
    for words in (1, 200, 201, 300):
        kept = folder / f"words-{words}"
        state = read_json(kept / "state.json")
        assert state["step"] == min(step for step, count in seen.items() if count >= words)
        assert state["words_seen"] == seen[state["step"]]
        for name, digest in state["sha256"].items():
            assert file_digest(kept / name) == digest
        assert load_run(kept).model.config.num_concepts == 24

    (tmp_path / "run" / MODEL_FILE).unlink()
    before = read_tensors(folder / "words-300" / MODEL_FILE)
    for gone in ("step-6", "words-300"):
        shutil.rmtree(folder / gone)
    train.main([*flags, "--resume", "--checkpoint-words=300"])  # from the beginning: no step-N is left
    after = read_tensors(folder / "words-300" / MODEL_FILE)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert fingerprint(folder / "words-300") != fingerprint(tmp_path / "run")


def test_a_damaged_checkpoint_is_named_and_passed_over(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    train.main(flags)
    whole = read_tensors(tmp_path / "run" / MODEL_FILE)
    (tmp_path / "run" / MODEL_FILE).unlink()
    newest = tmp_path / "run" / "checkpoints" / "step-6" / MODEL_FILE
    newest.write_bytes(newest.read_bytes()[:-100])
    train.main([*flags, "--resume"])
    said = capsys.readouterr().err
    assert "checkpoint step-6 cannot be used" in said
    assert "resuming" in said
    assert "after update 4" in said
    again = read_tensors(tmp_path / "run" / MODEL_FILE)
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())


def test_a_full_disk_keeps_the_last_checkpoint(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    save = files.save_file

    def full_disk(tensors: dict, path: Path, metadata: dict | None) -> None:
        if ".step-4" in str(path):  # what safetensors says on a disk that is really full
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, metadata)

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left") as full:
        train.main(flags)
    assert full.value.errno == errno.ENOSPC
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step-2"}
    monkeypatch.undo()
    train.main([*flags, "--resume"])
    assert (tmp_path / "run" / MODEL_FILE).exists()


def test_a_loss_that_is_not_finite_stops_the_run(teacher: Path, student: Path, tmp_path: Path) -> None:
    flags = flags_for("mlm", teacher, student, tmp_path / "run")
    result = run_script("train.py", *flags, "--num-steps=90", "--init-std=1e30", cwd=tmp_path)
    assert result.returncode == cli.EXIT_MISTAKE
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 10 updates in a row")
    assert "Traceback" not in result.stderr
    saved = json.loads(next(tmp_path.glob("run/checkpoints/step-8/state.json")).read_text())
    assert saved["skipped_updates"] == 8


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(teacher: Path, tmp_path: Path) -> None:
    flags = student_flags(teacher, "lsm", tmp_path / "run")
    train.main(flags)
    with pytest.raises(ValueError, match="holds a run: --resume continues it"):
        train.main(flags)
    with pytest.raises(ValueError, match=r"cannot resume .*: learning_rate was 0\.0001 and is now 0\.5"):
        train.main([*flags, "--resume", "--learning-rate=0.5"])
    stamp = (tmp_path / "run" / MODEL_FILE).stat().st_mtime_ns
    train.main([*flags, "--resume"])
    assert (tmp_path / "run" / MODEL_FILE).stat().st_mtime_ns == stamp


def test_a_run_in_the_way_is_found_before_text_is_prepared(teacher: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "text.txt", seed=9)
    flags = ["--objective=mlm", f"--output={teacher}", *text_flags(tmp_path), *NANO_FLAGS]
    with pytest.raises(ValueError, match="holds a run: --resume continues it"):
        train.main(flags)
    changed = rf"cannot resume .*: corpus was .*text\.txt',\) and is now .*{tmp_path.name}/text\.txt',\)"
    with pytest.raises(ValueError, match=changed):
        train.main([*flags, "--resume"])
    assert not (tmp_path / "cache").exists()


def test_a_dictionary_of_another_teacher_is_refused(teacher: Path, tmp_path: Path) -> None:
    other = nano_teacher(tmp_path)
    weights = read_tensors(other / MODEL_FILE)
    weights["transform.bias"] += 1
    write_tensors(other / MODEL_FILE, weights)
    with pytest.raises(ValueError, match="is of another teacher"):
        train.main(student_flags(other, "lsm", tmp_path / "run"))


def test_other_mistakes_are_one_line(
    teacher: Path,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = write_corpus(tmp_path / "text.txt")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(teacher / "config.json", unfinished)
    cases = [
        (["train.py"], "--objective is required"),
        (["train.py", "--objective=magic"], "objective must be one of mlm, "),
        (["train.py", "--objective=mlm", "--width=17"], "width 17 is not a multiple of num_heads"),
        (["train.py", "--objective=mlm", "--corpus=missing.txt"], "no corpus file at missing.txt"),
        (
            ["train.py", "--objective=mlm", "--device=cuda:99", f"--corpus={corpus}", *NANO_FLAGS],
            "GPUs here; use --device cpu",
        ),
        (["train.py", "--objective=token-head"], "needs a concept student"),
        (
            ["train.py", "--objective=token-head", f"--init={teacher}"],
            "predicts no concepts: --init takes a concept",
        ),
        (["train.py", "--objective=token-head", "--init=nowhere"], "no finished run at nowhere"),
        (["train.py", "--objective=lsm", "--init=nowhere"], "no finished run at nowhere; train it first"),
        (["train.py", "--objective=lsm", "--teacher=nowhere"], "no teacher at nowhere: --teacher takes"),
        (
            ["train.py", "--objective=lsm", f"--teacher={teacher}", "--dictionary=nofile"],
            "no dictionary at nofile: make one with fit_dictionary.py --output nofile",
        ),
        (["train.py", "--objective=mlm", "--solver=lars"], "argument --solver: invalid choice: 'lars'"),
        (["fit_dictionary.py", "--solver=lars"], "argument --solver: invalid choice: 'lars'"),
        (
            ["fit_dictionary.py", f"--teacher={teacher}", "--layer=3"],
            "has layers 0 (the embeddings) to 2, --layer asks for 3",
        ),
        (["fit_dictionary.py", f"--teacher={teacher}", "--k=30000"], "30000 concepts need at least"),
        (["fit_dictionary.py", "--teacher=nowhere"], "no teacher at nowhere: --teacher takes"),
        (["evaluate.py", "nowhere"], "no run at nowhere: a run is a directory such as runs/lsm-random"),
        (["evaluate.py", str(unfinished)], "unfinished is not finished: continue it with --resume"),
        (["evaluate.py", str(student), "--tasks=magic"], "--tasks takes"),
    ]
    monkeypatch.chdir(tmp_path)
    mains = {"train.py": train.main, "fit_dictionary.py": fit_dictionary.main, "evaluate.py": evaluate.main}
    for command, message in cases:
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.run(mains[command[0]])
        assert stopped.value.code == cli.EXIT_MISTAKE, command
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: "), command
        assert message in last, command
