"""Durations of the parts of a step, without waiting for the device."""

import time
from typing import Protocol

import torch


class StepClock(Protocol):
    """Called at the edges of the parts of a step."""

    def begun(self) -> None:
        """The first micro-batch comes next."""

    def accumulated(self) -> None:
        """The last backward pass was called."""

    def computed_s(self) -> float:
        """Duration of all micro-batches. Called when the device has ended them."""

    def updated(self) -> None:
        """The update was called."""

    def update_s(self) -> float:
        """Duration of an update, with the exchange and the norm of the gradients.

        On a GPU it is that of the step before: the one of this step still runs.
        """


class HostClock:
    """For a CPU, where calls return when their work is done."""

    def __init__(self) -> None:
        self._begun_s = self._accumulated_s = self._updated_s = 0.0

    def begun(self) -> None:
        """See `StepClock`."""
        self._begun_s = time.monotonic()

    def accumulated(self) -> None:
        """See `StepClock`."""
        self._accumulated_s = time.monotonic()

    def computed_s(self) -> float:
        """See `StepClock`."""
        return self._accumulated_s - self._begun_s

    def updated(self) -> None:
        """See `StepClock`."""
        self._updated_s = time.monotonic()

    def update_s(self) -> float:
        """See `StepClock`."""
        return self._updated_s - self._accumulated_s


class CudaClock:
    """For a GPU: events in its stream. Reading the clock of the host would need a wait at every edge."""

    def __init__(self) -> None:
        self._begun = self._accumulated = _recorded()
        self._update: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        """Begin and end of an update that may still run."""
        self._update_s = 0.0

    def begun(self) -> None:
        """See `StepClock`."""
        self._begun = _recorded()

    def accumulated(self) -> None:
        """See `StepClock`."""
        self._accumulated = _recorded()

    def computed_s(self) -> float:
        """See `StepClock`."""
        return float(self._begun.elapsed_time(self._accumulated)) / 1000

    def updated(self) -> None:
        """See `StepClock`."""
        # The step has waited for its gradients, so the update of the step before has ended.
        if self._update:
            began, ended = self._update
            self._update_s = began.elapsed_time(ended) / 1000
        self._update = self._accumulated, _recorded()

    def update_s(self) -> float:
        """See `StepClock`."""
        return self._update_s


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def clock_of(device: torch.device) -> StepClock:
    """The clock that fits a device."""
    return CudaClock() if device.type == "cuda" else HostClock()
