"""All commands as one: `mlsm train ...` where the package is installed, `python -m mlsm train ...` in the
repository.
"""

import importlib
import importlib.util
import sys

from mlsm.command_line import COMMAND, did_you_mean

COMMANDS = {
    "train": "train a teacher, a concept student or a token head",
    "fit-dictionary": "learn the dictionary of concepts from a teacher's hidden states",
    "evaluate": "measure finished runs side by side",
    "concepts": "show what the concepts of a run stand for",
    "report": "write a page about runs",
    "runs": "list runs with their state and their numbers",
    "dictionary": "exchange dictionaries with SAELens and sparsify",
    "export": "write a run as a directory that transformers loads",
}
USAGE = "\n".join(
    [
        "usage: mlsm COMMAND ...",
        "",
        *(f"  {name:<16}{summary}" for name, summary in COMMANDS.items()),
        "",
        "mlsm COMMAND --help explains the flags of a command.",
    ]
)


def main() -> None:
    """Run the command that the first word of the command line names."""
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print(USAGE)
        return
    if command not in COMMANDS:
        like = did_you_mean(command, COMMANDS) or f"; take one of {', '.join(COMMANDS)}"
        print(f"error: {command!r} is not a command{like}", file=sys.stderr)
        sys.exit(2)
    name = "list_runs" if command == "runs" else command.replace("-", "_")
    is_inside = importlib.util.find_spec(f"mlsm.{name}") is not None  # the scripts only when installed
    sys.argv = [COMMAND + command, *words]
    module = importlib.import_module(f"mlsm.{name}" if is_inside else name)  # which may answer --help
    from mlsm import cli  # here, because it imports PyTorch, which takes seconds

    cli.run(module.main)


if __name__ == "__main__":
    main()
