"""What is said of concepts: statistics on codes worked out by hand, planted concepts, and the command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import ROOT, nano_teacher, student_flags
from scipy.optimize import linear_sum_assignment
from small_runs import random_run, small_tokenizer
from small_text import sentences

import fit_dictionary
import train
from mlsm import concepts
from mlsm.coding.targets import EVERY_TOKEN
from mlsm.evaluation.heldout import SEED, score_concepts
from mlsm.evaluation.tables import as_text
from mlsm.log import progress
from mlsm.pages import concept_report, concept_use, concept_view
from mlsm.pages.concept_reading import Readers, read, read_sentence
from mlsm.pages.concept_use import Codes
from mlsm.pages.tagged import read_tagged
from mlsm.runs.run import load_run
from mlsm.text.batches import Corpus, MicroBatch, Selection
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID


def codes_of(dense_NK: np.ndarray) -> Codes:
    """From a matrix, with its entries in random order."""
    positions, numbers = dense_NK.nonzero()
    order = np.random.default_rng(0).permutation(len(positions))
    return concept_use.codes_by_concept(
        positions[order],
        numbers[order].astype(np.uint16),
        dense_NK[positions, numbers][order],
        num_positions=len(dense_NK),
        num_concepts=dense_NK.shape[1],
    )


TOY_NK = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.25, 0.25, 0.5, 0]], np.float32)
TOY_LABELS = np.array([0, 0, 1, 1])


def planted(num_positions: int, num_labels: int) -> tuple[Codes, np.ndarray]:
    """Concept v is label v and nothing else."""
    labels_N = np.random.default_rng(1).integers(num_labels, size=num_positions)
    return codes_of(np.eye(num_labels, dtype=np.float32)[labels_N]), labels_N


def test_use_by_hand() -> None:
    told = concept_use.usage(codes_of(TOY_NK))
    assert told.share_K == pytest.approx([1.75 / 4, 1.75 / 4, 0.5 / 4, 0])
    assert told.activity_K.tolist() == [0.75, 0.75, 0.25, 0]
    assert told.concepts_per_position == 7 / 4
    entropy = -sum(p * np.log2(p) for p in told.share_K[:3])
    assert told.effective_concepts == pytest.approx(2**entropy)


def test_information_by_hand() -> None:
    profile_KV = concept_use.profile(codes_of(TOY_NK), TOY_LABELS, 2)
    assert profile_KV.tolist() == [[1.5, 0.25], [0.5, 1.25], [0, 0.5], [0, 0]]
    found = concept_use.information(profile_KV, np.bincount(TOY_LABELS))
    joint = profile_KV[:3] / 4
    outer = joint.sum(1, keepdims=True) * joint.sum(0)
    assert found.bits == pytest.approx(
        sum(p * np.log2(p / q) for p, q in zip(joint.flat, outer.flat, strict=True) if p)
    )
    assert found.label_bits == 1
    assert found.bits_K[2:] == pytest.approx([1, 0])
    assert found.entropy_K[2:] == pytest.approx([0, 0])


def test_weight_that_a_code_lacks_is_a_concept_of_its_own() -> None:
    half = concept_use.profile(codes_of(TOY_NK / 2), TOY_LABELS, 2)
    found = concept_use.information(half, np.bincount(TOY_LABELS))
    whole = concept_use.information(2 * half, np.bincount(TOY_LABELS))
    assert found.bits == pytest.approx(whole.bits / 2)  # "none" has half of each label and tells nothing
    assert found.bits_K == pytest.approx(whole.bits_K)
    only_one = codes_of(np.array([[1.0], [1], [0], [0]], np.float32))  # to have no concept is to be label 1
    found = concept_use.information(concept_use.profile(only_one, TOY_LABELS, 2), np.bincount(TOY_LABELS))
    assert found.bits == pytest.approx(1)


def test_a_concept_that_is_one_token_tells_all_of_it() -> None:
    codes, labels_N = planted(6000, 5)
    found = concept_use.information(concept_use.profile(codes, labels_N, 5), np.bincount(labels_N))
    chance = concept_use.shuffled_information(codes, labels_N, 5, np.random.default_rng(0), num_shuffles=3)
    assert found.entropy_K == pytest.approx(np.zeros(5), abs=1e-9)
    assert found.bits == pytest.approx(found.label_bits)
    assert concept_use.adjusted(found, chance) == pytest.approx(1)
    assert chance.bits < 0.01


def test_concepts_that_ignore_the_token_tell_nothing_beyond_chance() -> None:
    draw = np.random.default_rng(3)
    codes = codes_of(np.eye(40, dtype=np.float32)[draw.integers(40, size=2000)])
    labels_N = draw.integers(30, size=2000)
    found = concept_use.information(concept_use.profile(codes, labels_N, 30), np.bincount(labels_N))
    chance = concept_use.shuffled_information(codes, labels_N, 30, draw, num_shuffles=5)
    assert found.bits > 0.3  # as it seems
    assert abs(concept_use.adjusted(found, chance)) < 0.02


def test_codes_without_weight_are_nothing_and_no_error() -> None:
    codes = codes_of(np.zeros((4, 3), np.float32))
    told = concept_use.usage(codes)
    assert told.share_K.tolist() == told.activity_K.tolist() == [0, 0, 0]
    found = concept_use.information(concept_use.profile(codes, TOY_LABELS, 2), np.bincount(TOY_LABELS))
    assert found.bits == 0
    assert not len(concept_use.strongest(codes, TOY_LABELS, 0, 3))
    assert not len(concept_use.typical(codes, 0, 3, np.random.default_rng(0)))


def test_largest_sorts_and_keeps_the_order_of_equals() -> None:
    listing = concept_use.largest(np.array([[1.0, 3, 2, 3, 0], [0, 1, -2, 5, 4]]), 3)
    assert listing.items.tolist() == [[1, 3, 2], [3, 4, 1]]
    assert listing.values.tolist() == [[3, 3, 2], [5, 4, 1]]
    assert concept_use.largest(np.ones((1, 2)), 5).items.tolist() == [[0, 1]]


def test_nearest_leaves_the_row_itself_out() -> None:
    listing = concept_use.nearest(np.array([[1.0, 0], [10, 1], [0, 1], [0, 0]]), 2)
    assert listing.items[:3, 0].tolist() == [1, 0, 1]
    assert listing.values[0] == pytest.approx([10 / np.hypot(10, 1), 0])
    assert listing.values[3].tolist() == [0, 0]


def test_strongest_contexts_come_from_different_sequences() -> None:
    dense_NK = np.array([[0.9], [0.8], [0.3], [0.7], [0]], np.float32)
    codes = codes_of(dense_NK)
    places = concept_use.strongest(codes, np.array([0, 0, 1, 2, 3]), 0, 2)
    assert codes.positions_M[places].tolist() == [0, 3]
    drawn = concept_use.typical(codes, 0, 500, np.random.default_rng(0))
    assert sorted(codes.positions_M[drawn]) == [0, 1, 2, 3]
    assert (np.diff(codes.weights_M[drawn]) <= 0).all()


def test_a_shuffled_dictionary_is_found_again() -> None:
    draw = np.random.default_rng(0)
    atoms_KD = draw.standard_normal((50, 16))
    order = draw.permutation(50)
    others_JD = np.vstack(
        [2 * (atoms_KD + 0.1 * draw.standard_normal((50, 16)))[order], draw.standard_normal((9, 16))]
    )
    found = concept_use.match(atoms_KD, others_JD)
    assert found.partner_K.tolist() == np.argsort(order).tolist()
    assert found.cosine_K.min() > 0.9
    assert found.mutual_share == 1


def test_the_greedy_assignment_is_one_to_one_and_near_the_optimum() -> None:
    draw = np.random.default_rng(5)
    atoms_KD, others_JD = draw.standard_normal((60, 8)), draw.standard_normal((40, 8))
    found = concept_use.match(atoms_KD, others_JD)
    partners = found.partner_K[found.partner_K >= 0]
    assert sorted(partners) == list(range(40))
    assert (found.cosine_K[found.partner_K < 0] == 0).all()
    cosine_KJ = concept_use.unit_rows(atoms_KD) @ concept_use.unit_rows(others_JD).T
    best = cosine_KJ[linear_sum_assignment(-cosine_KJ)].sum()
    assert 0.9 * best < found.cosine_K.sum() <= best + 1e-9


def test_lookalikes_have_the_mean_and_covariance_of_the_atoms() -> None:
    draw = np.random.default_rng(2)
    atoms_KD = (draw.standard_normal((3000, 3)) * [1, 2, 0.5] + [5, 0, -1]).astype(np.float32)
    twins_KD = concept_use.lookalikes(atoms_KD, draw)
    assert twins_KD.mean(0) == pytest.approx(atoms_KD.mean(0), abs=0.15)
    assert np.cov(twins_KD.T) == pytest.approx(np.cov(atoms_KD.T), abs=0.3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_teacher(tmp_path_factory.mktemp("concepts"))


@pytest.fixture(scope="module")
def students(teacher: Path) -> dict[str, Path]:
    made = {objective: teacher.parent / objective for objective in ("lsm", "mlsm")}
    for objective, output in made.items():
        train.main(student_flags(teacher, objective, output))
    return made


@pytest.fixture(params=["lsm", "mlsm"])
def student(request: pytest.FixtureRequest, students: dict[str, Path]) -> Path:
    return students[request.param]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second each."""
    monkeypatch.setattr(concept_view, "draw_concepts", lambda *_: None)


