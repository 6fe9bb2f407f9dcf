"""Exchange dictionaries with SAELens and sparsify.

    python -m mlsm.dictionary export runs/teacher/dictionary-l12-k1500-lam0.05.safetensors exported
    python -m mlsm.dictionary import downloaded runs/teacher/dictionary-sae.safetensors --teacher runs/teacher

Formats of an export: saelens, which SAELens reads as matching pursuit; saelens-exact, which has our codes
in SAELens after `import mlsm.saelens`; and sparsify, whose directory is that of one hookpoint. An imported
SAE keeps its encoder, and its decoder becomes the atoms. Neither package is needed to export or to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm import command_line
from mlsm.command_line import Parser, parse_flags, show_help
from mlsm.config import DICTIONARY_FORMATS
from mlsm.settings import argument, check_fields, from_flags, option

ACTIONS = ("export", "import")


@dataclass(frozen=True)
class Settings:
    """What is exchanged, and in which form."""

    action: str = argument("export or import", "ACTION")
    source: Path = argument("export: the file of a dictionary; import: the directory of an SAE", "SOURCE")
    destination: Path = argument("export: a new directory; import: a new file", "DESTINATION")
    format: str = option("saelens", "export: layout of the directory", DICTIONARY_FORMATS)
    residual: float | None = option(
        None,
        "export to saelens: norm that matching pursuit leaves of a state of norm 1 (default: the one that "
        "the codes left when the dictionary was measured)",
    )
    teacher: Path | None = option(
        None,
        "import: run whose hidden states the SAE codes, or an encoder as transformers saves it",
        metavar="DIRECTORY",
    )
    layer: int | None = option(None, "import: layer of the teacher whose states the SAE codes, 0: embeddings")
    lam: float | None = option(
        None, "import: sparsity penalty lambda (default: that of the exported dictionary, else 0.05)"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.action not in ACTIONS:
            raise ValueError(f"the first word is {' or '.join(ACTIONS)}, got {self.action!r}")
        if self.residual is not None and not 0 < self.residual < 1:
            raise ValueError(f"residual must be between 0 and 1, got {self.residual}")


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


show_help(__name__, parser)  # before the imports below, which take seconds

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.sae_export import write_sae
from mlsm.coding.sae_import import read_sae, to_dictionary
from mlsm.files import write_directory
from mlsm.log import say
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.hub_import import with_converted_checkpoints
from mlsm.runs.teacher import check_shape


def export_dictionary(source: Path, directory: Path, layout: str, residual: float | None = None) -> None:
    """Write a dictionary as a directory in one of DICTIONARY_FORMATS. Raises ValueError if there is something
    at the place, and for an SAE that the format cannot hold.
    """
    if directory.exists():
        raise ValueError(f"{directory} is there; name a new directory")
    dictionary = Dictionary.load(source)
    if residual is not None and (layout != "saelens" or dictionary.sae):
        raise ValueError("--residual is for --format saelens of a dictionary that was learnt here")
    write_directory(directory, lambda work: write_sae(dictionary, work, layout, residual))


def import_dictionary(
    directory: Path,
    destination: Path,
    *,
    teacher: Path | None = None,
    layer: int | None = None,
    lam: float | None = None,
) -> Dictionary:
    """Write the SAE in a directory as the file of a dictionary, and return it. Raises ValueError if there is
    something at the place, for a directory that cannot be read, and for an SAE of another teacher or shape.
    """
    if destination.exists():
        raise ValueError(f"{destination} is there; students may depend on it: name another file")
    owner = fingerprint(teacher) if teacher else None
    try:
        dictionary = to_dictionary(read_sae(directory), teacher=owner, layer=layer, lam=lam)
    except ValueError as error:
        raise ValueError(f"{directory} cannot be imported: {error}") from error
    if teacher:
        check_shape(dictionary, directory, teacher)
    dictionary.save(destination)
    return dictionary


def main(argv: list[str]) -> None:
    """Read the command line and export or import."""
    given = with_converted_checkpoints(parse_flags(parser(), argv), "teacher")
    if "teacher" in given:
        given = dict(given) | {"teacher": Path(str(given["teacher"]))}
    args = from_flags(Settings, given)
    if args.action == "export":
        export_dictionary(args.source, args.destination, args.format, args.residual)
        say(f"wrote {args.destination}: {_READERS[args.format]}")
        return
    dictionary = import_dictionary(
        args.source, args.destination, teacher=args.teacher, layer=args.layer, lam=args.lam
    )
    has_encoder = dictionary.sae is not None and dictionary.sae.encoder_DK is not None
    say(
        f"wrote {args.destination}: {dictionary.atoms_DK.shape[1]:,} concepts of layer {dictionary.layer}, "
        f"{'with' if has_encoder else 'without'} an encoder"
    )


_READERS = {
    "saelens": "sae_lens.SAE.load_from_disk loads it",
    "saelens-exact": "sae_lens.SAE.load_from_disk loads it after import mlsm.saelens",
    "sparsify": "sparsify.SparseCoder.load_from_disk loads it",
}

if __name__ == "__main__":
    cli.run(main)
