"""The quoted rows agree with the averages that the paper prints."""

import pytest

from mlsm.evaluation.paper import EWOK_TIES_CORRECT, GLUE_AVERAGE, quoted_rows
from mlsm.evaluation.tasks import GLUE, SUITES


def test_quoted_rows_have_the_averages_the_paper_prints() -> None:
    for size, count in (("10M", 19), ("100M", 16)):
        rows = quoted_rows(
            size, [*(t.title for t in (*GLUE.values(), *SUITES.values())), GLUE_AVERAGE, EWOK_TIES_CORRECT]
        )
        assert len(rows) == count
        for name, row in rows.items():
            if "Table 2" in name or "Table 3" in name:
                values = list(row.values())
                assert sum(values[:-1]) / 11 == pytest.approx(values[-1], abs=0.0016), name
    assert rows["LSM (quoted: 100M words, Table 5)"]["EWoK"] == 0.522
    assert all(row.keys() == {"BLiMP"} for row in quoted_rows("10M", ["BLiMP"]).values())
