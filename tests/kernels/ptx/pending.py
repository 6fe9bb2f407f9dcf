"""What a thread block has begun and not waited for: asynchronous copies and matrix products."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from ptx.memory import Bytes, Integers


class Copy(NamedTuple):
    """From global to shared memory, by n threads of S bytes each."""

    place_n: Integers
    data_nS: Bytes
    warp_n: Integers


class Copies:
    def __init__(self) -> None:
        self.open: list[Copy] = []
        self.groups: list[list[Copy]] = []


class Sum(NamedTuple):
    """An accumulator of matrix products."""

    value_T: NDArray[Any]
    group: int
    """The number of the group of products that wrote it last."""


class Products:
    def __init__(self) -> None:
        self.sums: dict[str, Sum] = {}
        """By register, which nobody may read meanwhile."""
        self.num_groups = 0
        """That were committed."""
        self.places: dict[int, list[Integers]] = {}
        """Of shared memory, that each group reads, in pieces of 16 bytes."""
