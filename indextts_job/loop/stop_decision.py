"""Whether the step in flight is finished or discarded, once a stop is requested. The same answer on every rank."""

from collections.abc import Callable
from dataclasses import replace

from indextts_job.preemption.deadline import Pace, Stop, finishes_in_time
from indextts_job.training.distributed import ProcessGroup


class StopDecision:
    """Answers the step between micro-batches; decides once, when the stop request is first seen."""

    def __init__(
        self, stop: Stop, group: ProcessGroup, clock: Callable[[], float], pace: Pace, micro_batches: int
    ) -> None:
        self._stop = stop
        self._group = group
        self._clock = clock
        self._pace = pace
        self._micro_batches = micro_batches
        self._began_s = clock()
        self.decision = ""
        self.micro_batches_done = 0

    def __call__(self, micro_batches_left: int) -> bool:
        """Whether to give the step up.

        Args:
            micro_batches_left: How many the step still needs.
        """
        request = self._stop()
        if request is None:
            return False
        in_time = finishes_in_time(request, self._clock(), micro_batches_left, self._pace_now(micro_batches_left))
        finish = not self._group.any_rank(not in_time)
        if not self.decision:
            self.micro_batches_done = self._micro_batches - micro_batches_left
        self.decision = "finish" if finish else "discard"
        return not finish

    def _pace_now(self, micro_batches_left: int) -> Pace:
        """The slower of what was known before and of what this very step has shown: the first step has no other."""
        done = self._micro_batches - micro_batches_left
        if not done:
            return self._pace
        measured_s = (self._clock() - self._began_s) / done
        return replace(self._pace, micro_batch_s=max(self._pace.micro_batch_s, measured_s))
