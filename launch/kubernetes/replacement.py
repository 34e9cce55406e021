"""When the next pod of a Job comes. Pure: from objects as the API shows them, and the time.

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
"""How long a cluster remembers the pods that it created, unless it is configured otherwise."""


def pause_s(ends: int) -> int:
    """Seconds from the last of so many ends of pods to the next pod."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (min(ends, 20) - 1)) if ends else 0


def replacement_text(job: Object, pods: Sequence[Object], created: Sequence[Object], now: datetime) -> str:
    """What a Job without a pod waits for, in a line.

    Args:
        job: It has no active pod.
        pods: Of it, all ended; those that were evicted are gone.
        created: Events that tell of pods that were created.
        now: With a time zone.
    """
    status = job.get("status") or {}
    counted = sum(int(event.get("count") or (event.get("series") or {}).get("count") or 1) for event in created)
    ends = max(len(pods), counted, int(status.get("failed") or 0))
    if not ends:
        return "waiting, no pod yet"
    known = [instant for pod in pods if (instant := _ended(pod))]
    passed_s = max(0.0, (now - max(known)).total_seconds()) if known else 0.0
    # Of an older job the events of its first pods are gone: then there were at least so many ends.
    started = _instant(status.get("startTime"))
    complete = started is not None and (now - started).total_seconds() < EVENTS_KEPT_S
    least_s = max(0.0, pause_s(ends) - passed_s)
    most_s = least_s if complete else max(0.0, LONGEST_PAUSE_S - passed_s)
    when = f"in about {least_s:.0f} s" if most_s <= least_s else f"in {least_s:.0f} to {most_s:.0f} s"
    failed = f"{status['failed']} failed; " if status.get("failed") else ""
    return (
        f"{failed}waiting: the next pod starts {when} (Kubernetes waits longer after each end of a pod). "
        f"To start one at once: indextts-launch kubernetes restart {job['metadata']['name']}"
    )


def _ended(pod: Object) -> datetime | None:
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    finished = [((entry.get("state") or {}).get("terminated") or {}).get("finishedAt") for entry in containers]
    disrupted = [
        condition.get("lastTransitionTime")
        for condition in status.get("conditions") or []
        if condition.get("type") == "DisruptionTarget"
    ]
    instants = [instant for text in (*finished, *disrupted) if (instant := _instant(text))]
    return max(instants) if instants else None


def _instant(text: object) -> datetime | None:
    """A time of the API; None where there is none."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
