"""When the next pod of a Job starts. Pure: from objects as the API returns them, and the time.

The Job controller waits 10 s after the first end of a pod, twice as long after each further one, and at most 10 min;
ends that the failure policy ignores count too, and only a success resets the count (Kubernetes,
`pkg/controller/job/backoff_utils.go`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10, 600
EVENTS_KEPT_S = 3600
"""How long a cluster keeps its events, by the API server's default `--event-ttl`."""


def pause_s(ends: int) -> int:
    """Seconds from the last end of a pod to the next pod, after `ends` ends."""
    # The exponent is bounded: a count of thousands must not make a power of that size.
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (min(ends, 20) - 1)) if ends else 0


def replacement_text(job: Object, pods: Sequence[Object], created: Sequence[Object], now: datetime) -> str:
    """What a Job without an active pod waits for, in a line.

    Args:
        job: A Job without an active pod.
        pods: The pods of the Job, all ended; evicted ones are deleted and so are missing here.
        created: The cluster's events about pods that were created for the Job.
        now: The time, with a time zone.
    """
    status = job.get("status") or {}
    # None of the three counts is complete: pods and events are deleted, and the status leaves out what is ignored.
    ends = max(len(pods), sum(map(_occurrences, created)), int(status.get("failed") or 0))
    if not ends:
        return "waiting, no pod yet"
    failed = f"{status['failed']} failed; " if status.get("failed") else ""
    when = _when(ends, _seconds_since_last_end(pods, now), exact=_events_are_complete(status, now))
    return (
        f"{failed}waiting: the next pod starts {when} (Kubernetes waits longer after each end of a pod). "
        f"To start one at once: indextts-launch kubernetes restart {job['metadata']['name']}"
    )


def _occurrences(event: Object) -> int:
    """How often an event happened: the cluster merges equal ones, in one of two notations."""
    return int(event.get("count") or (event.get("series") or {}).get("count") or 1)


def _when(ends: int, passed_s: float, *, exact: bool) -> str:
    least_s = max(0.0, pause_s(ends) - passed_s)
    # Ends that nobody counted make the pause longer, up to its bound.
    most_s = least_s if exact else max(0.0, LONGEST_PAUSE_S - passed_s)
    return f"in about {least_s:.0f} s" if most_s <= least_s else f"in {least_s:.0f} to {most_s:.0f} s"


def _events_are_complete(status: Object, now: datetime) -> bool:
    """Whether the events of the Job's first pods are still kept."""
    started = _instant(status.get("startTime"))
    return started is not None and (now - started).total_seconds() < EVENTS_KEPT_S


def _seconds_since_last_end(pods: Sequence[Object], now: datetime) -> float:
    known = [instant for pod in pods if (instant := _ended(pod))]
    # The clocks of cluster and launcher may differ, so the end of a pod may seem to be in the future.
    return max(0.0, (now - max(known)).total_seconds()) if known else 0.0


def _ended(pod: Object) -> datetime | None:
    """When a pod ended: the last end of a container, or of a disruption that left no such record."""
    status = pod.get("status") or {}
    finished = [_finished_at(entry) for entry in status.get("containerStatuses") or []]
    conditions = status.get("conditions") or []
    disrupted = [entry.get("lastTransitionTime") for entry in conditions if entry.get("type") == "DisruptionTarget"]
    instants = filter(None, map(_instant, (*finished, *disrupted)))
    return max(instants, default=None)


def _finished_at(container: Object) -> object:
    """The end in the status of a container; None while it runs."""
    return ((container.get("state") or {}).get("terminated") or {}).get("finishedAt")


def _instant(text: object) -> datetime | None:
    """A timestamp of the API; None if there is none."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
