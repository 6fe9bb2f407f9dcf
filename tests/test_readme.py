"""README and docs/ say nothing that is not so: their commands parse, their files and flags exist."""

import importlib.util
import re
import shlex
import tomllib

import dictionary_study
import pytest
import study_run
from pipeline import ROOT
from torch.distributed.run import get_args_parser

import evaluate
import fit_dictionary
import train
from mlsm import __version__, concepts, dictionary, export, list_runs, report

README = (ROOT / "README.md").read_text(encoding="utf-8")
PATHS = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in PATHS}
COMMANDS = [
    line.strip().split("#")[0]
    for page in PAGES.values()
    for line in page.splitlines()
    if line.startswith("    ")
]
PARSERS = {
    "train.py": train.flags,
    "fit_dictionary.py": fit_dictionary.flags,
    "evaluate.py": evaluate.parser,
    "experiments/study.py": study_run.flags,
    "experiments/dictionaries.py": dictionary_study.parser,
    "mlsm.export": export.parser,
    "mlsm.concepts": concepts.parser,
    "mlsm.dictionary": dictionary.parser,
    "mlsm.report": report.parser,
    "mlsm.list_runs": list_runs.parser,
}
OF_USERS = {"results.md", "score_mlsm.py", "kernels/lasso/ista.py"}  # files that a run or a reader makes


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if c.startswith(("python ", "torchrun "))}))
def test_commands_parse(command: str) -> None:
    if command.startswith("torchrun "):
        job = get_args_parser().parse_args(shlex.split(command)[1:])
        command = shlex.join(["python", job.training_script, *job.training_script_args])
    _, script, *flags = shlex.split(command.replace("-m ", "", 1))
    for line in fit_dictionary.each_alone(flags) if script == "fit_dictionary.py" else [flags]:
        PARSERS[script]().parse_args(line)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_files_and_flags_exist(name: str) -> None:
    page = PAGES[name]
    for file in set(re.findall(r"`([\w./-]+\.(?:py|c|md|txt))`", page)) - OF_USERS:
        folder = "**/" if name == "map.md" and "/" not in file else ""  # there a paragraph names the folder
        assert any(ROOT.glob(folder + file)), file
    for module in re.findall(r"python -m (mlsm[.\w]+)", page):
        assert importlib.util.find_spec(module), module
    known = {option for parser in PARSERS.values() for option in parser()._option_string_actions}
    known |= get_args_parser()._option_string_actions.keys()
    ours = "\n".join(command for command in COMMANDS if not command.startswith("hf "))
    flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours) + re.findall(r"`(--[a-z-]+)", page)
    for flag in flags:
        assert flag in known | {"--help"}, flag


def test_quoted_measurements_are_those_of_the_results() -> None:
    sections = re.split(r"^## ", PAGES["performance.md"], flags=re.MULTILINE)[1:]
    measured = [section for section in sections if "\n| ---" in section]
    assert len(measured) >= 5
    for section in measured:
        command, name = re.search(r"`([^`]+)` writes\s+`([^`]+)`", section).groups()
        result = (ROOT / name).read_text(encoding="utf-8")
        assert command in result, name
        rows = [set(map(str.strip, line.split("|"))) for line in result.splitlines()]
        for line in re.findall(r"^\| .*\d.*$", section, re.MULTILINE):
            numbers = {cell.strip() for cell in line.split("|") if re.search(r"\d", cell)}
            tolerance = {cell for cell in numbers if cell.startswith("tol ")}
            quoted = numbers - tolerance | {f"ours (descent), {cell}" for cell in tolerance}
            assert any(quoted <= row for row in rows), f"{line} is not in {name}: quote what it says now"


def test_the_readme_quotes_the_outputs_of_the_tutorial() -> None:
    shown = PAGES["tutorial.md"]
    table = re.findall(
        r"^    ((?:teacher|lsm-random|token-head-lsm-random|baseline) .*)$", README, re.MULTILINE
    )
    assert len(table) == 4
    assert [row for row in table if row not in shown] == []
    [command] = re.findall(r"^    python -m mlsm.concepts .*$", README, re.MULTILINE)
    assert command in shown  # a test runs the commands of the tutorial
    outputs = re.findall(r"^    model\..*?# ?(.*)$", README, re.MULTILINE)
    numbers = [number for output in outputs for number in re.findall(r"-?\d+(?:\.\d+)?", output)]
    assert len(numbers) == 9
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){number}(?![\d.])", shown)] == []


def test_the_readme_is_short_and_its_figures_are_those_of_the_results() -> None:
    assert len(README.splitlines()) < 150
    study = (ROOT / "results" / "miniature.md").read_text(encoding="utf-8")
    table = README.partition("| what you get |")[2].partition("\n\n")[0]
    numbers = re.findall(r"\d+\.\d+", table)
    assert len(numbers) >= 5
    for number in numbers:
        assert f"| {number} |" in PAGES["performance.md"] + study, number
    for path in re.findall(r"(?:python|pytest) ([\w/]+\.py)", table):
        assert (ROOT / path).exists(), path


def test_pages_and_pictures_are_there_and_linked_from_the_readme() -> None:
    pages = [str(path.relative_to(ROOT)) for path in PATHS if path.name != "README.md"]
    assert [page for page in pages if f"`{page}`" not in README] == []
    for page in PATHS:
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), link
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 300_000, picture


def test_the_version_is_the_same_everywhere() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {__version__}" in PAGES["CHANGELOG.md"]


def test_the_readme_shows_the_commands_of_phase_two() -> None:
    assert "python train.py --objective lsm --init random" in README
    assert "python fit_dictionary.py --layer 12 --k 1500 --lam 0.05" in README


def test_what_the_readme_says_of_the_embedded_corpus(tmp_path) -> None:
    from mlsm.text.corpus import embedded_corpus

    words = len(embedded_corpus(tmp_path).read_text(encoding="utf-8").split())
    assert f"({words:,} words" in README
