"""`indextts-launch kubernetes`: a Job on a cluster that kubectl can reach."""

# ruff: noqa: PLC0415  # the client takes half a second to import, which --dry-run and the other places do not need

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from indextts_job import terminal
from indextts_job.errors import EXIT_OK, EXIT_SOFTWARE, ConfigError
from indextts_job.redaction import redacted

from ..job import Job
from ..kubernetes.complete_run import complete_at
from ..kubernetes.jobset import as_jobset
from ..kubernetes.manifest import KubernetesOptions, render
from ..kubernetes.remote_run import name_of_run, remote_config
from ..kubernetes.spot import spot
from ..run_config import read_config
from .arguments import Parsers, add_job_arguments, job_of, say

if TYPE_CHECKING:
    from ..kubernetes.cluster import KubernetesCluster


def add(places: Parsers) -> None:
    """Add the commands of `kubernetes`."""
    kubernetes = places.add_parser("kubernetes", help="on a Kubernetes cluster")
    actions = kubernetes.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_submit(actions)
    for name, act, what in (
        ("status", _status, "a job, its pods, what they wait for and how they ended"),
        ("logs", _logs, "print the logs; with --follow until the job ends, with the logs of later pods too"),
        ("wait", _wait, "return when a job has ended: 0 complete, 70 failed"),
        ("restart", _restart, "replace a job by a new one that starts at once; the trainer commits a checkpoint first"),
        ("cancel", _cancel, "end a job for good; the trainer commits a checkpoint first"),
    ):
        action = actions.add_parser(name, help=what, description=what.capitalize() + ".")
        action.add_argument("job", nargs="?", default="", help="its name (default: the only one of the namespace)")
        _add_place(action)
        action.set_defaults(act=act)
        if name == "logs":
            action.add_argument("--follow", "-f", action="store_true", help="go on printing")


