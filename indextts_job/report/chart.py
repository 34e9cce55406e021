"""A line chart over optimizer steps, as SVG text. Pure."""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
WIDTH, HEIGHT = 640.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 8.0, 16.0, 26.0
MOST_POINTS = 500
"""Points drawn of one curve. A longer one is averaged: a picture has fewer columns, and the page stays small."""
COLOURS = 6
"""Colours of curves; the seventh curve has that of the first."""
TICKS = 5
"""Intervals of the grid, at most."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a chart."""

    name: str
    points: Sequence[Point]
    marks: bool = False
    """Whether each point is drawn as a dot too; for few points, such as validations."""


@dataclass(frozen=True, slots=True)
class StepAxis:
    """The horizontal axis, the same for all charts of a run."""

    last: int
    """Step at its right end."""
    starts: Sequence[tuple[int, int]]
    """First step and number of each attempt; attempts are bands in the background."""

    def x(self, step: float) -> float:
        """Horizontal position of a step."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last


@dataclass(frozen=True, slots=True)
class _ValueAxis:
    """The vertical axis."""

    low: float
    high: float
    ticks: Sequence[float]

    @classmethod
    def over(cls, values: Sequence[float]) -> "_ValueAxis":
        low, high = min(values), max(values)
        if low == high:  # a constant curve is a line in the middle; the axis needs a range to divide by
            low, high = low - abs(low) / 10 - 1e-9, high + abs(high) / 10 + 1e-9
        ticks = _ticks(low, high)
        return cls(min(low, ticks[0]), max(high, ticks[-1]), ticks)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)


def chart(title: str, curves: Sequence[Curve], steps: StepAxis) -> str:
    """A figure with its legend; empty when no curve has a point.

    Args:
        title: Caption, also read by screen readers.
        curves: Drawn in the order given; each has a colour of its own.
        steps: The horizontal axis.
    """
    # One axis for all curves: training and validation losses are compared by eye.
    values = [value for curve in curves for _, value in curve.points]
    if not values:
        return ""
    axis = _ValueAxis.over(values)
    parts = [*_bands(steps), *_grid(axis), *_step_labels(steps)]
    for number, curve in enumerate(curves):
        parts += _drawn(number, curve, steps, axis)
    legend = " ".join(_key(number, curve) for number, curve in enumerate(curves) if curve.points)
    picture = f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{html.escape(title)}">'
    return f"<figure><figcaption>{html.escape(title)} {legend}</figcaption>{picture}{''.join(parts)}</svg></figure>"


def _key(number: int, curve: Curve) -> str:
    return f'<span class="key c{number % COLOURS}">{html.escape(curve.name)} <b>{curve.points[-1][1]:.4g}</b></span>'


def _bands(steps: StepAxis) -> Iterator[str]:
    for index, (start, attempt) in enumerate(steps.starts):
        # Steps after the earliest start of a later attempt were done again, so the band ends there.
        end = min([steps.last, *(other for other, _ in steps.starts[index + 1 :])])
        if end > start:
            width = steps.x(end) - steps.x(start)
            yield (
                f'<rect class="band b{index % 2}" x="{steps.x(start):.1f}" y="{TOP}" width="{width:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"><title>attempt {attempt}, from step {start}</title></rect>'
            )


def _grid(axis: _ValueAxis) -> Iterator[str]:
    for tick in axis.ticks:
        y = axis.y(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'


def _step_labels(steps: StepAxis) -> Iterator[str]:
    for tick in _ticks(0, steps.last):
        if tick <= steps.last:
            anchor = "end" if tick > 0.95 * steps.last else "middle"  # a centred number would be cut off
            yield f'<text x="{steps.x(tick):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{tick:.0f}</text>'


def _drawn(number: int, curve: Curve, steps: StepAxis, axis: _ValueAxis) -> Iterator[str]:
    points = _thinned(curve.points)
    path = " ".join(f"{steps.x(step):.1f},{axis.y(value):.1f}" for step, value in points)
    yield f'<polyline class="curve c{number % COLOURS}" points="{path}"/>'
    if curve.marks:
        for step, value in points:
            yield (
                f'<circle class="c{number % COLOURS}" cx="{steps.x(step):.1f}" cy="{axis.y(value):.1f}" r="3">'
                f"<title>step {step:.0f}: {value:.4g}</title></circle>"
            )


def _thinned(points: Sequence[Point]) -> list[Point]:
    # Rounded up; 1 for a curve without points, which cannot be cut into groups of 0.
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    # At the last step of a group, so that the curve ends where the run does.
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    # Steps of 1, 2 or 5 times a power of ten read well.
    step = next(factor * step for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= TICKS)
    first, after = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, after + 1)]
