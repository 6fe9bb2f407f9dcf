"""The installed package: it shares an environment with another package named `kernels`, and brings commands.

The Hugging Face package `kernels` owns that top-level name; a stub with its name stands for it here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from pipeline import ROOT
from small_text import NANO_FLAGS, write_corpus

from mlsm.__main__ import COMMANDS

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE_A_SIGNAL = """
import torch
from mlsm.model.language_model import LanguageModel
from mlsm.kernels.lasso import nonneg_lasso
codes_NK = nonneg_lasso(torch.eye(3), torch.eye(3), 0.25).codes_NK
assert torch.allclose(codes_NK, 0.75 * torch.eye(3), atol=1e-2), codes_NK
"""
USE_THE_OTHER = "from kernels import get_kernel; assert get_kernel() == 'the other package'"
BUILD_A_TEACHER = """
import json, sys
from mlsm import cli
cli.build_first("train.py", json.loads(sys.argv[1]), "the teacher")
"""


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def build_wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of a project into a folder of its own, without a network."""
    pip("wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "-w", folder, project)
    [wheel] = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built from a copy, so that no folder `build` stays in the repository."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("mlsm", "kernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "LICENSE"]:
        shutil.copy(path, copy)
    return build_wheel(copy, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def other_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of another package whose name is `kernels`."""
    project = tmp_path_factory.mktemp("other")
    (project / "kernels").mkdir()
    (project / "kernels" / "__init__.py").write_text("def get_kernel():\n    return 'the other package'\n")
    (project / "pyproject.toml").write_text('[project]\nname = "kernels"\nversion = "1"\n')
    return build_wheel(project, tmp_path_factory.mktemp("other-wheel"))


class Environment:
    """A virtual environment that also sees the packages of the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.folder = folder
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        # Files of the working directory that no command may take for the installed modules.
        self.work = folder / "work"
        self.work.mkdir()
        for name in ("mlsm", "kernels", "train"):
            (self.work / f"{name}.py").write_text("raise AssertionError('not the installed module')\n")

    def pip(self, *words: str | Path) -> None:
        pip("--python", self.folder / "bin" / "python", *words)

    def run(self, *words: str) -> str:
        """Run a command of the environment and return what it prints."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        return subprocess.run(
            command, cwd=self.work, env=environment, check=True, capture_output=True, text=True
        ).stdout


@pytest.mark.parametrize("is_first", [True, False], ids=["mlsm first", "kernels first"])
def test_it_shares_an_environment_with_a_package_named_kernels(
    is_first: bool, wheel: Path, other_wheel: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "environment")
    for path in (wheel, other_wheel) if is_first else (other_wheel, wheel):
        environment.pip("install", "--no-index", "--no-deps", path)
    environment.run("python", "-P", "-c", CODE_A_SIGNAL + USE_THE_OTHER)
    environment.pip("uninstall", "--yes", "mlsm" if is_first else "kernels")
    environment.run("python", "-P", "-c", USE_THE_OTHER if is_first else CODE_A_SIGNAL)


def test_the_installed_commands(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    environment.pip("install", "--no-index", "--no-deps", wheel)
    usage = environment.run("mlsm", "--help")
    commands = [line.split()[0] for line in usage.splitlines() if line.startswith("  ")]
    assert commands == [*COMMANDS]
    assert environment.run("mlsm", "train", "--help").startswith("usage: mlsm train ")
    modules = ", ".join(f"mlsm.{command.replace('-', '_')}" for command in commands)
    environment.run("python", "-P", "-c", f"import {modules}")
    corpus = write_corpus(tmp_path / "text.txt")
    flags = ["--objective=mlm", "--corpus", str(corpus), *NANO_FLAGS]
    environment.run("python", "-P", "-c", BUILD_A_TEACHER, json.dumps(flags))
    assert (environment.work / "runs" / "teacher-text" / "model.safetensors").exists()


def test_an_unknown_command_is_one_line() -> None:
    command = [sys.executable, "-m", "mlsm", "tarin"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: 'tarin' is not a command; did you mean train?")
    assert len(ended.stderr.splitlines()) == 1


def test_the_wheel_takes_one_name_and_no_exact_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert {"mlsm/pages/run_page.html", "mlsm/pages/run_page.js"} <= {*archive.namelist()}
        names = {name.partition("/")[0] for name in archive.namelist()}
        assert {name for name in names if not name.endswith(".dist-info")} == {"mlsm"}
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    requirements = [line for line in lines if line.startswith("Requires-Dist: ")]
    extras = SETTINGS["project"]["optional-dependencies"].values()
    assert len(requirements) == len(SETTINGS["project"]["dependencies"]) + sum(map(len, extras))
    assert not [line for line in requirements if "==" in line.partition(";")[0]]


def pins() -> dict[str, str]:
    """The versions of requirements.txt by the names of the packages."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.partition(" ;")[0].split("==") for line in lines if not line.startswith("#"))


def test_ranges_and_pins_name_the_same_packages() -> None:
    ranges = dict(
        line.partition(",")[0].split(">=")
        for line in SETTINGS["project"]["dependencies"]
        + SETTINGS["project"]["optional-dependencies"]["export"]
    )
    assert pins().keys() - {"triton"} == ranges.keys()  # torch's build for CUDA brings triton
    for name, lowest in ranges.items():
        pinned = [int(part) for part in pins()[name].split(".")]
        assert [int(part) for part in lowest.split(".")] <= pinned, name


def test_the_lock_has_the_pinned_versions_and_a_hash_for_every_package() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w-]+==[^ ]+)(.*(?:\n    .*)*)", lock, re.MULTILINE)
    assert all("--hash=sha256:" in hashes for _, hashes in entries)
    assert "://" not in lock
    assert {f"{name}=={version}" for name, version in pins().items()} <= {name for name, _ in entries}
