"""The directory that a command writes in: writable, and used by one process at a time."""

import os
from pathlib import Path

import pytest

from mlsm.directory import LOCK_FILE, check_writable, only_process


def test_the_process_that_uses_a_directory_is_named(tmp_path: Path) -> None:
    with only_process(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(f"{os.getpid()} on ")
        with pytest.raises(ValueError, match=rf"run is in use by process {os.getpid()} on \S+; wait"):
            only_process(tmp_path / "run").__enter__()
    with only_process(tmp_path / "run"):
        pass


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling link", "FIFO", "directory"])
def test_a_lock_file_that_is_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    precious.write_text("precious")
    if kind == "FIFO":
        os.mkfifo(run / LOCK_FILE)
    elif kind == "directory":
        (run / LOCK_FILE).mkdir()
    elif kind == "hard link":
        os.link(precious, run / LOCK_FILE)
    else:
        (run / LOCK_FILE).symlink_to(precious if kind == "link" else tmp_path / "new")
    with (
        pytest.raises(ValueError, match=r"run/\.lock is no file of this program; remove it"),
        only_process(run),
    ):
        pass
    assert precious.read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("mlsm.directory.fcntl.flock", no_locks)
    with only_process(tmp_path / "run"):
        assert "cannot be locked" in capsys.readouterr().err


def test_a_read_only_file_system_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("mlsm.directory.tempfile.TemporaryFile", read_only)
    with pytest.raises(
        ValueError, match=r"cannot write in .*: Read-only file system; name another directory"
    ):
        check_writable(tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())
