"""config.json as a typed record: read as it was written, refused by the name of what is wrong."""

import json
import math
from pathlib import Path

import pytest
from small_runs import random_run

from mlsm.files import write_json
from mlsm.runs.hub_names import RUN_FILE
from mlsm.runs.record import read_record, record_json
from mlsm.runs.run import load_run


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = read_record(random_run(tmp_path / "run", num_concepts=6))
    (tmp_path / "copy").mkdir()
    write_json(tmp_path / "copy" / "config.json", record_json(record))
    assert read_record(tmp_path / "copy") == record
    write_json(tmp_path / "copy" / "config.json", {"model_type": "deberta"})  # of an exported directory
    write_json(tmp_path / "copy" / RUN_FILE, record_json(record))
    assert read_record(tmp_path / "copy") == record


def test_a_directory_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run at .*: a run is a directory such as runs/lsm-random"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 10**9}}, "config.json: .* too large; at most 1000 layers"),
        ({"model": {"depth": 10**9}}, "config.json: .* too large; at most 1000 layers"),
        ({"model": {"width": 64}}, "weights that do not fit this model"),
        ({"model": {"vocab_size": 10**6}}, "weights that do not fit this model"),
        ({"model": {"colour": 1}}, "config.json: .*unknown or missing: colour"),
        ({"train": {"learning_rate": math.inf}}, "config.json: learning_rate must be finite"),
        ({"train": {"num_steps": 10**400}}, "config.json: num_steps must be at most"),
        ({"data": {"corpus": [1]}}, "config.json: corpus must be tuple"),
        ({"preset": "huge"}, "config.json: preset must be one of"),
        ({"layout": {}}, r"config.json: Layout: fields that are unknown or missing: is_table_normed"),
        (
            {"layout": {"num_buckets": 0, "max_distance": 0, "is_table_normed": True}},
            "config.json: not a layout",
        ),
        (
            {"layout": {"num_buckets": 0, "max_distance": 1 << 61, "is_table_normed": True}},
            "config.json: num_buckets and max_distance must be at most",
        ),
        ({"corpus": {"lines": "x"}}, "config.json: lines must be int"),
        ({"source": {}}, "config.json: SourceRecord: fields that are unknown or missing: directory, weights"),
        ({"words": {"own": 3, "before": {"teacher": -1}}}, "config.json: words must not be below 0"),
        ({"versions": {"mlsm": 1}}, r"config.json: versions must be dict\[str, str\]"),
        ({"data": {"cache_dir": "a\0b"}}, "config.json: cache_dir must not hold a null character"),
        ({"data": {"corpus": ["a\0b"]}}, "config.json: corpus must not hold a null character"),
        ({"extra": 1}, "config.json: .*unknown or missing: extra"),
        ({"concepts": {"teacher": 7}}, "config.json: .*unknown or missing: .*dictionary"),
        ({"tokenizer": "0" * 12}, "tokenizer.model: damaged, or the tokenizer of another run"),
    ],
)
def test_a_config_that_claims_too_much_is_refused_by_name(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    run = random_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for name, value in changes.items():
        config[name] = (config.get(name) or {}) | value if isinstance(value, dict) else value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_run(run)
