"""Examines a checkpoint: its integrity, its content, and whether to resume from it."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from indextts_job.checkpoint.history import History, Validation
from indextts_job.checkpoint.manifest import CheckpointManifest, file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE, TEXT_TABLES, WEIGHTS
from indextts_job.checkpoint.values import VocabularyRecord
from indextts_job.doctor.findings import Finding, Level, data_finding
from indextts_job.errors import ConfigError, DataError
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.plan import HardwareConfig, Needs, changes, make_plan
from indextts_job.legacy.adoption import adopt
from indextts_job.legacy.checkpoint import read_legacy_checkpoint
from indextts_job.legacy.discovery import is_old_checkpoint
from indextts_job.model.adapter import Adapter
from indextts_job.model.base_checkpoint import BaseCheckpoint, load_base_checkpoint
from indextts_job.model.config import gpt_config
from indextts_job.model.versions import version_of_config
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, Vocabulary
from indextts_job.report.console import human_bytes
from indextts_job.resume.points import locate_all
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig

FEW_STEPS, MANY_STEPS = 5_000, 20_000
"""Below the first a fresh start costs little; from the second on it would lose much work."""
EMBEDDING_STD = (1e-3, 0.5)
"""Range of the standard deviation of text embedding rows. They start at 0.003 to 0.02 and grow in training."""


def examine_checkpoint(
    source: str, base_checkpoint: str, model_config: str, storage: StorageConfig | None = None
) -> Iterator[Finding]:
    """Examine a checkpoint, or the newest one of a run.

    Args:
        source: A run, the `.json` of one of its checkpoints, or a `.pth` of the old trainer.
        base_checkpoint: `gpt.pth` that it was trained from, to compare frozen rows with; empty = no comparison.
        model_config: `config.yaml` of the model, for a checkpoint of the old trainer.
        storage: Settings of remote storage.
    """
    if is_old_checkpoint(source):
        yield from _legacy(source, base_checkpoint, model_config)
        return
    store, names = locate_all(source, storage)
    try:
        manifest = store.manifest(names[0])
        yield _place(manifest)
        store.verify(manifest)
    except DataError as error:
        advice = "An older checkpoint may be whole: `indextts-job checkpoints list RUN --verify`."
        yield data_finding("integrity", "error", str(error), advice)
        return
    objects = f"{len(manifest.objects)} objects, {human_bytes(manifest.size_bytes)}, every byte has its hash"
    yield data_finding("integrity", "ok", objects)
    yield from _own(store, manifest, base_checkpoint)
    yield _resumed_here(manifest)


def _place(manifest: CheckpointManifest) -> Finding:
    name, total = manifest.name, manifest.values.total_steps
    tags = f" [{', '.join(name.tags)}]" if name.tags else ""
    version = version_of_config(manifest.values.model_config)
    text = f"{version}, {file_name(name)}{tags}: step {name.step} of {total}, epoch {manifest.values.epoch:.2f}"
    return data_finding("checkpoint", "ok", f"{text}, of {manifest.created}")


def _own(store: CheckpointStore, manifest: CheckpointManifest, base_checkpoint: str) -> Iterator[Finding]:
    values = manifest.values
    tables = tuple(BASE + key for key in TEXT_TABLES)
    tensors = store.load(manifest, (WEIGHTS, *tables))
    yield _finite(tensors)
    yield _rows(tensors, values.vocabulary)
    if base_checkpoint:
        base = load_base_checkpoint(base_checkpoint, gpt_config(values.model_config, "the checkpoint"))
        yield _frozen_rows(tensors, base)
    if values.history.best:
        yield _validation(values.history, values.history.best)


def _finite(tensors: Mapping[str, Tensor]) -> Finding:
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        return data_finding("weights", "error", f"{', '.join(bad[:3])}: NaN or infinity", "Go back to an older one.")
    return data_finding("weights", "ok", f"{len(tensors)} tensors finite")


def _rows(tensors: Mapping[str, Tensor], vocabulary: VocabularyRecord) -> Finding:
    """The spread of the text embedding's rows, base and new ones apart: a mean of both would hide odd new rows."""
    table = TEXT_TABLES[0]
    keys = (("base", BASE + table), ("new", WEIGHTS + table + NEW_ROWS_SUFFIX), ("all", WEIGHTS + table))
    deviations = {label: float(tensors[key].float().std()) for label, key in keys if key in tensors}
    low, high = EMBEDDING_STD
    odd = not all(low <= deviation <= high for deviation in deviations.values())
    spreads = ", ".join(f"{label} rows {deviation:.4f}" for label, deviation in deviations.items())
    return data_finding(
        "vocabulary",
        "warning" if odd else "ok",
        f"{vocabulary.pieces} pieces, {vocabulary.base_pieces} of the base; standard deviation of {spreads}",
        "Rows of another size than any training gives: look at tokenizer and base.",
    )


