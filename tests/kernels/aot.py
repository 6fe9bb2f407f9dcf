"""Compile every Triton kernel for GPUs that this machine does not have, and count what it takes there.

    python tests/kernels/aot.py [--targets sm80,gfx942] [--more] [tests/kernels/aot_lasso.py ...]
    python tests/kernels/aot.py --targets all --write results/gpu-counts.md
    python tests/kernels/aot.py --compare results/gpu-counts.md

A specification file (aot_*.py) defines SPECS: for each kernel one launch as the program makes it. Launches
that take too long for every test stand in MORE. The interpreter accepts much that the compiler refuses, so
every kernel has a specification. The exit status is 1 if a kernel does not compile, spills registers, does
not fit on a multiprocessor, or is more than 5 % worse than the table that it is compared with.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

# One process interprets or compiles; decided by the first import of triton.
os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the specifications import the kernels

import counts_table
from assembly import Counts, count
from compiling import TARGETS, Spec, compile_kernel

HERE = Path(__file__).resolve().parent
USUAL = ("sm80", "sm86", "sm90", "gfx942")


def load_specs(path: Path, with_more: bool) -> list[Spec]:
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.SPECS + (getattr(module, "MORE", []) if with_more else [])


def problems(counts: Counts) -> list[str]:
    """What no kernel may do on any target."""
    does_not_fit = "does not fit on a multiprocessor"
    return ["spills registers"] * bool(counts.spilled) + [does_not_fit] * (not counts.programs)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile Triton kernels for GPUs that are not here.")
    parser.add_argument("specifications", type=Path, nargs="*", help="files that define SPECS (default: all)")
    parser.add_argument(
        "--targets", default=",".join(USUAL), help="comma-separated, or all (default: %(default)s)"
    )
    parser.add_argument("--more", action="store_true", help="also the launches in MORE")
    parser.add_argument("--write", type=Path, help="write the table of counts to this file")
    parser.add_argument("--compare", type=Path, help="fail if a kernel is worse than in this table")
    arguments = parser.parse_args()
    targets = list(TARGETS) if arguments.targets == "all" else arguments.targets.split(",")
    before = counts_table.read(arguments.compare.read_text()) if arguments.compare else None
    results: dict[tuple[str, str], Counts] = {}
    num_problems = 0
    print(counts_table.HEADER)
    for path in arguments.specifications or sorted(HERE.glob("aot_*.py")):
        for spec in load_specs(path, arguments.more):
            for target in (name for name in targets if name in spec.targets):
                key = (spec.name, target)
                try:
                    kernel = compile_kernel(spec.kernel, spec.arguments, spec.options, target)
                    results[key] = count(kernel, target)
                except Exception as error:  # whatever the compiler raises is a problem of the kernel
                    last_line = (str(error).strip().splitlines() or [""])[-1]
                    messages = [f"{type(error).__name__}: {last_line}"]
                else:
                    print(counts_table.row(key, results[key]))
                    messages = problems(results[key])
                    if before is not None:
                        messages += counts_table.worse(before.get(key), results[key])
                for problem in messages:
                    print(f"    {spec.name}, {target}: {problem}")
                num_problems += len(messages)
    if arguments.write:
        arguments.write.write_text(counts_table.page(results))
    print(f"{num_problems} problems")
    return int(num_problems > 0)


if __name__ == "__main__":
    sys.exit(main())
