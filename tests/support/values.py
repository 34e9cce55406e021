"""The plain values of a checkpoint, complete and sound."""

from typing import Any

from indextts_job.training.history import History


def values(**further: Any) -> dict[str, Any]:
    """What every checkpoint records, with more of it or other values on top."""
    return {
        "config": {"recipe": {}, "schedule": {}, "data": {}, "hardware": {}, "storage": {}},
        "model_config": {"gpt": {}},
        "order": {
            "version": 1,
            "seed": 1234,
            "global_batch_samples": 1,
            "num_samples": 40,
            "dataset_fingerprint": "d",
        },
        "total_steps": 24,
        "dataset": {"manifests": ["train.jsonl"], "languages": {"am": 40}, "codes": 400, "skipped_samples": []},
        "tokenizer": {"pieces": 100, "fingerprint": "t"},
        "vocabulary": {"pieces": 100, "base_pieces": 100},
        "parameters": {"trained": 1},
        "lineage": {},
        "environment": {"hardware": {}, "plan": {}},
        "history": History().to_json(),
        "scaler": None,
        **further,
    }
