"""A report is read as it was written, and nothing else is read as a report."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_reports import small_report

from mlsm.pages.concept_file import REPORT_FILE, read_report, write_report


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_report(tmp_path / REPORT_FILE, "key", small_report())
    return tmp_path / REPORT_FILE


def test_a_report_is_read_by_its_key(path: Path) -> None:
    assert read_report(path, "key") == small_report()
    assert read_report(path, "another key") is None
    assert read_report(path.with_name("none.json"), "key") is None


def sealed(text: str) -> bytes:
    """The text of a report with the digest of what it holds: as a stranger may write it."""
    body = text[text.index('"key"') :].removesuffix("\n")
    return f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}",{body}\n'.encode()


def change(edit: Callable[[Any], object]) -> Callable[[str], bytes]:
    """A file of which one value is changed, with the right digest."""

    def changed(text: str) -> bytes:
        values = json.loads(text)
        edit(values)
        return sealed(json.dumps(values, ensure_ascii=False, separators=(",", ":")))

    return changed


DAMAGE: dict[str, Callable[[str], bytes]] = {
    "one digit": lambda text: text.replace("1", "2", 1).encode(),
    "cut": lambda text: text[:-50].encode(),
    "empty": lambda text: b"",
    "not UTF-8": lambda text: text.encode().replace(b"a", b"\xff", 9),
    "deep": lambda text: b"[" * 100_000,
    "no report": change(lambda values: values.pop("pieces")),
    "a text for a number": change(lambda values: values["sources"]["teacher"]["share"].__setitem__(0, "1")),
    "an object for a list": change(lambda values: values.update(counts={"1": 2})),
    "a pair of three": change(lambda values: values["places"].__setitem__(0, [0.0, 0.0, 0.0])),
    "not finite": lambda text: sealed(re.sub(r'"share":\[[\d.e-]+', '"share":[NaN', text, count=1)),
    "a token that is not there": change(
        lambda v: v["sources"]["student"]["tokens"].__setitem__(0, [[9999, 1]])
    ),
    "a leader that is not there": change(lambda v: v["sources"]["student"]["leader"].__setitem__(0, -1)),
    "a list too short": change(lambda v: v["places"].pop()),
    "a context of no text": change(lambda v: v["sources"]["teacher"]["contexts"][7][0].__setitem__(0, 9999)),
    "a context without its weight": change(
        lambda v: v["sources"]["teacher"]["contexts"][7][0].__setitem__(4, [[1, 0.5]])
    ),
    "a context beyond its text": change(lambda v: v["sequences"].__setitem__(slice(None), [[0]])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_no_report(damage: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_bytes(sealed(text))
    assert read_report(path, "key") == small_report()
    path.write_bytes(DAMAGE[damage](text))
    assert read_report(path, "key") is None
