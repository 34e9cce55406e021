"""Notices of the cloud, polled beside the training: they come earlier than the signal, if there is a signal at all."""

import logging
from collections.abc import Callable, Sequence

from indextts_job.preemption.clouds import Cloud
from indextts_job.preemption.signals import StopSignals
from indextts_job.waiting import pause as wait

logger = logging.getLogger(__name__)
ACT_WITHIN_S = 120.0
"""Ends that are announced earlier than this are waited for: until then the machine is as good as any."""


def watch(clouds: Sequence[Cloud], stop: StopSignals, pause: Callable[[float], object] = wait) -> None:
    """Find out on which cloud this is, and ask it until it takes the machine away; return at once on none.

    Args:
        clouds: Those that are known.
        stop: Told about a notice as about a signal, and about a higher risk.
        pause: Waits between two questions.
    """
    cloud = next((candidate for candidate in clouds if _present(candidate)), None)
    complained = False
    while cloud:
        try:
            notice = cloud.ask()
        # Whatever a metadata service answers, the next question may get the notice that saves the run.
        except Exception as error:  # noqa: BLE001
            if not complained:
                logger.warning("the cloud's notices cannot be read, trying on: %s: %s", type(error).__name__, error)
            complained, notice = True, None
        if notice and notice.seconds_left is None:
            stop.risk = notice.reason
        elif notice and notice.seconds_left is not None and notice.seconds_left <= ACT_WITHIN_S:
            stop.notice(notice.reason, notice.seconds_left)
            return
        pause(cloud.interval_s)


def _present(cloud: Cloud) -> bool:
    try:
        return cloud.present()
    except Exception as error:  # noqa: BLE001  # see above; another cloud may still be the right one
        logger.warning("a metadata service answers in an unexpected way: %s: %s", type(error).__name__, error)
        return False
