"""Links, FIFOs, devices and directories in the place of every file of a run, a teacher, a dictionary, an
evaluation folder and an exported directory. A command takes what it finds or refuses it with one line: it
ends, and nothing outside is written or removed.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer
from fuzz import DATA_FLAGS
from pipeline import student_flags
from small_text import NANO_FLAGS, write_corpus
from task_files import blimp_rows, write_cola, write_lines

from mlsm.runs.checkpoint import MODEL_FILE

DEADLINE_S = 60  # a command takes a second when nothing else runs
GOOD = ["the cat sees a boat today", "the cat sees the river today"]
DICTIONARY = "run/dictionary-l2-k8-lam0.05.safetensors"
SMALL_DICTIONARY = ["--k=8", "--num-tokens=400", "--num-updates=2", "--batch-size=50"]
STUDENT = student_flags(Path("run"), "lsm", Path("student"))
COMMANDS = {
    "evaluate": [
        "evaluate", "run", "--tasks=blimp,cola", "--data=data", "--seeds=1", "--max-epochs=1", "--baseline",
    ],
    "resume": ["train", "--objective=mlm", *DATA_FLAGS, *NANO_FLAGS, "--output=unfinished", "--resume"],
    "teach": ["train", *STUDENT, f"--dictionary={DICTIONARY}", "--num-steps=1"],
    "learn": ["fit_dictionary", "--teacher=run", *SMALL_DICTIONARY],
    "report": ["mlsm.report", "run"],
    "concepts": ["mlsm.concepts", "run", "--num-tokens=200"],
    "export": ["mlsm.export", "run", "exported"],
    "exported": ["evaluate", "exported", "--tasks=blimp", "--data=data"],
}  # fmt: skip


# What a command neither reads nor replaces: TensorBoard's events, for example, are written under new names.
NOT_USED = {
    "evaluate": ("events", "run/checkpoints", "concepts", "report.html", "dictionary"),
    "resume": ("events", "step-2", "concepts", "report", "results", "evaluation", "dictionary"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def material(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the commands read, and everything that they write once."""
    folder = tmp_path_factory.mktemp("material")
    write_corpus(folder / "text.txt")
    data = write_cola(folder / "data", 12, 6)
    write_lines(data / "blimp_filtered" / "task.jsonl", blimp_rows(GOOD, [text[::-1] for text in GOOD]))
    run = ["train", "--objective=mlm", *DATA_FLAGS, *NANO_FLAGS, "--output=run"]
    for words in (
        run,
        *(COMMANDS[name] for name in ("learn", "evaluate", "report", "concepts", "export")),
    ):
        code, said = server.run(*words, cwd=folder, deadline_s=300)
        assert code == 0, said
    shutil.copytree(folder / "run", folder / "unfinished")
    (folder / "unfinished" / MODEL_FILE).unlink()
    shutil.rmtree(folder / "unfinished/checkpoints/step-6")
    return folder


def replace(place: Path, kind: str, outside: Path) -> None:
    """Put something else in the place of a file or a directory."""
    is_directory = place.is_dir()
    shutil.rmtree(place) if is_directory else place.unlink()
    if kind == "link":
        place.symlink_to(outside / ("folder" if is_directory else "file"))
    elif kind == "dangling link":
        place.symlink_to(outside / "nothing")
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "FIFO":
        os.mkfifo(place)
    else:
        place.mkdir()


def make_outside(folder: Path) -> dict[str, bytes | None]:
    """Files and folders that no command may change; returns them as `contents`."""
    for name in ("folder/step-999", "folder/blimp", "folder/glue", "folder/random-weights"):
        (folder / name).mkdir(parents=True)
    for name in ("file", "folder/results.json", "folder/step-999/model.safetensors", "folder/state.json"):
        (folder / name).write_text("precious")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes | None]:
    """The content of each file in a folder by its path; None for a directory."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def places_of(material: Path, command: str) -> list[str]:
    """Everything that a command reads or replaces: all of some folders, and some single files."""
    folders = {
        "evaluate": ["run", "data"],
        "resume": ["unfinished"],
        "export": ["exported"],
        "exported": ["exported"],
    }
    single = {
        "teach": ["run/config.json", "run/model.safetensors", "run/tokenizer.model", DICTIONARY],
        "learn": ["run/config.json", "run/model.safetensors", "run/tokenizer.model", DICTIONARY],
        "report": ["run/metrics.jsonl", "run/results.json", "run/report.html"],
        "concepts": [DICTIONARY, "run/concepts.json"],
    }
    files = [
        str(p.relative_to(material))
        for name in folders.get(command, [])
        for p in (material / name).rglob("*")
    ]
    files = [place for place in files if not any(name in place for name in NOT_USED.get(command, ()))]
    return [*single.get(command, []), *sorted(files)]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_outside_is_written_and_nothing_is_read_for_ever(
    command: str, server: ForkServer, material: Path, tmp_path: Path
) -> None:
    before = make_outside(tmp_path / "outside")
    case = tmp_path / "case"
    faults = {}
    for place in places_of(material, command):
        for kind in ("link", "dangling link", "device", "FIFO", "directory"):
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(material, case)
            replace(case / place, kind, tmp_path / "outside")
            code, said = server.run(*COMMANDS[command], cwd=case, deadline_s=DEADLINE_S)
            if code not in (0, 2) or "Traceback" in said or contents(tmp_path / "outside") != before:
                faults[place, kind] = (code, said[-500:])
                shutil.rmtree(tmp_path / "outside")
                make_outside(tmp_path / "outside")
    assert not faults
