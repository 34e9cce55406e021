"""The logs of a job, from all its pods."""

from collections.abc import Callable, Iterable

from .api import BrokenError, Document, Namespace, Refusal
from .describe import ended_state, has_ended, has_started, index_of
from .jobs import Jobs
from .manifest import CONTAINER


def print_logs(api: Namespace, name: str, write: Callable[[str], None], *, follow: bool) -> str:
    """Print the logs of a job's pods, the oldest pod first.

    Returns:
        How the job has ended; empty when it goes on.

    Args:
        api: The namespace of the job.
        name: Name of the job.
        write: Prints a line.
        follow: Go on until the job ends, with the pods that replace the present ones too.
    """
    jobs = Jobs(api)
    job: Document | None = jobs.demand(name)
    uid = job["metadata"]["uid"] if job else ""
    printer = _LogPrinter(api, write, follow=follow)
    while job and job["metadata"]["uid"] == uid:
        if not printer.print_new(jobs.pods(job)):
            api.wait(1.0)  # the connection broke off; the log is requested again and printed from there
        elif not follow:
            return ""
        elif ended := ended_state(job):
            write(f"── job {name}: {ended}")
            return ended
        else:
            jobs.await_change(job)
        job = jobs.find(name)
    return ""


class _LogPrinter:
    """Prints each line of each pod's log once, however often the logs are read."""

    def __init__(self, api: Namespace, write: Callable[[str], None], *, follow: bool) -> None:
        self._api = api
        self._write = write
        self._follow = follow
        self._printed_until: dict[str, str] = {}
        self._complete: set[str] = set()

    def print_new(self, pods: Iterable[Document]) -> bool:
        """Print the new lines of all pods; False if a connection broke off, so that there may be more."""
        return all(self._print_pod(pod) for pod in pods if self._may_have_new_lines(pod))

    def _may_have_new_lines(self, pod: Document) -> bool:
        # Only the first of several nodes prints: following another would wait for lines that never come.
        silent = self._follow and index_of(pod) > 0
        return not silent and pod["metadata"]["name"] not in self._complete and has_started(pod)

    def _print_pod(self, pod: Document) -> bool:
        name = pod["metadata"]["name"]
        if not self._print_log(name):
            return False
        if has_ended(pod):  # it had ended before its log was read, so the log was complete
            self._complete.add(name)
        return True

    def _print_log(self, pod: str) -> bool:
        """Print the new lines of a pod's log; False if the connection broke off."""
        if pod not in self._printed_until:
            self._write(f"── {pod}")
        seen = self._printed_until.setdefault(pod, "")
        read = self._api.core.read_namespaced_pod_log
        try:
            # The timestamps tell which lines are printed already; they sort as text.
            for line in self._api.stream(read, name=pod, container=CONTAINER, follow=self._follow, timestamps=True):
                at, _, text = line.partition(" ")
                if at > seen:
                    self._write(text)
                    self._printed_until[pod] = at
        except BrokenError:
            return False
        except Refusal as refusal:
            if refusal.status not in (400, 404):  # the container has not started yet, or the pod is gone
                raise refusal.as_error(f"read the log of {pod}") from refusal
        return True
