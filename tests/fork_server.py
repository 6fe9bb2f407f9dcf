"""Commands in forked children of one process that has imported everything. A child starts at once, where a
new Python takes seconds, and a deadline ends one that hangs.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("train", "fit_dictionary", "evaluate", "mlsm.concepts", "mlsm.report", "mlsm.export")
# What the commands import when they need it, which would take most of the time of a child.
LATE_IMPORTS = ("torch._dynamo", "torch.utils.tensorboard", "tokenizers", "matplotlib.figure")
LATE_IMPORTS += ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")


class ForkServer:
    """Starts commands in children, one at a time."""

    def __init__(self, folder: Path) -> None:
        """Children write what they print to said.txt in `folder`."""
        self._said = folder / "said.txt"
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, command: str, *flags: str, cwd: Path | None = None, deadline_s: int = 0) -> int:
        """Start a command (a name of MODULES); returns the number of its process. SIGALRM ends it after the
        deadline, if there is one.
        """
        assert self._server.stdin
        line = [command, [*flags], str(cwd or Path.cwd()), deadline_s, str(self._said)]
        self._server.stdin.write(json.dumps(line) + "\n")
        self._server.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """Wait for the command; returns its exit code, negative for the signal that ended it."""
        return self._read()

    def run(self, command: str, *flags: str, cwd: Path, deadline_s: int) -> tuple[int, str]:
        """Run a command; returns its exit code and what it printed."""
        self.start(command, *flags, cwd=cwd, deadline_s=deadline_s)
        return self.wait(), self._said.read_text(errors="replace")

    def _read(self) -> int:
        assert self._server.stdout
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()


def serve() -> None:
    """Run the command of each line of standard input; print the number of its process and its exit code."""
    import torch

    torch.set_num_threads(1)
    for name in (*MODULES, *LATE_IMPORTS):
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_child(*json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run_child(name: str, flags: list[str], folder: str, deadline_s: int, said: str) -> None:
    """Run a command as cli.run does, and end this process with its exit code."""
    import traceback

    from mlsm import cli

    code = 1
    try:
        os.chdir(folder)
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = [name, *flags]
        signal.alarm(deadline_s)
        cli.run(sys.modules[name].main)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
