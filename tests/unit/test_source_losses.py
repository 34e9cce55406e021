"""The losses of a step by source: those of the samples, on any number of ranks, and without effect on the update."""

from dataclasses import replace

import numpy as np
import pytest

from indextts_job.checkpoint.history import History, Losses, SourceSums
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.evaluate import evaluate_samples
from indextts_job.training.source_losses import Sources
from indextts_job.training.step import Updated, train_step
from tests.support.lockstep import on_ranks
from tests.support.models import SMALL, engine, micro_batches, random_samples, small_model

SAMPLES = random_samples(11)
SOURCES = Sources(("am", "none", "zh"), lambda indices: np.where(indices % 3 == 0, 2, 0))
"""Every third sample is of the last source; no step has one of the middle source."""
LOSSES = Losses(text_loss=1.0, mel_loss=1.0, mel_top1=0.5, total=1.0)


def trained(group: ProcessGroup, batches: list[list[PackedBatch]], sources: Sources | None) -> tuple[Updated, bytes]:
    mine = engine(small_model(), group=group)
    updated = train_step(replace(mine, sources=sources), batches[group.rank], 0, 1e-3)
    assert isinstance(updated, Updated)
    return updated, b"".join(value.numpy().tobytes() for value in mine.model.state_dict().values())


def test_they_are_those_of_the_samples_of_each_source() -> None:
    batches = micro_batches(SAMPLES, 150)
    assert len(batches) > 2
    updated, weights = on_ranks(1, lambda group: trained(group, [batches], SOURCES))[0]
    # By the validation, whose losses by sample are another computation.
    names = {sample.index: SOURCES.names[int(SOURCES.number_of(np.array([sample.index]))[0])] for sample in SAMPLES}
    found = evaluate_samples(engine(small_model()), batches, lambda index: names[index], lambda _done: False)
    assert found is not None
    assert [one.source for one in updated.sources] == ["am", "zh"]
    for one in updated.sources:
        expected = found.languages[one.source]
        assert one.targets == sum(expected.mel_targets)
        assert one.mel / one.targets == pytest.approx(expected.mel_loss, rel=1e-6)
    together = sum(one.mel for one in updated.sources) / sum(one.targets for one in updated.sources)
    assert together == pytest.approx(updated.losses.mel_loss, rel=1e-6)
    plain, same = on_ranks(1, lambda group: trained(group, [batches], None))[0]
    assert plain.sources == ()
    assert weights == same


def test_they_are_the_same_on_any_number_of_ranks() -> None:
    (alone,) = on_ranks(1, lambda group: trained(group, [micro_batches(SAMPLES, 150)], SOURCES)[0].sources)
    # The last rank has no sample at all.
    shares = [[collate(some, SMALL)] for some in (SAMPLES[:6], SAMPLES[6:], [])]
    for found in on_ranks(3, lambda group: trained(group, shares, SOURCES)[0].sources):
        assert [(one.source, one.targets) for one in found] == [(one.source, one.targets) for one in alone]
        assert [one.mel for one in found] == pytest.approx([one.mel for one in alone], rel=1e-6)


def test_the_history_adds_them_up_until_a_line() -> None:
    am, zh = SourceSums(source="am", mel=6.0, targets=3), SourceSums(source="zh", mel=1.0, targets=1)
    history = History().after_step(LOSSES, 1.0, [am]).after_step(LOSSES, 1.0, [zh, am])
    assert history.sources == (SourceSums(source="am", mel=12.0, targets=6), zh)
    assert history.after_line().sources == ()
