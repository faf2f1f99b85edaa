"""Containers in which an evaluation of 100,000 questions keeps what it must remember of each, in little memory.

`stages` keeps the places of finished results in `Places`, `table` the numbers of a question in `Measured`: together
they take a fifth of the memory of dicts of Python objects.
"""

from array import array
from collections.abc import Iterator, Mapping

_FIRST_SLOTS = 1024
_LARGEST = (1 << 64) - 1
_names: dict[tuple[str, ...], tuple[str, ...]] = {}


class Places:
    """Where the value of each key is in a file: offset and length in bytes.

    A hash table with open addressing over the 64-bit hashes of the keys, without the keys. The caller must read the key
    at that place again: if two keys have the same hash, the place is that of the one noted last.
    """

    def __init__(self) -> None:
        self._count = 0
        self._make(_FIRST_SLOTS)

    def _make(self, slots: int) -> None:
        self._keys, self._at, self._lengths = (array("Q", bytes(8 * slots)) for _ in range(3))

    def _slot(self, key: int) -> int:
        """Where `key` is, or the free slot where it belongs."""
        keys, last = self._keys, len(self._keys) - 1
        slot = key & last
        while keys[slot] not in (0, key):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        known = [entry for entry in zip(self._keys, self._at, self._lengths, strict=True) if entry[0]]
        self._make(2 * len(self._keys))
        for key, at, length in known:
            slot = self._slot(key)
            self._keys[slot], self._at[slot], self._lengths[slot] = key, at, length

    def put(self, key: str, at: int, length: int) -> None:
        """Note the place of `key`."""
        if 3 * self._count >= 2 * len(self._keys):
            self._grow()
        number = _number(key)
        slot = self._slot(number)
        self._count += not self._keys[slot]
        self._keys[slot], self._at[slot], self._lengths[slot] = number, at, length

    def get(self, key: str) -> tuple[int, int] | None:
        """Offset and length of the value of `key`; None for a key that was not noted."""
        slot = self._slot(_number(key))
        return (self._at[slot], self._lengths[slot]) if self._keys[slot] else None

    def __len__(self) -> int:
        return self._count


def _number(key: str) -> int:
    return hash(key) & _LARGEST or 1  # 0 marks a free slot


class Measured(Mapping[str, float]):
    """Numbers by name, as an unchangeable mapping. Mappings with the same names share them."""

    __slots__ = ("_names", "_numbers")

    def __init__(self, values: Mapping[str, float]) -> None:
        names = tuple(values)
        self._names = _names.setdefault(names, names)
        self._numbers = array("d", values.values())

    def __getitem__(self, name: str) -> float:
        try:
            return self._numbers[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
