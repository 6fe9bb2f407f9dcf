"""The command that compares dictionaries with sparse autoencoders, which `dictionary_study.py` describes."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python searches the folder of the script that it runs. The project's packages lie one folder higher.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

    import dictionary_study

    from mlsm import cli

    cli.run(dictionary_study.main)
