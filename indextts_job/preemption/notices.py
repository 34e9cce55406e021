"""Poll the cloud for notices during training: they come earlier than the signal, if there is a signal at all."""

import logging
from collections.abc import Callable, Sequence

from indextts_job.preemption.clouds import Cloud, SpotNotice
from indextts_job.preemption.signals import StopSignals
from indextts_job.waiting import pause as wait

logger = logging.getLogger(__name__)
ACT_WITHIN_S = 120.0
"""An end that is announced earlier than this is acted on only when it is this near: until then training goes on."""


def watch(clouds: Sequence[Cloud], stop: StopSignals, pause: Callable[[float], object] = wait) -> None:
    """Find the cloud of this machine and poll it until it announces the end; returns at once on no cloud.

    Args:
        clouds: The known clouds.
        stop: Gets the notice as a stop request, and the reason of a higher risk.
        pause: Waits between two requests.
    """
    cloud = next((candidate for candidate in clouds if _present(candidate)), None)
    complained = False
    while cloud:
        try:
            notice = cloud.ask()
        # Any error is ignored: the next answer may be the notice that lets the run save in time.
        except Exception as error:  # noqa: BLE001
            if not complained:
                logger.warning("the cloud's notices cannot be read, trying on: %s: %s", type(error).__name__, error)
            complained, notice = True, None
        if notice and _announces_end(notice, stop):
            return
        pause(cloud.interval_s)


def _announces_end(notice: SpotNotice, stop: StopSignals) -> bool:
    """Pass a notice on; returns whether it announces an end that is near."""
    if notice.seconds_left is None:
        stop.risk = notice.reason
        return False
    if notice.seconds_left > ACT_WITHIN_S:
        return False
    stop.notice(notice.reason, notice.seconds_left)
    return True


def _present(cloud: Cloud) -> bool:
    try:
        return cloud.present()
    except Exception as error:  # noqa: BLE001  # an unexpected answer is not this cloud's; another one may fit
        logger.warning("a metadata service answers in an unexpected way: %s: %s", type(error).__name__, error)
        return False
