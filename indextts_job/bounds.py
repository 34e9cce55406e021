"""Bounds of a number, written at its field: `threads: Annotated[int, Bounds(0, 1024)] = 0`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a number in the configuration.

    Upper bounds are far above useful values: they refuse typing errors, and numbers that would overflow later.
    """

    least: float
    most: float
    below: bool = False
    """Whether `most` itself is excluded."""

    def __contains__(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        return self.least <= value and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        """The range in words, for messages: `at least 0, at most 1024`."""
        return f"at least {plain(self.least)}, {'below' if self.below else 'at most'} {plain(self.most)}"


def plain(value: float) -> str:
    """A number for a message; integers are written with all digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"
