"""The page on designs of attention has the counts that the script computes from the table of kernels."""

import count_attention
import pytest
import result_page


def test_the_page_has_the_table_that_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    count_attention.main()
    page = (result_page.REPOSITORY / "results" / "attention-designs.md").read_text()
    assert capsys.readouterr().out in page


def test_an_update_is_cut_into_micro_batches_that_are_almost_full() -> None:
    *full, _ = parts = count_attention.update_of_pairs()
    budget = count_attention.TOKEN_BUDGET
    assert sum(map(len, parts)) == 1024
    assert all(budget - max(part) < sum(part) <= budget for part in full)