def _validation(history: History, best: Validation) -> Finding:
    last, since = history.validations[-1], history.overfitting_since
    text = f"best {best.losses.total:.4f} at step {best.step}, last {last.losses.total:.4f}"
    level: Level = "ok" if since is None else "warning"
    text += "" if since is None else f"; overfits since step {since}"
    return data_finding("validation", level, text, "Take the best one: `indextts-job export RUN --tag best`.")


def _frozen_rows(tensors: Mapping[str, Tensor], base: BaseCheckpoint) -> Finding:
    moved = 0
    compared = 0
    for key in TEXT_TABLES:
        kept = tensors.get(BASE + key)
        if kept is None:
            continue
        rows = min(base.text_pieces, len(kept))
        differs = (kept[:rows] != base.tensors[key][:rows].to(kept.dtype)).reshape(rows, -1).any(dim=1)
        moved += int(differs.sum())
        compared += rows
    if not compared:
        return data_finding("frozen rows", "ok", "none in this run: all rows train")
    text = f"{moved} of {compared} rows are not the base checkpoint's" if moved else f"{compared} rows bit for bit"
    return data_finding("frozen rows", "error" if moved else "ok", text, "Is it another base checkpoint?")


def _resumed_here(manifest: CheckpointManifest) -> Finding:
    values = manifest.values
    model = gpt_config(values.model_config, "the checkpoint")
    config = HardwareConfig(**values.config_section("hardware"))
    # The dataset is not read here, so the longest sample that the model allows stands for it.
    longest = model.sample_tokens(model.max_text_tokens, model.max_mel_tokens) if not config.capacity_tokens else 1
    vocabulary = values.vocabulary
    adapter = Adapter.recorded(values.adapter) if values.adapter else None
    sizes = Vocabulary.recorded(vocabulary).sizes(model, adapter)
    needs = Needs(sizes=sizes, longest_tokens=longest)
    try:
        facts = read_facts(config.device)
        plan = make_plan(facts, config, needs)
    # The plan fails where the settings demand a device that this machine lacks; that is a finding.
    except ConfigError as error:
        return Finding(subject="on this machine", level="error", found=str(error))
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    different = changes(values.environment, facts, plan, versions)
    changed = f"; different from where it was saved: {', '.join(different)}" if different else ""
    return data_finding("on this machine", "ok", f"{facts.name}, {plan.precision}{changed}")


def _legacy(source: str, base_checkpoint: str, model_config: str) -> Iterator[Finding]:
    config = gpt_config(files.read_yaml(model_config, "model configuration", "--config"), model_config)
    try:
        old = read_legacy_checkpoint(source, config)
    except DataError as error:
        yield data_finding("integrity", "error", str(error))
        return
    moments = "with moments" if old.moments is not None else "without moments"
    text = f"of the old trainer, step {old.step}, {old.text_pieces} pieces, {moments}"
    yield data_finding("checkpoint", "ok", text, details=old.notes)
    if not base_checkpoint:
        advice = "Give the gpt.pth that it was trained from with --base-checkpoint."
        yield data_finding("frozen rows", "warning", "not compared with the base", advice)
        return
    base = load_base_checkpoint(base_checkpoint, config)
    imported = adopt(old, base, Vocabulary(pieces=old.text_pieces, base_pieces=base.text_pieces), config)
    yield data_finding("import", "ok", "what is taken over, and what not:", details=imported.notes)
    yield _worth(imported.trained_rows, old.step)


def _worth(trained_rows: Sequence[str], step: int) -> Finding:
    """Whether to resume from a checkpoint of the old trainer."""
    if trained_rows:
        text = f"no: {len(trained_rows)} base rows hold trained values, so it was trained without freezing them"
        advice = "The base languages have suffered. Start from the base checkpoint in another run folder."
        return data_finding("worth resuming", "warning", text, advice, details=trained_rows)
    if step < FEW_STEPS:
        return data_finding("worth resuming", "ok", f"either is fine: {step} steps are soon done again")
    much = "definitely" if step >= MANY_STEPS else "yes"
    return data_finding("worth resuming", "ok", f"{much}: {step} steps with frozen base rows")
