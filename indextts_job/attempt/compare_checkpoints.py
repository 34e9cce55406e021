"""Evaluates several checkpoints on the same validation samples. Reads runs, writes nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from indextts_job.checkpoint.history import Losses
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS
from indextts_job.config import RunConfig
from indextts_job.data.sources import load_dataset
from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareFacts, Needs, Plan, make_plan
from indextts_job.model.adapter import Adapter
from indextts_job.model.batch import collate
from indextts_job.model.config import GPTConfig, gpt_config
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.parsing import plain
from indextts_job.tokenizer.limits import limits_of
from indextts_job.tokenizer.loading import parse_tokenizer
from indextts_job.training.engine import Engine
from indextts_job.training.evaluate import evaluate, in_order
from indextts_job.training.state import TrainState, build_optimizer

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Compared:
    """A checkpoint and its losses on the validation samples."""

    run: str
    """URL of the run."""
    manifest: CheckpointManifest
    losses: Losses
    samples: int
    """Number of samples that the losses were computed on."""

    @property
    def url(self) -> str:
        """Path or URL of the checkpoint's manifest."""
        return f"{self.run}/{MANIFESTS}/{file_name(self.manifest.name)}"

    def to_json(self) -> dict[str, Any]:
        """One row for programs."""
        return {"run": self.run, "name": file_name(self.manifest.name), "samples": self.samples, **plain(self.losses)}


def compare(
    checkpoints: Sequence[tuple[CheckpointStore, CheckpointManifest]],
    manifests: Sequence[str],
    max_samples: int,
    facts: HardwareFacts,
    progress: Progress,
) -> Iterator[Compared]:
    """Evaluate checkpoints one after another.

    Args:
        checkpoints: Checkpoints of one model shape, with their runs.
        manifests: Validation manifests; empty = those of the first checkpoint's run.
        max_samples: Number of samples from the start of the manifests; 0 = all.
        facts: The machine to compute on.
        progress: Called with the numbers of samples done and of all samples.

    Raises:
        ConfigError: There are no validation manifests.
    """
    values = checkpoints[0][1].values
    # The settings of the first checkpoint for all: the same samples and weights make the losses comparable.
    config = RunConfig.from_json(values.config, "the checkpoint")
    model_config = gpt_config(values.model_config, "the checkpoint")
    manifests = _validation_manifests(manifests, config)
    # The smallest vocabulary: every sample must be valid for every checkpoint, or the losses could not be compared.
    of_fewest, smallest = min(checkpoints, key=lambda one: one[1].values.tokenizer.pieces)
    tokenizer = parse_tokenizer(of_fewest.read_file(smallest, "tokenizer.model"), "the checkpoint's tokenizer")
    limits = limits_of(model_config, tokenizer, config.data)
    dataset = load_dataset(manifests, limits, skip_bad_samples=config.data.skip_bad_samples)
    count = min(len(dataset), max_samples or len(dataset))
    lengths = dataset.tokens(model_config)
    for store, manifest in checkpoints:
        state, plan = _loaded(store, manifest, model_config, config, facts, max(lengths[:count]))
        cut = in_order(lengths[:count], plan.capacity_tokens)
        batches = (collate(dataset.samples(indices), model_config) for indices in cut)

        def interrupted(done: int) -> bool:
            progress(done, count)
            return False

        losses = evaluate(_engine(state, plan, config), batches, interrupted)
        assert losses is not None  # noqa: S101  # `interrupted` never says so
        yield Compared(store.storage.url, manifest, losses, count)


def _validation_manifests(given: Sequence[str], config: RunConfig) -> Sequence[str]:
    manifests = given or config.data.validation_manifests
    if not manifests:
        raise ConfigError("the run validates on nothing. Give manifests with --validation.")
    return manifests


def _engine(state: TrainState, plan: Plan, config: RunConfig) -> Engine:
    return Engine(
        model=state.model,
        optimizer=state.optimizer,
        scaler=state.scaler,
        device=torch.device(plan.device),
        precision=plan.precision,
        # The weights of the first run for all, so that the totals can be compared.
        recipe=config.recipe,
        grad_clip=0.0,
    )


def _loaded(
    store: CheckpointStore,
    manifest: CheckpointManifest,
    model_config: GPTConfig,
    config: RunConfig,
    facts: HardwareFacts,
    longest: int,
) -> tuple[TrainState, Plan]:
    values = manifest.values
    adapter = Adapter.recorded(values.adapter) if values.adapter else None
    model = UnifiedVoice(model_config, Vocabulary.recorded(values.vocabulary), 0.0, adapter)
    # Planned per checkpoint: their vocabularies may differ in size.
    needs = Needs(sizes=model.sizes, longest_tokens=longest)
    plan = make_plan(facts, config.hardware, needs)
    model.to(plan.device)
    frozen = tuple(BASE + name for name, _ in model.named_buffers())
    state = TrainState(
        model=model,
        # An evaluation updates nothing, so no moments: they would double the memory.
        optimizer=build_optimizer(model, config.optimizer, moments_of=()),
        scaler=torch.amp.GradScaler(plan.device, enabled=False),
    )
    state.load_weights(store.load(manifest, (WEIGHTS, *frozen)))
    return state, plan
