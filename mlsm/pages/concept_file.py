"""concepts.json: a report on concepts that is kept, and read again only if it is what was written.

The first entry is a digest of the rest. The second is the key: a digest of everything that the report was
computed from, such as weights, atoms, text and settings. A file with another key, a damaged one, and one that
does not have the form of a report are read as no report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
from collections.abc import Iterator, Sized
from pathlib import Path

from mlsm.files import LARGEST_JSON, parse_json, read_bytes, write_text
from mlsm.pages.concept_report import ConceptReport
from mlsm.settings import from_json

REPORT_FILE = "concepts.json"


def write_report(path: Path, key: str, report: ConceptReport) -> None:
    """Write a report with its key."""
    body = f'"key":"{key}",{report.to_json()[1:]}'
    write_text(path, f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}",{body}\n')


def read_report(path: Path, key: str) -> ConceptReport | None:
    """The report in a file with this key; None without one, and for a file that is damaged or no report."""
    head = '{"sha256":"'
    try:
        content = read_bytes(path, LARGEST_JSON)
        body = content[len(head) + 64 + 2 :].removesuffix(b"\n")
        digest = hashlib.sha256(body).hexdigest()
        if not content.startswith(f'{head}{digest}","key":"{key}",'.encode()):
            return None
        with _no_garbage_collection():
            values = parse_json(content, str(path))
            names = {f.name for f in dataclasses.fields(ConceptReport)}
            report = from_json(ConceptReport, {name: part for name, part in values.items() if name in names})
            _check(report)
    except (OSError, ValueError):
        return None
    return report


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A block that makes many objects and drops few, whose time garbage collection would double."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check(report: ConceptReport) -> None:
    """Raise ValueError for a number that is not finite, for lists of different lengths, and for a concept, a
    token or a place that is not there.
    """
    report.to_json()  # refuses numbers that are not finite
    num_concepts, num_types = report.about.k, len(report.pieces)
    optional = [report.near_atoms, report.shared, report.again]
    lists: list[tuple[Sized, int]] = [(values, num_concepts) for values in optional if values is not None]
    lists += [(report.places, num_concepts), (report.counts, num_types)]
    concepts: list[int] = [k for row in report.near_atoms or [] for k, _ in row]
    tokens: list[int] = [i for sequence in report.sequences for i in sequence]
    for use in report.sources.values():
        by_type = [(use.token_concepts, num_types)]
        lists += [(v, num_concepts) for v in vars(use).values() if v is not use.token_concepts] + by_type
        concepts += [*use.leader, *(k for row in (*use.near, *use.token_concepts) for k, _ in row)]
        tokens += [*(i for row in use.labels for i in row), *(i for row in use.tokens for i, _ in row)]
        for context in (context for row in use.contexts for context in row):
            if not 0 <= context.sequence < len(report.sequences):
                raise ValueError("a context of no sequence")
            length = len(report.sequences[context.sequence])
            places = [place for place, _ in context.weights]
            if context.place not in places:
                raise ValueError("a context without the weight of its position")
            if not 0 <= context.start <= min(places) <= max(places) < context.stop <= length:
                raise ValueError("a context beyond its sequence")
    if any(len(values) != length for values, length in lists):
        raise ValueError("lists of different lengths")
    for items, count in ((concepts, num_concepts), (tokens, num_types)):
        if items and not 0 <= min(items) <= max(items) < count:
            raise ValueError("a number without a concept or a token")
    if not report.sources:
        raise ValueError("no reader")