def readers_of(student: Path) -> tuple[Readers, Corpus]:
    run = load_run(student)
    corpus = Corpus(run.record.data, run.tokenizer)
    return concepts.make_readers(run.record, concepts.Settings(run=student)), corpus


def test_what_is_read_is_what_the_models_say(student: Path) -> None:
    readers, corpus = readers_of(student)
    parts, generator = [corpus.heldout, corpus.training], torch.Generator()
    some = corpus.sample(parts, readers.selection, num_selected=300, token_budget=200, generator=generator)
    batches = list(some)
    with progress(300, "") as bar:
        reading = read(readers, batches, bar)
    assert len(reading.places_N) == 300
    assert reading.ids_N.tolist() == torch.cat([m.labels_N() for m in batches]).tolist()
    first = readers.distributions(batches[0])
    for name, codes in reading.codes.items():
        dense_NK = np.zeros((300, codes.num_concepts), np.float32)
        for k in range(codes.num_concepts):
            positions, weights = codes.of(k)
            dense_NK[positions, k] = weights
        expected_NK = first[name].detach().numpy()
        least = 0.01 if name == "student" else 0
        assert dense_NK[: len(expected_NK)] == pytest.approx(np.where(expected_NK >= least, expected_NK, 0))
        assert reading.kept[name] == pytest.approx(dense_NK.sum() / 300)
    # the sequences that positions and contexts are told by
    starts = reading.sequence_starts
    assert (reading.stream[starts] == CLS_ID).all()
    assert (reading.sequences_N == np.cumsum(reading.stream == CLS_ID)[reading.places_N]).all()


