"""The logs of a job, through all its pods."""

from collections.abc import Callable

from launch.kubernetes.api import BrokenError, Document, Namespace, Refusal
from launch.kubernetes.describe import ended_state, has_ended, has_started, index_of
from launch.kubernetes.jobs import Jobs
from launch.kubernetes.manifest import CONTAINER


def print_logs(api: Namespace, name: str, write: Callable[[str], None], *, follow: bool) -> None:
    """What the pods of a job print, oldest first; with `follow` to the job's end, through all replacements.

    Args:
        api: The namespace.
        name: Of the job.
        write: Takes a line.
        follow: Go on until the job ends.
    """
    jobs = Jobs(api)
    job: Document | None = jobs.demand(name)
    uid = job["metadata"]["uid"] if job else ""
    printed: dict[str, str] = {}
    done: set[str] = set()
    while job and job["metadata"]["uid"] == uid:
        for pod in jobs.pods(job):
            pod_name = pod["metadata"]["name"]
            # Of several nodes the first speaks; to follow another would be to wait in silence.
            silent = follow and index_of(pod) > 0
            if silent or pod_name in done or not has_started(pod):
                continue
            if not _print(api, pod_name, printed, write, follow=follow):
                api.wait(1.0)  # it broke off; asked for again from there
                break
            if has_ended(pod):  # before its log was read, so that was all of it
                done.add(pod_name)
        else:
            if not follow:
                return
            if ended := ended_state(job):
                write(f"── job {name}: {ended}")
                return
            jobs.await_change(job)
        job = jobs.find(name)


def _print(api: Namespace, pod: str, printed: dict[str, str], write: Callable[[str], None], *, follow: bool) -> bool:
    """Print what is new of a pod's log; False if there may be more.

    Args:
        api: The namespace.
        pod: Its name.
        printed: Time of the last line printed, by pod.
        write: Takes a line.
        follow: Go on until the container ends.
    """
    if pod not in printed:
        write(f"── {pod}")
    seen = printed.setdefault(pod, "")
    read = api.core.read_namespaced_pod_log
    try:
        for line in api.stream(read, name=pod, container=CONTAINER, follow=follow, timestamps=True):
            at, _, text = line.partition(" ")
            if at > seen:
                write(text)
                printed[pod] = at
    except BrokenError:
        return False
    except Refusal as refusal:
        if refusal.status not in (400, 404):  # not started, gone
            raise refusal.as_error(f"read the log of {pod}") from refusal
    return True
