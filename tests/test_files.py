"""Files and directories are written whole, never through a link, and read only if they are regular."""

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlsm import files

READERS: list[Callable[[Path], object]] = [
    files.read_bytes,
    files.read_text,
    files.read_json,
    files.read_tensors,
    files.file_digest,
]


class Waiting(BaseException):
    """No Exception, because the function might catch it."""


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A function that waits for the other end of a FIFO fails the test."""

    def give_up(*_: object) -> None:
        raise Waiting

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["FIFO", "device", "directory"])
def test_only_regular_files_are_read(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "place"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ValueError, match="place is not a regular file; remove it"):
        read(path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    """The cache of the Hugging Face hub consists of links."""
    (tmp_path / "file").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    assert files.read_json(tmp_path / "link") == {"a": 1}


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, files.LARGEST_JSON + 1)  # a hole, which takes no space on the disk
    with pytest.raises(ValueError, match=r"config\.json has 67,108,865 bytes, more than the 67,108,864"):
        files.read_json(path)


def test_text_that_is_not_utf8_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="text is not UTF-8"):
        files.read_text(tmp_path / "text")


@pytest.mark.parametrize("content", ['{"a": 1, "a": 2}', "[" * 100_000, "\xff", "1" * 5000])
def test_json_that_is_odd_is_refused_with_its_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"odd\.json is not JSON"):
        files.read_json(path)


def test_headers_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    for content in (b"\xff" * 8, (1 << 40).to_bytes(8, "little"), len(header).to_bytes(8, "little") + header):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            files.read_tensors(path)


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    files.write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    for read in (files.read_tensors, load_file):
        assert all(torch.equal(tensors[name], w) for name, w in read(tmp_path / "x.safetensors").items())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "text", "x")
        files.write_tensors(tmp_path / "model.safetensors", {"w": torch.ones(1)})
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


def test_a_file_replaces_a_link_and_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "config.json").symlink_to("precious")
    # The name of the unfinished file can be guessed, too.
    (tmp_path / f".config.json.{os.getpid()}.tmp").symlink_to("precious")
    files.write_json(tmp_path / "config.json", {})
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "config.json").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "precious"]


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("before")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "text", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("place", ["step-4", ".step-4.tmp"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_directory_is_not_written_through_what_stands_in_its_place(
    kind: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("precious")
    if kind == "link":
        (tmp_path / place).symlink_to("outside")
    else:
        os.mkfifo(tmp_path / place)
    with pytest.raises(OSError, match="step-4"):
        files.write_directory(tmp_path / "step-4", lambda work: files.write_text(work / "new", "x"))
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]


def test_a_directory_replaces_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        files.write_directory(tmp_path / "final", lambda work, name=name: files.write_text(work / name, "x"))
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_folder_within_a_run_does_not_leave_it(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    run = tmp_path / "run"
    run.symlink_to("disk/run")  # the run itself may be elsewhere
    assert files.folder_within(run, "evaluation", "blimp") == run / "evaluation" / "blimp"
    (run / "inside").mkdir()
    (run / "evaluation").symlink_to("inside")
    assert files.folder_within(run, "evaluation", "blimp") == run / "evaluation" / "blimp"
    for target in ("..", "/nowhere", str(tmp_path / "disk"), "../run-2"):
        (run / "evaluation").unlink()
        (run / "evaluation").symlink_to(target)
        with pytest.raises(ValueError, match=r"evaluation.* is a link that leaves .*run, nothing is written"):
            files.folder_within(run, "evaluation", "blimp")


@pytest.mark.parametrize("value", ["é", "\ud800", {"\udfff": ["é"]}])
def test_json_holds_every_text_that_json_can_name(tmp_path: Path, value: object) -> None:
    files.write_json(tmp_path / "file.json", value)
    assert files.read_json(tmp_path / "file.json") == value