def test_agreement_is_that_of_the_evaluation(students: dict[str, Path]) -> None:
    readers, corpus = readers_of(students["lsm"])
    assert readers.teacher is not None
    expected = score_concepts(load_run(students["lsm"]).model, readers.teacher, corpus, EVERY_TOKEN, 500)
    heldout = corpus.heldout_update(500, EVERY_TOKEN, SEED)
    with progress(heldout.num_selected, "") as bar:
        told = read(readers, heldout.micro_batches, bar).agreement
    assert told is not None
    assert told.kl == pytest.approx(expected.kl, rel=1e-4)
    assert told.constant_kl == pytest.approx(expected.constant_kl, rel=1e-4)


def test_agreement_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_NK = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]])
    student_NK = torch.tensor([[0.25, 0.15, 0.3, 0.2, 0.05, 0.05], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]])
    monkeypatch.setattr(Readers, "distributions", lambda *_: {"teacher": teacher_NK, "student": student_NK})
    monkeypatch.setattr(Readers, "device", torch.device("cpu"))
    row, selected = torch.tensor([CLS_ID, 9, 8, SEP_ID]), torch.tensor([False, True, True, False])
    readers = Readers("teacher", "student", EVERY_TOKEN)  # type: ignore[arg-type]
    with progress(2, "") as bar:
        told = read(readers, [MicroBatch.of([row], [selected], EVERY_TOKEN)], bar).agreement
    assert told is not None
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.15)
    assert told.kl == pytest.approx((first + np.log(2)) / 2)
    assert told.overlap == pytest.approx((1 / 2 + 1) / 2)  # concept 0 of {0, 1} among the student's {2, 0}
    assert told.constant_overlap == pytest.approx(1)  # {0, 1} are the strongest on the whole
    assert told.shared == pytest.approx((0.25 + 0.15 + 0.5) / 2)
    assert told.shared_K[:2] == pytest.approx([0.75 / 1.5, 0.15 / 0.5])


