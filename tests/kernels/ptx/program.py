"""Reads the text of a PTX kernel into instructions (PTX ISA 8.7)."""

import re
from functools import lru_cache
from typing import NamedTuple


class Fault(Exception):
    """What a kernel must not do: an access out of bounds, a race, an unknown instruction."""


class Address(NamedTuple):
    base: str
    """A register, the name of a parameter or of shared memory."""
    offset: int
    """The number of bytes that is added to the base."""


Operand = str | Address | tuple[str, ...]
"""A register, number, label or name; a place in memory; a vector of registers or numbers."""


class Guard(NamedTuple):
    register: str
    runs_if: bool
    """The instruction runs in the threads whose predicate has this value."""


class Instruction(NamedTuple):
    line: int
    """The number of the line in the text of the kernel, counted from 1."""
    text: str
    guard: Guard | None
    opcode: str
    operands: tuple[Operand, ...]


class Program(NamedTuple):
    name: str
    parameters: dict[str, str]
    """The type of each parameter, such as "u64", by its name and in their order."""
    num_threads: int
    """The number of threads of a block."""
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    """The position in `instructions` that a label stands before."""
    widths: dict[str, int]
    """Bytes of each register; 1 for a predicate."""


DIRECTIVES = (".loc", ".reg", ".pragma")

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\n\{\n(.*?)\n\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param \.(\w+)[^,]*?(\w+)\s*(?:,|$)")
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_LABEL = re.compile(r"\s*(\$\w+):")
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+(%\w+)<(\d+)>;")
_WIDTHS = {"pred": 1, "b16": 2, "b32": 4, "b64": 8, "f32": 4, "f64": 8}
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]")


@lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The first kernel of a PTX module. Raises Fault for text that is no kernel."""
    entry = _ENTRY.search(text)
    threads = entry and re.search(r"\.reqntid (\d+)", entry[3])
    if entry is None or threads is None:
        raise Fault("the text holds no kernel with .entry and .reqntid")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    first_line = text.count("\n", 0, entry.start(4)) + 1
    for number, line in enumerate(entry[4].split("\n"), first_line):
        line = line.partition("//")[0]
        while label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
            line = line[label.end() :]
        statements = filter(None, map(str.strip, line.split(";")))
        instructions += [_instruction(number, x) for x in statements if not x.startswith(DIRECTIVES)]
    parameters = {name: kind for kind, name in _PARAMETER.findall(entry[2])}
    widths = {
        f"{prefix}{number}": _WIDTHS[kind]
        for kind, prefix, count in _REGISTERS.findall(entry[4])
        for number in range(int(count))
    }
    return Program(entry[1], parameters, int(threads[1]), tuple(instructions), labels, widths)


def _instruction(line: int, statement: str) -> Instruction:
    parts = _STATEMENT.fullmatch(statement)
    if parts is None:
        raise Fault(f"line {line}: not an instruction: {statement}")
    negated, register, opcode, rest = parts.groups()
    guard = Guard(register, not negated) if register else None
    return Instruction(line, statement, guard, opcode, tuple(map(_operand, _OPERAND.findall(rest))))


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(part.strip() for part in text.strip("{}").split(","))
    if place := _ADDRESS.fullmatch(text):
        return Address(place[1], int(place[2] or 0))
    return text
