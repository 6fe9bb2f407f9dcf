"""The numbers that the paper prints, as rows that a table shows below our own.

They were measured by its author with the official pipeline, on models and corpora of other sizes than ours.
A "size" is the number of words of the pre-training corpus.
"""

from __future__ import annotations

from collections.abc import Collection

from mlsm.evaluation.tables import Cell
from mlsm.evaluation.tasks import GLUE

# Tables 2 (students start from the teacher) and 3 (from random weights): boolq cola mnli mnli-mm mrpc multirc
# qnli qqp rte sst2 wsc, and the average as printed. The columns of MLM are the same model in both.
_TABLE_2 = {
    "10M": """
        MLM   .665 .398 .757 .764 .822 .646 .828 .861 .535 .893 .415 .689
        MLSM  .669 .417 .761 .769 .819 .636 .831 .862 .545 .900 .485 .699
        LSM15 .668 .384 .758 .768 .820 .629 .833 .864 .566 .896 .462 .695
        LSM   .673 .400 .760 .765 .823 .633 .836 .863 .564 .892 .392 .691""",
    "100M": """
        MLM   .686 .509 .779 .783 .906 .629 .846 .868 .616 .903 .400 .720
        MLSM  .697 .484 .789 .791 .905 .643 .853 .868 .607 .905 .419 .724
        LSM15 .689 .511 .782 .788 .913 .639 .849 .869 .645 .899 .412 .727
        LSM   .693 .541 .783 .790 .919 .635 .852 .869 .632 .898 .396 .728""",
}
_TABLE_3 = {
    "10M": """
        MLSM  .640 .000 .347 .342 .811 .576 .509 .000 .460 .518 .523 .430
        LSM15 .677 .176 .750 .756 .822 .625 .818 .854 .594 .882 .392 .668
        LSM   .674 .291 .755 .762 .826 .613 .815 .855 .573 .894 .439 .681""",
    "100M": "",
}
# BLiMP, supplement, EWoK: without and with the third phase. EWoK counted ties as correct.
_TABLE_4 = {
    "10M": """
        MLM,no_third_phase      .653 .603 .647
        MLSM,no_third_phase     .521 .511 .680
        LSM15,no_third_phase    .528 .484 .682
        LSM,no_third_phase      .528 .494 .689
        MLSM,third_phase        .654 .590 .652
        LSM15,third_phase       .642 .580 .667
        LSM,third_phase         .641 .591 .666""",
    "100M": """
        MLM,no_third_phase      .702 .623 .657
        MLSM,no_third_phase     .446 .495 .681
        LSM15,no_third_phase    .465 .529 .654
        LSM,no_third_phase      .471 .533 .659
        MLSM,third_phase        .696 .654 .656
        LSM15,third_phase       .687 .613 .667
        LSM,third_phase         .684 .608 .669""",
}
# GLUE, BLiMP, supplement, EWoK, submitted to the shared task; the first two rows are its baselines.
_TABLE_5 = {
    "10M": """
        BabyLlama .633 .698 .595 .507
        LTG-BERT  .603 .606 .608 .489
        MLSM      .733 .654 .590 .508
        LSM15     .721 .642 .580 .508
        LSM       .708 .641 .591 .507""",
    "100M": """
        BabyLlama .690 .731 .606 .521
        LTG-BERT  .684 .692 .665 .519
        MLSM      .748 .696 .654 .523
        LSM15     .747 .687 .613 .527
        LSM       .741 .684 .608 .522""",
}
# Table 1 and sections 3.1-3.3, by phase: updates, epochs, hours on one NVIDIA A6000, all rounded there.
_TABLE_1 = {
    "10M": {"1": (100_000, 200, 50), "2": (10_000, 20, 5), "3": (10_000, 20, 2)},
    "100M": {"1": (100_000, 20, 50), "2": (100_000, 20, 50), "3": (10_000, 2, 2)},
}
# What the rows of each table are, for the reader of a table that quotes them.
NOTES = {
    "Table 2": "students that start from the teacher's weights, fine-tuned; MLM is the teacher",
    "Table 3": "students that start from random weights, fine-tuned",
    "Table 4": "the teacher, and students from its weights, before and after phase 3 (the token head)",
    "Table 5": "the submissions to BabyLM 2024, beside its baselines BabyLlama and LTG-BERT",
}
GLUE_AVERAGE = "GLUE avg."
EWOK_TIES_CORRECT = "EWoK, ties correct"


def quoted_rows(size: str, columns: Collection[str]) -> dict[str, dict[str, Cell]]:
    """The rows of Tables 2-5 for a corpus of 10M or 100M words that have any of these columns. The name of a
    row says that it is quoted, and from which table.
    """
    glue = (*(task.title for task in GLUE.values()), GLUE_AVERAGE)
    tables = {
        "Table 2": (_TABLE_2, glue),
        "Table 3": (_TABLE_3, glue),
        "Table 4": (_TABLE_4, ("BLiMP", "supplement", EWOK_TIES_CORRECT)),
        "Table 5": (_TABLE_5, (GLUE_AVERAGE, "BLiMP", "supplement", "EWoK")),
    }
    rows: dict[str, dict[str, Cell]] = {}
    for title, (table, printed) in tables.items():
        for line in table[size].strip().splitlines():
            name, *values = line.split()
            label = f"{name.replace(',', ', ').replace('_', ' ')} (quoted: {size} words, {title})"
            cells = dict(zip(printed, map(float, values), strict=True))
            rows[label] = {column: value for column, value in cells.items() if column in columns}
    return {label: cells for label, cells in rows.items() if cells}


def notes(rows: Collection[str]) -> list[str]:
    """A line for each table of the paper that has one of these rows, and one about all of them."""
    lines = [f"{title}: {note}" for title, note in NOTES.items() if any(f"{title})" in name for name in rows)]
    about = "quoted from the paper (Berend 2024): DeBERTa base on the text of BabyLM, measured by its author"
    return [about, *lines] if lines else []


def quoted_compute(size: str) -> dict[str, dict[str, str]]:
    """Table 1, one row per phase, with the columns of `mlsm.pages.run_facts.compute_row`."""
    return {
        f"phase {phase} (quoted: {size} words, Table 1)": {
            "phase": phase,
            "updates": f"{updates:,}",
            "sequences per update": "1,024",
            "epochs": f"about {epochs}",
            "time": f"about {hours} h",
        }
        for phase, (updates, epochs, hours) in _TABLE_1[size].items()
    }