def _add_submit(actions: Parsers) -> None:
    options = KubernetesOptions()
    submit = actions.add_parser(
        "submit",
        help="create a Job, its configuration and its account",
        description="Create a Job. Evicted, preempted or crashed, it goes on by itself until the run is complete. "
        "Submitting the same run again changes nothing.",
    )
    _add_place(submit)
    submit.add_argument("--spot", choices=("eks", "gke", "aks"), help="on spot nodes of this cloud, with its grace")
    limit = "crashes over the Job's life after which it ends"
    submit.add_argument("--backoff-limit", type=int, default=options.backoff_limit, help=limit)
    submit.add_argument("--scratch-gib", type=int, default=options.scratch_gib, help="space on the node's disk")
    submit.add_argument(
        "--keep-days", type=int, default=options.keep_days, help="days that an ended Job and its logs stay"
    )
    account = "an existing ServiceAccount (default: one with the Job's name is created)"
    submit.add_argument("--service-account", default="", help=account)
    pairs = (
        ("--identity", "annotation of the created account, for example eks.amazonaws.com/role-arn=arn:…"),
        ("--node-selector", "label of the nodes to use"),
    )
    for name, text in pairs:
        submit.add_argument(name, action="append", default=[], metavar="KEY=VALUE", help=text)
    for name, text in (
        ("--queue", "queue of Kueue that admits the Job"),
        ("--priority-class", "PriorityClass of the pods"),
        ("--runtime-class", "RuntimeClass of the pods, for example nvidia"),
        ("--pull-secret", "an existing Secret with the credentials of the image's registry"),
    ):
        submit.add_argument(name, default="", metavar="NAME", help=text)
    jobset = "with --dry-run and --nodes: a JobSet, whose nodes start again together"
    submit.add_argument("--jobset", action="store_true", help=jobset)
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the container; not for secrets"
    )
    submit.add_argument("--endpoint-url", default="", help="endpoint of an S3-compatible store")
    submit.add_argument("--secret", default="", help="an existing Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
    name = "name of the Job (default: from the run's URL)"
    add_job_arguments(submit, name=name, image="container image (required)")
    submit.set_defaults(act=_submit)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace", "-n", default="", help="namespace of the job (default: that of kubectl's context)"
    )
    parser.add_argument("--context", default="", help="context of kubectl's configuration (default: the current one)")


def _submit(given: argparse.Namespace) -> int:
    if given.jobset and not given.dry_run:
        raise ConfigError("--jobset prints a manifest: add --dry-run, and pipe it to kubectl apply -f -.")
    job, options = _described(given)
    manifest = render(job, options)
    if given.dry_run:
        print(as_jobset(manifest) if given.jobset else manifest, end="")  # noqa: T201
        return EXIT_OK
    if (step := _complete_at(job, options)) is not None:
        say(
            f"the run is complete at step {step}: nothing to submit. To train on, give it a longer schedule "
            "(schedule.epochs, schedule.max_steps)"
        )
        return EXIT_OK
    _cluster(given).submit(manifest)
    say(f"follow it with: indextts-launch kubernetes logs --follow {job.name}")
    return EXIT_OK


def _complete_at(job: Job, options: KubernetesOptions) -> int | None:
    """The step at which the job's run is complete; None when it goes on, or cannot be seen from here."""
    if job.command != "train":
        return None
    file = read_config(job)
    # The store of the pods, not one of the same name elsewhere.
    storage, place = file.config.storage, _endpoint(options)
    config = replace(file.config, storage=replace(storage, endpoint_url=storage.endpoint_url or place))
    say(f"looking whether {redacted(config.run)} is complete already")
    return complete_at(config, file.written)


def _endpoint(options: KubernetesOptions) -> str:
    """Endpoint of the pods' object store; empty where this machine's own settings decide."""
    given = options.environment
    return options.endpoint_url or given.get("AWS_ENDPOINT_URL_S3", "") or given.get("AWS_ENDPOINT_URL", "")


def _described(given: argparse.Namespace) -> tuple[Job, KubernetesOptions]:
    job, options = job_of(given), _options_of(given)
    if given.arguments or not given.dry_run:  # a dry run without arguments prints an example to edit
        config, run = remote_config(job)
        options = replace(options, config=config)
        job = replace(job, name=given.name or name_of_run(run))
        if not job.image:
            raise ConfigError("no image given. Build one, push it where the cluster can pull it, and add --image.")
    if given.spot:
        job, options = spot(given.spot, job, options)
        # `spot` sets the grace of the cloud; a grace that the user gave has precedence.
        job = job if given.grace_seconds is None else replace(job, grace_seconds=given.grace_seconds)
    return job, options


def _options_of(given: argparse.Namespace) -> KubernetesOptions:
    return KubernetesOptions(
        backoff_limit=given.backoff_limit,
        keep_days=given.keep_days,
        scratch_gib=given.scratch_gib,
        service_account=given.service_account,
        identity=_pairs("--identity", given.identity),
        node_selector=_pairs("--node-selector", given.node_selector),
        endpoint_url=given.endpoint_url,
        queue=given.queue,
        priority_class=given.priority_class,
        runtime_class=given.runtime_class,
        pull_secret=given.pull_secret,
        environment=_pairs("--env", given.env),
        secret=given.secret,
    )


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    split = [entry.partition("=") for entry in given]
    for key, found, _ in split:
        if not found or not key:
            raise ConfigError(f"{option} {key!r}: expected KEY=VALUE.")
    return {key: value for key, _, value in split}


def _cluster(given: argparse.Namespace) -> "KubernetesCluster":
    try:
        from ..kubernetes.cluster import KubernetesCluster
    except ModuleNotFoundError as error:
        # The client is 120 MB that training never needs, so it is no dependency of the package.
        raise ConfigError(
            f"the Kubernetes client is not installed here ({error}). Install it: pip install "
            "'indextts-job[kubernetes]'. `submit --dry-run` and kubectl work without it."
        ) from error

    return KubernetesCluster(given.namespace, given.context, say=say)


def _status(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    job = given.job or cluster.only_job()
    found = cluster.status(job)
    out = terminal.console()
    out.print(terminal.one_line(f"job {job}: {found.state}"), soft_wrap=True)
    short = terminal.short_time
    rows = [(pod.name, pod.phase, short(pod.started), short(pod.ended)) for pod in found.pods]
    below = [(f"node {pod.node}" if pod.node else "", pod.why, redacted(pod.last_error)) for pod in found.pods]
    out.print(terminal.Listing(("pod", "phase", "started (UTC)", "ended"), rows, below))
    for line in [*(f"warning: {warning}" for warning in found.warnings), *found.advice]:
        out.print(terminal.one_line(redacted(line)), soft_wrap=True)
    return 0


def _logs(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    job = given.job or cluster.only_job()
    ended = cluster.logs(job, lambda line: print(terminal.lines(line), flush=True), follow=given.follow)  # noqa: T201
    return _code_of(ended)


def _wait(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    job = given.job or cluster.only_job()
    ended = cluster.wait(job)
    say(f"job {job}: {ended}")
    return _code_of(ended)


def _code_of(ended: str) -> int:
    """Exit code for the end of a job: that of its trainer is known to its pods only."""
    return EXIT_OK if ended in ("", "complete") else EXIT_SOFTWARE


def _restart(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    cluster.restart(given.job or cluster.only_job())
    return EXIT_OK


def _cancel(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    cluster.cancel(given.job or cluster.only_job())
    return EXIT_OK
