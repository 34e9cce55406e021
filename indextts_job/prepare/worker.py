"""A worker: takes units that nobody works on until none is left. Killed at any instant, it loses its present unit."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from indextts_job.errors import AccessRefusedError, DataError, StoppedError
from indextts_job.preemption.deadline import Stop
from indextts_job.prepare.claims import Claims
from indextts_job.prepare.compute import Encode, Settings, make
from indextts_job.prepare.unit_store import UnitStore
from indextts_job.prepare.units import Unit
from indextts_job.waiting import pause

FEWEST_UNITS_OF_WORKER = 40
"""With fewer units for each worker, many of them wait at the end: 15 % of the time at 8 workers and 350 units."""
LOOK_S = 2.0
"""How often a worker without work looks whether a unit has become free."""
Tell = Callable[[int, int], object]
"""Called with (units finished, units in all)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker of a preparation."""

    store: UnitStore
    claims: Claims
    encoders: Encode
    settings: Settings
    stop: Stop
    tell: Tell

    def run(self, units: Sequence[Unit]) -> None:
        """Make units until all are finished, by whomever.

        Raises:
            StoppedError: A stop is requested.
            UnavailableError: The storage or the audio cannot be reached.
        """
        by_number = {unit.number: unit for unit in units}
        try:
            self._work(units, by_number)
        except (StoppedError, DataError, AccessRefusedError):
            self.claims.release()  # nobody has to wait until it is old
            raise

    def _work(self, units: Sequence[Unit], by_number: Mapping[int, Unit]) -> None:
        told = False
        while unfinished := self.store.unfinished(units):
            self.check()
            self.tell(len(units) - len(unfinished), len(units))
            number = self.claims.take(unfinished)
            if number is None:
                # All are claimed by others. One of them may die, and then its unit is this worker's.
                if not told:
                    logger.warning("waiting for %s.", self.claims.holders(unfinished))
                    told = True
                pause(LOOK_S, self.stop)
                continue
            self._finish(by_number[number])
        self.tell(len(units), len(units))

    def check(self) -> None:
        """Renew the claim, and raise where a stop is requested.

        Raises:
            StoppedError: A stop is requested. The unit in work is made again; all others are committed.
        """
        request = self.stop()
        if request:
            raise StoppedError(
                f"{request.reason}: finished units are committed; the same command goes on with the rest."
            )
        self.claims.renew()

    def _finish(self, unit: Unit) -> None:
        made = make(unit, self.encoders, self.settings, self.check)
        there = self.store.objects()
        for name, content in made.objects.items():
            self.store.write_object(name, content, there)
        self.store.commit(unit, made.record)
        self.claims.took(made.record.seconds)
        self.claims.release()
