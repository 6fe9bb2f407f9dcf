"""What the tests of all experiments share: a preset of a few thousand weights, and steps in this process."""

import dataclasses
from pathlib import Path

from several_commands import MAINS
from steps import Execute, Executor, Step, step_file

from mlsm.config import Preset, tiny
from mlsm.files import write_json


def nano() -> Preset:
    """Three narrow layers."""
    preset = tiny()
    shape = dataclasses.replace(preset.model, width=16, depth=3, num_heads=2, ffn_width=32, vocab_size=80)
    phases = {
        name: dataclasses.replace(getattr(preset, name), batch_size=4, token_budget=96, log_every=2)
        for name in ("teacher", "student", "token_head")
    }
    dictionary = dataclasses.replace(preset.dictionary, k=24, num_tokens=900, num_updates=2, batch_size=90)
    return dataclasses.replace(preset, model=shape, dictionary=dictionary, **phases)


def here(done: list[str]) -> Executor:
    """Runs steps in this process, each once, and notes them."""

    def executor(folder: Path, num_threads: int) -> Execute:
        def execute(step: Step) -> None:
            file = step_file(folder, step.name)
            if str(file) not in done:
                script, *flags = step.command
                MAINS[script.removesuffix(".py")](flags)
                write_json(file, {"command": step.command, "seconds": 1.0})
                done.append(str(file))

        return execute

    return executor
