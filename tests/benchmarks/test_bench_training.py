"""The table of benchmarks/bench_training.py compares with ours in the precision that training takes."""

import bench_training
import pytest
from bench_training import Case
from signals import source_width


def measured(speed: float, mib: float) -> dict[str, list[float]]:
    return {"speeds": [speed], "processor_s": [1 / speed], "operations": [speed], "mib": [mib]}


def test_ratios_are_to_ours_in_the_last_precision() -> None:
    names = [side.name for side in bench_training.SIDES]
    recipe = names.index("the paper's recipe, random")
    ours = next(
        n for n, side in enumerate(bench_training.SIDES) if side.objective == "LSM" and side.name == "ours"
    )
    results = {
        Case(ours, "off"): measured(500, 80),
        Case(ours, "bf16"): measured(1000, 60),
        Case(recipe, "off"): measured(100, 600),
        Case(recipe, "bf16"): measured(200, 300),
    }
    rows = [line.split(" | ") for line in bench_training.table(results).splitlines()[2:]]
    assert [row[2] for row in rows] == ["float32", "bf16", "float32", "bf16"]
    assert [row[4] for row in rows] == ["2.00", "1.00", "10.00", "5.00"]
    assert [row[5] for row in rows] == ["2.00", "1.00", "10.00", "5.00"]
    assert [row[7].rstrip(" |") for row in rows] == ["0.75", "1.00", "0.10", "0.20"]


@pytest.mark.parametrize(("is_native", "expected"), [(True, ["off", "bf16"]), (False, ["off"])])
def test_bf16_is_timed_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(bench_training, "has_native_bf16", lambda: is_native)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench_training.precisions() == expected


def test_every_model_has_real_signals_of_its_width() -> None:
    assert {config.width: source_width(config.width) for config in bench_training.MODELS.values()} == {
        192: 384,
        384: 384,
        768: 768,
    }
    with pytest.raises(ValueError, match="at most 768"):
        source_width(1024)
