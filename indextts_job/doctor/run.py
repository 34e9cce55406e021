"""Examines everything that a training with a configuration does on this machine before its first step."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from indextts_job.attempt.initial_state import new_adapter
from indextts_job.attempt.inputs import Inputs, demand_kept, read_inputs, warnings_of
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import RunConfig, recorded_config
from indextts_job.doctor.findings import Finding
from indextts_job.doctor.machine import examine
from indextts_job.errors import IndexTTSJobError
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.plan import Needs, in_samples, make_plan, planned_bytes, usable_bytes
from indextts_job.model.adapter import Adapter
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.report.console import ConsoleReport, human_bytes
from indextts_job.report.events import Event, Notice
from indextts_job.resume.decision import decide
from indextts_job.resume.select import select
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage

_T = TypeVar("_T")


class _FailedError(Exception):
    """Ends an examination whose later parts depend on the failed one. The finding has been stored."""


def examine_run(
    config: RunConfig, console: ConsoleReport, written: Mapping[str, object] = MappingProxyType({})
) -> Iterator[Finding]:
    """Examine storage, inputs, data, checkpoint and plan.

    Args:
        config: The checked configuration.
        console: Shows the progress of the data check.
        written: Places that a file names with environment variables, as they stand there, by dotted key.
    """
    files.configure_object_stores(config.storage)
    yield from _machine(config)
    found: list[Finding] = []
    notices: list[str] = []

    # The same functions as in a training, whose notices become details of the findings.
    def note(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.message)

    def tried(subject: str, work: Callable[[], _T]) -> _T:
        notices.clear()
        try:
            return work()
        except IndexTTSJobError as error:
            found.append(Finding(subject=subject, level="error", found=str(error), exit_code=error.exit_code))
            raise _FailedError from error

    try:
        store = CheckpointStore(open_storage(config.run, config.storage))
        fresh = not store.names() and config.resume.source in ("auto", "own", "none")
        inputs = tried("inputs and data", lambda: read_inputs(config, lambda: None, note, console, needs_base=fresh))
        yield Finding(subject="inputs and data", level="ok", found="all there and sound", details=tuple(notices))
        tried("settings", lambda: demand_kept(config, inputs))
        tried("adapter", lambda: new_adapter(config.adapter, inputs))
        for warning in warnings_of(config, inputs):
            yield Finding(subject="settings", level="warning", found=warning)
        selection = tried("checkpoint", lambda: select(config.resume, store))
        present = inputs.present(config, recorded_config(config, written))
        selection = tried("resume", lambda: decide(selection, present, note))
        told = notices or ["as asked"]
        yield Finding(subject="resume", level="ok", found=told[-1], details=tuple(told[:-1]))
        yield tried("plan", lambda: _plan(config, inputs))
    except _FailedError:
        yield from found


def _machine(config: RunConfig) -> Iterator[Finding]:
    """Findings about the machine, as far as the configured device needs them."""
    for finding in examine(config.run, config.storage):
        # Without a GPU `cuda` fails, `auto` trains on the CPU, and `cpu` has asked for that.
        if finding.subject != "GPU" or config.hardware.device == "cuda" or finding.level == "ok":
            yield finding
        elif config.hardware.device == "auto":
            yield replace(finding, level="warning", found=f"{finding.found}: the CPU would train, for weeks")


def _plan(config: RunConfig, inputs: Inputs) -> Finding:
    # The rows that the base checkpoint has are not known here: as if all trained.
    model, pieces = inputs.model, inputs.tokenizer.pieces
    adapter = Adapter(config.adapter) if config.adapter.rank else None
    sizes = Vocabulary(pieces, pieces).sizes(model, adapter)
    needs = Needs(sizes=sizes, longest_tokens=inputs.longest[0])
    facts = read_facts(config.hardware.device)
    plan = make_plan(facts, config.hardware, needs)
    shape = in_samples(plan.capacity_tokens, inputs.mean_tokens, config.recipe.global_batch_samples, 1)
    text = f"{facts.name}: {plan.precision}, {shape}, {inputs.total_steps} steps"
    details = [f"the longest sample has {inputs.longest[0]} tokens: {inputs.longest[1]}"]
    if facts.device == "cpu":
        return Finding(subject="plan", level="ok", found=text, details=tuple(details))
    details.append("micro-batches are measured at the first start")
    state = planned_bytes(facts, plan, sizes).fixed
    return Finding(
        subject="plan",
        level="ok" if state < usable_bytes(facts) else "warning",
        found=text,
        advice=f"Weights, gradients and moments take {human_bytes(int(state))} of this GPU, before any sample.",
        details=tuple(details),
    )
