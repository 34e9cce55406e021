"""Where the rows of a base are in an extension of its ranks file, and back. Pure.

New ranks take the ids behind the base's ranks, in front of its special tokens. So the rows of a text table are: the
base's ranks, the new rows, the base's special tokens, the spare row.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowMap:
    """The ids of a base and of its extension."""

    ranks: int
    """Number of ranks of the base."""
    added: int
    """Number of ranks that the extension adds."""

    def in_extension(self, row: int) -> int:
        """The id in the extension of an id of the base."""
        return row if row < self.ranks else row + self.added

    def in_base(self, row: int) -> int | None:
        """The id in the base of an id of the extension; None for a new one."""
        if row < self.ranks:
            return row
        return None if row < self.ranks + self.added else row - self.added
