"""What a thread block has begun and not waited for: asynchronous copies and matrix products."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from ptx.memory import Bytes, Integers


class Copy(NamedTuple):
    """An asynchronous copy from global to shared memory, in which each of n threads copies S bytes."""

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
        """The accumulators by the names of their registers, which may not be read before the products end."""
        self.num_groups = 0
        """The number of groups of products that were committed."""
        self.places: dict[int, list[Integers]] = {}
        """For each group's number, the places in shared memory of the 16-byte pieces that it reads."""
