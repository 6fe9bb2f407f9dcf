"""Build the package: in a wheel, everything is inside `mlsm`. `pyproject.toml` has all other settings.

In the repository, `kernels/` and the scripts stand beside `mlsm/`. Two packages of Hugging Face have the
top-level names `kernels` and `evaluate`, so an installed mlsm must not own them. The build moves everything
into `mlsm` and rewrites the imports: `from kernels.lasso import ...` becomes
`from mlsm.kernels.lasso import ...`. An editable install leaves everything where it is.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "mlsm"


class BuildInsidePackage(build_py):
    """The usual build of all modules, after which those outside `mlsm` are moved into it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            move_into_package(Path(self.build_lib), [*self.packages, *self.py_modules])


def move_into_package(folder: Path, modules: list[str]) -> None:
    """Move the modules and packages of a folder into its package `mlsm`, and rewrite the imports of them."""
    names = {name.partition(".")[0] for name in modules} - {PACKAGE}
    for name in names:
        shutil.rmtree(folder / PACKAGE / name, ignore_errors=True)  # what an earlier build has moved
        for path in (folder / name, folder / f"{name}.py"):
            if path.exists():
                path.replace(folder / PACKAGE / path.name)
    pattern = re.compile(rf"^(\s*from )({'|'.join(sorted(names))})(?=[. ])", re.MULTILINE)
    for path in (folder / PACKAGE).rglob("*.py"):
        path.write_text(pattern.sub(rf"\1{PACKAGE}.\2", path.read_text("utf-8")), "utf-8")


setup(cmdclass={"build_py": BuildInsidePackage})
