"""The layout keeps its promises: imports go down, there are no circles, and docs/map.md names every file."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BASE = [
    "version",
    "settings",
    "config",
    "naming",
    "finished",
    "seeds",
    "distributed",
    "files",
    "threads",
    "waiting",
    "device",
    "directory",
    "board",
    "log",
]
BASE += ["command_line", "cli"]
COMMANDS = [
    "train",
    "fit_dictionary",
    "evaluate",
    "mlsm.api",
    "mlsm.concepts",
    "mlsm.dictionary",
    "mlsm.export",
    "mlsm.list_runs",
    "mlsm.report",
    "mlsm.saelens",
]
# The levels of the project, lowest first. A module imports from its own level and from lower ones; the
# modules of one level do not import each other in a circle.
LEVELS = [
    ["kernels"],
    [f"mlsm.{name}" for name in (*BASE, "figures")],
    ["mlsm.text", "mlsm.model"],
    ["mlsm.coding"],
    ["mlsm.runs"],
    ["mlsm.training"],
    ["mlsm.evaluation"],
    ["mlsm.pages"],
    ["mlsm.inspection"],
    [*COMMANDS, "mlsm", "mlsm.__main__", "setup"],
]
LEVELS_ABOVE = ["experiments", "benchmarks"]  # they use everything, and each only itself beside


def modules() -> dict[str, Path]:
    """Every module of the project outside tests, by its name; a package goes by the name of its folder."""
    folders = ("kernels", "mlsm", *LEVELS_ABOVE)
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def level_of(name: str) -> int:
    """The number of the level that lists the module or one of its packages, the longest name first."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for number, names in enumerate([*LEVELS, LEVELS_ABOVE]):
            if prefix in names and (prefix != "mlsm" or name == "mlsm"):
                return number
    raise AssertionError(f"{name} is on no level: it belongs into one of the folders of LEVELS")


def imported_by(name: str) -> set[str]:
    """The project's modules that a module imports, anywhere in its file, also behind TYPE_CHECKING."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` depends on the module and not on the package's own file.
            imports |= parts if parts <= modules().keys() else parts | {node.module}
    siblings = {f"{package}.{other}" for other in imports} if path.parts[-2] in LEVELS_ABOVE else set()
    return (imports | siblings) & modules().keys() - {name}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    upward = {other for other in imported_by(name) if level_of(other) > level_of(name)}
    assert not upward
    folders = {other.partition(".")[0] for other in imported_by(name)} & set(LEVELS_ABOVE)
    assert folders <= {name.partition(".")[0]}


def test_no_circles() -> None:
    waiting = {name: imported_by(name) for name in modules()}
    while free := {name for name, others in waiting.items() if not others & waiting.keys()}:
        waiting = {name: others for name, others in waiting.items() if name not in free}
    assert not waiting


def test_installing_takes_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages
    patterns = settings["package-data"]["*"]
    for folder in ("mlsm", "kernels"):
        for path in (ROOT / folder).rglob("*.*"):
            assert "__pycache__" in path.parts or path.suffix == ".py" or any(map(path.match, patterns)), path


def test_the_map_names_every_file() -> None:
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    paths = [path for path in modules().values() if path.name != "__init__.py"]
    missing = [path.relative_to(ROOT) for path in paths if f"`{path.name}`" not in page]
    assert not missing


def test_nothing_committed_is_a_link() -> None:
    """A link is to a place on one machine."""
    if (ROOT / ".git").exists():
        names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    else:  # a download
        names = [path.name for path in ROOT.iterdir()]
    assert "README.md" in names
    assert not [name for name in names if (ROOT / name).is_symlink()]
