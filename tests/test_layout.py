"""The layout keeps its promises: imports go down, every module has a floor and a line in docs/map.md."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the cellar to the roof. A module imports from lower floors only, never from its own.
FLOORS = [
    ["kernels.backend", "kernels.dropout"],
    ["kernels.attention.reference", "kernels.attention.strided", "kernels.attention.tile_triton"],
    ["kernels.attention.forward_triton", "kernels.attention.backward_triton", "kernels.lasso.reference"],
    ["kernels.attention.fused_triton", "kernels.lasso.descent_cpu", "kernels.lasso.descent_triton"],
    ["kernels.attention.attend", "kernels.lasso.solve"],
    ["mlsm.config", "mlsm.seeds", "mlsm.sequences", "mlsm.linear_loss", "mlsm.distributed"],
    ["mlsm.tokenizer", "mlsm.checkpoint", "mlsm.huggingface"],
    ["mlsm.log"],
    ["mlsm.masking", "mlsm.cli", "mlsm.directory"],
    ["mlsm.deberta", "mlsm.dictionary", "mlsm.data", "mlsm.optim"],
    ["mlsm.deberta_v2", "mlsm.model"],
    ["mlsm.run", "mlsm.targets"],
    ["mlsm.objectives", "mlsm.outside"],
    ["mlsm.plan"],
    ["mlsm.evaluation.jsonl", "mlsm.evaluation.lineage", "mlsm.evaluation.subject", "mlsm.evaluation.tables"],
    ["mlsm.evaluation.pseudo_likelihood", "mlsm.evaluation.grammar", "mlsm.evaluation.heldout"],
    ["mlsm.evaluation.glue", "mlsm.evaluation.minimal_pairs"],
    ["mlsm.evaluation.finetune", "mlsm.evaluation.paper"],
    ["mlsm.evaluation.summary"],
    ["mlsm.pages.concept_use", "mlsm.pages.tagged", "mlsm.pages.run_facts"],
    ["mlsm.pages.concept_reading", "mlsm.pages.run_view"],
    ["mlsm.pages.concept_report", "mlsm.pages.concept_view"],
    ["mlsm.divergence", "mlsm.model_card", "mlsm.api"],
    ["train", "fit_dictionary", "evaluate", "mlsm.export", "mlsm.concepts", "mlsm.report"],
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the project outside tests and benchmarks, by its name."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("mlsm/**/*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


def imported_by(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & modules().keys()


def test_every_module_has_a_floor() -> None:
    assert modules().keys() == FLOOR_OF.keys()


@pytest.mark.parametrize("name", sorted(FLOOR_OF))
def test_imports_go_down(name: str) -> None:
    upward = {other for other in imported_by(modules()[name]) if FLOOR_OF[other] >= FLOOR_OF[name]}
    assert not upward


def test_installing_takes_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name.rpartition(".")[0] for name in modules() if "." in name}
    assert set(settings["packages"]) == packages
    patterns = settings["package-data"]["*"]
    for folder in ("mlsm", "kernels"):
        for path in (ROOT / folder).rglob("*.*"):
            assert "__pycache__" in path.parts or path.suffix == ".py" or any(map(path.match, patterns)), path


def test_the_map_has_every_module() -> None:
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    missing = [name for name, path in modules().items() if f"`{path.relative_to(ROOT)}`" not in page]
    assert not missing


def test_nothing_committed_is_a_link() -> None:
    """A link is to a place on one machine."""
    if (ROOT / ".git").exists():
        names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    else:  # a download
        names = [path.name for path in ROOT.iterdir()]
    assert "README.md" in names
    assert not [name for name in names if (ROOT / name).is_symlink()]