def test_a_masked_student_sees_all_but_the_token_it_predicts(student: Path) -> None:
    readers, _ = readers_of(student)
    ids = load_run(student).tokenizer.encode(sentences(1)[0])
    told = read_sentence(readers, ids, 64, 100)
    assert told.weights["teacher"].shape == told.weights["student"].shape == (len(ids), 24)
    row = torch.tensor([CLS_ID, *ids, SEP_ID])
    place = len(ids) // 2
    is_chosen = torch.arange(len(row)) == place + 1
    inputs = row.masked_fill(is_chosen, MASK_ID) if readers.selection.is_masked else row
    micro = MicroBatch.of([inputs], [is_chosen], Selection(1.0, False))
    expected_K = readers._replace(teacher=None).distributions(micro)["student"][0].detach().numpy()
    assert told.weights["student"][place] == pytest.approx(expected_K, abs=1e-5)


def test_tags_of_words_go_to_their_pieces(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    forms = {
        "tabs.tsv": "The\tDET\n1/2\tNUM\nfox\tNOUN\n.\tPUNCT\n\njumps\tVERB\n",
        "slashes.txt": "The/DET 1/2/NUM fox/NOUN ./PUNCT\njumps/VERB\n",
    }
    told = []
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        tagged = read_tagged(tmp_path / name, tokenizer, EVERY_TOKEN, longest=64, token_budget=64, seed=0)
        told.append([tagged.names[i] for i in tagged.labels_N])
        ids = torch.cat([m.labels_N() for m in tagged.micro_batches]).tolist()
        assert ids == [*tokenizer.encode("The 1/2 fox ."), *tokenizer.encode("jumps")]
    pieces = [len(tokenizer.encode(word)) for word in ("The", "1/2", "fox", ".", "jumps")]
    tags = np.repeat(["DET", "NUM", "NOUN", "PUNCT", "VERB"], pieces).tolist()
    assert told == [tags, tags]


def test_tagged_text_is_cut_to_budget_and_length(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(
        "\n".join(
            " ".join(f"{word}/{word}" for word in ["a", "b", "c", "d", "e", "f", "g", "h"]) for _ in range(5)
        )
    )
    tagged = read_tagged(path, small_tokenizer(), EVERY_TOKEN, longest=6, token_budget=12, seed=0)
    assert [len(m.text.ids_T) for m in tagged.micro_batches] == [12, 12, 6]
    assert all(m.text.ids_T[-1] == SEP_ID for m in tagged.micro_batches)
    assert len(tagged.labels_N) == 5 * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The/DET fox", "line 1: 'fox' is neither"),
        ("The\tDET\nfox", "line 2: 'fox' is neither"),
        ("The\tDET\tx", "line 1"),
        ("/DET", "line 1"),
        ("\n\n", "no tagged word"),
    ],
)
def test_tagged_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tags.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tagged(path, small_tokenizer(), EVERY_TOKEN, longest=64, token_budget=64, seed=0)


