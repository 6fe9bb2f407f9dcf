"""The command of the study of the paper's claims, which `study_run.py` describes."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python searches the folder of the script that it runs. The project's packages lie one folder higher.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

    import study_run

    from mlsm import cli

    cli.run(study_run.main)
