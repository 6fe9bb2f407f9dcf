"""The names that the command line of evaluate.py takes, apart from the code behind them: --help shows them
without importing PyTorch.
"""

SUITES = ("blimp", "supplement", "ewok")  # the keys of `minimal_pairs.SUITES`
# The keys of `glue.TASKS`
GLUE = ("boolq", "cola", "mnli", "mnli-mm", "mrpc", "multirc", "qnli", "qqp", "rte", "sst2", "wsc")
GLUE_OF_2026 = ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")
BABYLM, FAST = "babylm2026", "fast"
TASKS = ("demo", *SUITES, "glue", *GLUE, BABYLM, FAST)
RECIPES = ("2024", "2026")  # of fine-tuning
REDUCTIONS = ("mean", "sum")  # of log p over the tokens of a sentence
TIES = {"wrong": 0.0, "half": 0.5, "correct": 1.0}  # what equal scores of a pair count as
SIZES = ("10M", "100M")  # words of the corpora whose results the paper prints