def test_the_command_writes_and_shows(
    students: dict[str, Path], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    flags = ["--k=24", "--num-tokens=1500", "--num-updates=5", "--batch-size=100", "--seed=5"]
    fit_dictionary.main([f"--teacher={teacher}", f"--output={other}", *flags])
    tags = tmp_path / "tags.txt"
    tags.write_text("\n".join(" ".join(f"{w}/{len(w)}" for w in s.split()) for s in sentences(30)))
    command = [
        str(students["mlsm"]),
        "--num-tokens=400",
        f"--text={sentences(1)[0]}",
        "--page",
        f"--output={tmp_path}",
    ]
    concepts.main([*command, f"--compare={other}", f"--tags={tags}", "--top=5"])
    shown = capsys.readouterr().out
    for part in ("Agreement with the teacher", "Stability", "bits about the tag", "Concepts in the text"):
        assert part in shown
    told = json.loads((tmp_path / "concepts.json").read_text(encoding="utf-8"))
    assert set(told["sources"]) == {"teacher", "student"}
    for source in told["sources"].values():
        assert sum(source["share"]) == pytest.approx(1, abs=1e-3)
        assert {
            len(source[name]) for name in ("active", "entropy", "bits", "tokens", "near", "contexts", "tags")
        } == {24}
        assert len(source["token_concepts"]) == len(told["pieces"]) == len(told["counts"])
    assert sum(told["counts"]) == told["about"]["positions"] == 400
    for name in ("concepts.png", "concepts-text.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "concepts.html").exists()
    tokens, strongest = told["sentence"]["tokens"], told["sentence"]["strongest"]["student"]
    rows = [line for line in shown.splitlines() if line.startswith(f"1 {tokens[0]} ")]
    assert f"#{strongest[0][0]} {strongest[0][1]:.0%}" in rows[0]
    assert all(pairs[1::2] == sorted(pairs[1::2], reverse=True) for pairs in strongest)
    again = tmp_path / "again"
    concepts.main([*command[:3], f"--output={again}"])
    same = json.loads((again / "concepts.json").read_text(encoding="utf-8"))
    assert same["sources"]["student"]["contexts"] == told["sources"]["student"]["contexts"]
    assert not (again / "concepts.html").exists()


@pytest.mark.usefixtures("no_pictures")
def test_contexts_are_the_text_around_the_token(teacher: Path, tmp_path: Path) -> None:
    concepts.main([str(teacher), "--num-tokens=500", f"--output={tmp_path}"])
    told = json.loads((tmp_path / "concepts.json").read_text(encoding="utf-8"))
    text = (
        (teacher.parent.parent / "text.txt")
        .read_text(encoding="utf-8")
        .replace("\n", " ¶ ")
        .replace("  ", " ")
    )
    contexts = [context for listed in told["sources"]["teacher"]["contexts"] for context in listed]
    assert len(contexts) > 24
    for before, token, after, weight, _ in contexts:
        assert before + token + after in text
        assert 0 < weight <= 1
    weights = [c[3] for c in told["sources"]["teacher"]["contexts"][0] if not c[4]]
    assert weights == sorted(weights, reverse=True)


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


def test_mistakes_are_told(teacher: Path, tmp_path: Path) -> None:
    bare = random_run(tmp_path / "bare")
    stranger = random_run(tmp_path / "stranger", seed=1)
    dictionary = next(teacher.glob("dictionary-*"))
    for flags, message in (
        ([str(tmp_path / "nothing")], "no run at"),
        ([str(bare)], "has no dictionary: python fit_dictionary.py --teacher"),
        ([str(bare), f"--dictionary={dictionary}"], "of another teacher"),
        ([str(teacher), f"--teacher={stranger}"], "--teacher is for students"),
        ([str(teacher), f"--compare={tmp_path / 'no.safetensors'}"], "no dictionary at"),
        ([str(teacher), "--text="], "--text has no tokens"),
        ([str(teacher), "--text=" + "the cat " * 400], "tokens, the model reads"),
        ([str(teacher), f"--tags={tmp_path / 'no.txt'}"], "no tagged file"),
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


def test_nothing_in_a_report_can_command_a_terminal() -> None:
    assert concept_report.printable("a\x1b[31m\u202eb\u0007 ▁é猫") == "a\ufffd[31m\ufffdb\ufffd ▁é猫"


def test_tables_put_text_to_the_left() -> None:
    shown = as_text({"#1": {"share": 0.5, "tokens": "a b"}, "#22": {"share": 12, "tokens": "c"}}, "Title")
    assert shown.splitlines() == ["Title", "     share  tokens", "-" * 18, "#1   0.500  a b", "#22     12  c"]
