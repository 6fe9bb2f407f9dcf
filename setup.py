"""Building the package: in a wheel everything lies inside `mlsm`, and `pyproject.toml` has all other settings.

In the repository, `kernels/` and the scripts stand beside `mlsm/`. Installed like that they would take the
top-level names `kernels` and `evaluate`, which are those of two packages of Hugging Face. So the build moves
them into `mlsm` and rewrites the imports: `from kernels.lasso import ...` becomes
`from mlsm.kernels.lasso import ...`. An editable install leaves everything where it is.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "mlsm"


class BuildInsidePackage(build_py):
    """The usual build of modules, followed by the move of every other one into `mlsm`."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            move_into_package(Path(self.build_lib), {*self.packages, *self.py_modules} - {PACKAGE})


def move_into_package(folder: Path, names: set[str]) -> None:
    """Move these modules and packages of a folder into its package `mlsm`, with the imports of them."""
    names = {name.partition(".")[0] for name in names} - {PACKAGE}
    for name in names:
        shutil.rmtree(folder / PACKAGE / name, ignore_errors=True)  # what an earlier build has moved
        for path in (folder / name, folder / f"{name}.py"):
            if path.exists():
                path.replace(folder / PACKAGE / path.name)
    pattern = re.compile(rf"^(\s*from )({'|'.join(sorted(names))})(?=[. ])", re.MULTILINE)
    for path in (folder / PACKAGE).rglob("*.py"):
        path.write_text(pattern.sub(rf"\1{PACKAGE}.\2", path.read_text("utf-8")), "utf-8")


setup(cmdclass={"build_py": BuildInsidePackage})
