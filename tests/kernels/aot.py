"""Compile Triton kernels ahead of time for GPUs that this machine does not have, and refuse spills and too
much memory.

    python tests/kernels/aot.py tests/kernels/aot_lasso.py [--targets sm80,gfx942] [--more]

A specification file defines SPECS: for each kernel one launch as the program makes it. Launches that take
too long for every test stand in MORE. The interpreter accepts much that the compiler refuses, so every
kernel has a specification. No driver and no GPU are needed: the compilers come in the triton wheel. The
exit status is 1 if a kernel does not compile, spills registers or needs more shared memory than the target
has."""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# The first import of triton decides whether a process interprets or compiles.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = {  # with the shared memory a block may have, in bytes; the compiler does not check it
    "sm80": (GPUTarget("cuda", 80, 32), 166_912),
    "sm86": (GPUTarget("cuda", 86, 32), 101_376),
    "sm90": (GPUTarget("cuda", 90, 32), 232_448),
    "sm100": (GPUTarget("cuda", 100, 32), 232_448),
    "sm120": (GPUTarget("cuda", 120, 32), 101_376),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65_536),
}
USUAL = ("sm80", "sm86", "sm90", "gfx942")


class Spec(NamedTuple):
    kernel: Any
    """A function with @triton.jit."""
    arguments: dict[str, Any]
    """By name, as at the launch; a torch dtype stands for a tensor."""
    options: dict[str, int]
    """num_warps, num_stages."""
    name: str
    """Its name in the table: the kernel and what is special about this launch."""
    targets: tuple[str, ...] = tuple(TARGETS)


class Compiled(NamedTuple):
    registers: str
    spilled: int
    """Bytes of spill traffic (NVIDIA) or spilled vector registers (AMD)."""
    shared: int
    """Bytes of shared memory a block."""


class FakeDriver:
    """The driver that a warm-up launch asks for its target. It launches nothing."""

    def __init__(self, target: GPUTarget, device: int):
        self.target, self.device = target, device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device  # another for each target, because Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(spec: Spec, target_name: str) -> Compiled:
    target, _ = TARGETS[target_name]
    triton.runtime.driver.set_active(FakeDriver(target, list(TARGETS).index(target_name)))
    arguments = {
        name: MockTensor(value) if isinstance(value, torch.dtype) else value
        for name, value in spec.arguments.items()
    }
    kernel = spec.kernel.warmup(grid=(1,), **arguments, **spec.options)
    measure = _measure_nvidia if target.backend == "cuda" else _measure_amd
    return measure(kernel, target)


def _measure_nvidia(kernel: Any, target: GPUTarget) -> Compiled:
    with tempfile.TemporaryDirectory() as directory:
        ptx, cubin = Path(directory, "kernel.ptx"), Path(directory, "kernel.cubin")
        ptx.write_text(kernel.asm["ptx"])
        name = f"sm_{target.arch}{'a' if target.arch >= 90 else ''}"
        ptxas = knobs.nvidia.ptxas_blackwell if target.arch >= 100 else knobs.nvidia.ptxas
        command = [ptxas.path, "-v", f"--gpu-name={name}", str(ptx), "-o", str(cubin)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas reports no registers: {report[-300:]}")
    return Compiled(registers[1], int(spills[1]) + int(spills[2]), kernel.metadata.shared)


def _measure_amd(kernel: Any, target: GPUTarget) -> Compiled:
    def count(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", kernel.asm["amdgcn"])
        if match is None:
            raise RuntimeError(f"the {target.arch} assembly has no {name}")
        return int(match[1])

    registers = f"{count('vgpr_count')}v {count('sgpr_count')}s"
    return Compiled(registers, count("vgpr_spill_count"), kernel.metadata.shared)


def load_specs(path: Path, with_more: bool) -> list[Spec]:
    sys.path[:0] = [str(REPOSITORY), str(path.parent)]
    sys.modules["aot"] = sys.modules["__main__"]  # specifications import Spec from here
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.SPECS + (getattr(module, "MORE", []) if with_more else [])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile Triton kernels for GPUs that are not here.")
    parser.add_argument("specifications", type=Path, nargs="+", help="Python files that define SPECS")
    parser.add_argument("--targets", default=",".join(USUAL), help="comma-separated (default: %(default)s)")
    parser.add_argument("--more", action="store_true", help="also the launches in MORE")
    arguments = parser.parse_args()
    num_problems = 0
    print(f"{'kernel':40} {'target':7} {'registers':>11} {'spilled':>8} {'shared':>8}")
    for spec in [spec for path in arguments.specifications for spec in load_specs(path, arguments.more)]:
        for target_name in arguments.targets.split(","):
            if target_name not in spec.targets:
                continue
            try:
                result = compile_for(spec, target_name)
            except Exception as error:  # whatever the compiler raises is a problem of the kernel
                last_line = (str(error).strip().splitlines() or [""])[-1]
                print(f"{spec.name:40} {target_name:7} {type(error).__name__}: {last_line}")
                num_problems += 1
                continue
            limit = TARGETS[target_name][1]
            notes = ["SPILLS"] * bool(result.spilled) + [f"MORE THAN {limit}"] * (result.shared > limit)
            num_problems += len(notes)
            figures = f"{result.registers:>11} {result.spilled:>8} {result.shared:>8}"
            print(f"{spec.name:40} {target_name:7} {figures}", *notes)
    print(f"{num_problems} problems")
    return int(num_problems > 0)


if __name__ == "__main__":
    sys.exit(main())
