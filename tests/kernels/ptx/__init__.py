"""Executes the PTX that Triton compiles for NVIDIA GPUs, on a CPU.

Triton's interpreter runs a kernel's Python; what a GPU runs is the compiler's output, with shared memory,
barriers, tensor cores and shuffles that the Python does not show. This package executes that output, one
thread block at a time, all threads of the block as NumPy vectors, driven by the project's own host code.

    program.py     the text of a PTX kernel as a list of instructions
    arithmetic.py  what NumPy has no function for
    values.py      instructions that compute values from registers
    memory.py      global and shared memory, with checks of bounds, alignment and races
    transfers.py   instructions that move data between registers and memory
    warps.py       instructions that the threads of a warp execute together
    wgmma.py       asynchronous matrix products of sm_90
    pending.py     what a block has begun and not waited for
    block.py       one thread block: registers, branches, barriers
    compiler.py    a process that compiles kernels, while the tests' own process interprets them
    launch.py      runs every kernel[grid](...) of the host code in the emulator
    cases.py       the project's operations, run through their host code

Not covered: the tensor-core instructions of sm_100, AMD's GPUs, ptxas, and time.
"""
