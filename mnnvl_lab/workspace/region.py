"""A named stretch of one rank's workspace, and the arithmetic of alignment."""

from dataclasses import dataclass

from mnnvl_lab.errors import Refused


def align_up(size_bytes: int, alignment_bytes: int) -> int:
    """The next multiple of `alignment_bytes` at or above `size_bytes`."""
    return -(-size_bytes // alignment_bytes) * alignment_bytes


def require_at_least(minimum: int, **values: int) -> None:
    """Refuse values below `minimum`.

    Raises:
        Refused: names the value.
    """
    for name, value in values.items():
        if value < minimum:
            raise Refused(f"{name} is {value}: it must be at least {minimum}; a workspace has no smaller size")


@dataclass(frozen=True, kw_only=True)
class Region:
    """A stretch of the bytes that one rank owns.

    Attributes:
        name: what it holds.
        offset_bytes: first byte, counted from the start of the rank's own row.
        size_bytes: its length; 0 for a region that is not in use.
        dtype: numpy's name of the element type.
        shape: of the array that fills it.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.size_bytes
