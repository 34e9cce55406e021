"""The values of a checkpoint, complete and sound."""

from dataclasses import replace
from typing import Any

from indextts_job.checkpoint.history import History
from indextts_job.checkpoint.values import (
    CheckpointValues,
    DatasetRecord,
    Environment,
    Lineage,
    OrderRecord,
    ParametersRecord,
    TokenizerRecord,
    VocabularyRecord,
)

SOUND = CheckpointValues(
    config={"recipe": {}, "schedule": {}, "data": {}, "hardware": {}, "storage": {}},
    model_config={"gpt": {}},
    order=OrderRecord(version=1, seed=1234, global_batch_samples=1, num_samples=40, dataset_fingerprint="d"),
    total_steps=24,
    dataset=DatasetRecord(manifests=("train.jsonl",), languages={"am": 40}, codes=400, skipped_samples=()),
    tokenizer=TokenizerRecord(pieces=100, fingerprint="t"),
    vocabulary=VocabularyRecord(pieces=100, base_pieces=100),
    parameters=ParametersRecord(trained=1),
    lineage=Lineage(),
    environment=Environment(hardware={}, plan={}),
    history=History(),
    scaler=None,
)


def values(**changes: Any) -> CheckpointValues:
    """What every checkpoint records, with other values in some fields."""
    return replace(SOUND, **changes)
