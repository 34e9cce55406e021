"""Bounds that stand beside the field they limit: `threads: Annotated[int, Bounds(0, 1024)] = 0`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """The values that a number of the configuration may have.

    Upper bounds are far above what is useful: they refuse what could only be a slip, or would overflow further down.
    """

    least: float
    most: float
    below: bool = False
    """Whether `most` itself is excluded."""

    def __contains__(self, value: float) -> bool:
        """Whether a number lies within; NaN never does."""
        return self.least <= value and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        """For messages: `at least 0, at most 1024`."""
        return f"at least {plain(self.least)}, {'below' if self.below else 'at most'} {plain(self.most)}"


def plain(value: float) -> str:
    """A number for a message: whole ones in full."""
    return str(value) if isinstance(value, int) else f"{value:g}"
