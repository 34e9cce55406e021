"""What a run has written about itself, as it may be when somebody reads it: manifests, attempts, events."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from indextts_job.checkpoint import describe
from indextts_job.checkpoint.attempt_record import parse_record
from indextts_job.checkpoint.manifest import parse_manifest
from indextts_job.checkpoint.values import parse_values
from indextts_job.report.attempts import Attempt
from indextts_job.report.journal import committed_samples, parse_events
from indextts_job.report.standing import standing
from tests.fuzz.outcomes import taken_or_refused
from tests.fuzz.strategies import Damage, changed, damaged, damages, values
from tests.support import goldens

MANIFEST = goldens.MANIFEST.read_bytes()


def signed(document: dict[str, Any]) -> bytes:
    """A manifest with the hash of what it holds: somebody wrote it like this."""
    plain = {key: value for key, value in document.items() if key != "sha256"}
    try:
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, TypeError):
        digest = ""
    return json.dumps(plain | {"sha256": digest}, default=str).encode("utf-8", "surrogatepass")


@given(document=changed(json.loads(MANIFEST)))
def test_a_manifest_with_other_values_is_read_or_refused(document: Any) -> None:
    """Where it is read, everything that a reader takes from it is there."""
    content = signed(document) if isinstance(document, dict) else json.dumps(document, default=str).encode()
    manifest = taken_or_refused(lambda: parse_manifest(content, "manifest"))
    if manifest:
        describe.details(manifest)
        describe.log_entry(manifest, "run")
        assert manifest.values.history.samples >= 0
        assert parse_values(manifest.values.to_json(), "again") == manifest.values
        assert manifest.size_bytes >= 0


@given(damage=damages())
def test_a_damaged_manifest_is_refused(damage: list[Damage]) -> None:
    content = damaged(MANIFEST, damage)
    manifest = taken_or_refused(lambda: parse_manifest(content, "manifest"))
    assert manifest is None or content == MANIFEST or json.loads(content) == json.loads(MANIFEST)


RECORD = {"pid": 1, "node": "n", "step": 3, "started": "2026-01-01", "scheduler": {"kind": "slurm", "chain": "7"}}


@given(document=values() | changed(RECORD))
def test_a_record_of_an_attempt_is_read_as_far_as_it_goes(document: Any) -> None:
    content = json.dumps(document, default=str).encode("utf-8", "surrogatepass")
    record = parse_record(content)
    assert all(isinstance(value, str) for value in record.scheduler.values())
    assert record.step >= 0
    stands = standing([Attempt(number=1, record=record, heard=record.started)], datetime.now(UTC))
    assert dict(stands.lines())["state"]


EVENT = {
    "time": "2026-11-21T12:00:00.000+00:00",
    "event": "TrainLine",
    "step": 3,
    "epoch": 0.1,
    "losses": {"text_loss": 1.0, "mel_loss": 1.0, "mel_top1": 0.1, "total": 1.0},
    "learning_rate": 1e-5,
    "grad_norm": 0.5,
    "samples_per_s": 1.0,
    "tokens_per_s": 1.0,
    "eta_s": 1.0,
}


@given(documents=st.lists(values() | changed(EVENT), max_size=3))
def test_a_journal_is_read_as_far_as_it_goes(documents: list[Any]) -> None:
    lines = [json.dumps(document, default=str).encode("utf-8", "surrogatepass") for document in documents]
    good = json.dumps(EVENT).encode()
    found = list(parse_events(b"\n".join([*lines, good])))
    assert found[-1].to_json() == {**EVENT, "mfu": None, "sources": {}}
    assert all(logged.event.step >= 0 for logged in found)


@given(content=st.binary(max_size=200), damage=damages())
def test_a_sample_log_is_read_as_far_as_it_goes(content: bytes, damage: list[Damage]) -> None:
    log = damaged(b'{"resumed_at": 0}\n{"step": 1, "samples": ["a"]}\n', damage)
    for step, samples in committed_samples([content, log]).items():
        assert isinstance(step, int)
        assert all(isinstance(sample, str) for sample in samples)
