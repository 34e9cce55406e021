"""The memory line: fitted, kept, followed; measured for real by the activations that autograd keeps."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from indextts_job.attempt.machine import measured_capacity
from indextts_job.errors import DeviceMemoryError
from indextts_job.hardware.memory import MemoryLine, fit
from indextts_job.hardware.plan import HardwareConfig, HardwareFacts, Plan
from indextts_job.loop.capacity import Capacity
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training import probe
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.probe import measured_line
from indextts_job.training.step import TargetCounts, accumulate
from tests.support.lockstep import on_ranks
from tests.support.models import SMALL, engine, micro_batches, random_samples, small_model

GIB = 2**30
L4 = HardwareFacts(device="cuda", name="NVIDIA L4", memory_bytes=22 * GIB, bfloat16=True, cpus=8)
PLAN = Plan(device="cuda", precision="bfloat16", capacity_tokens=3000, threads=1)
KEY = "hardware/nvidia-l4-22-gib.json"
LINE = MemoryLine(fixed_bytes=8 * GIB, bytes_per_token=2**20)


def test_a_line_goes_through_its_points() -> None:
    line = fit((1000, 9e9), (3000, 11e9))
    assert line == MemoryLine(fixed_bytes=8e9, bytes_per_token=1e6)
    assert line.capacity_tokens(20e9) == 12000
    assert line.capacity_tokens(1e9) == 0
    assert fit((1000, 9e9), (3000, 9e9)) is None
    assert fit((1000, 9e9), (1000, 10e9)) is None


def capacity(
    storage: RunStorage, facts: HardwareFacts = L4, longest: int = 700, *, may_recompute: bool = True
) -> Capacity:
    return Capacity(PLAN, (longest, "long one"), storage, facts, may_recompute=may_recompute)


def never() -> MemoryLine | None:
    raise AssertionError("measured again")


def test_what_was_measured_replaces_the_estimate_and_is_kept(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    first = capacity(storage)
    assert first.tokens == 3000
    message = first.measure("bfloat16", lambda: LINE)
    assert message.startswith("measured: 8.0 GiB and")
    assert first.tokens == int(0.9 * 22 * 1024 - 8 * 1024)
    second = capacity(storage)
    assert second.measure("bfloat16", never).startswith("measured by an earlier attempt")
    assert second.tokens == first.tokens
    # Another precision takes other memory, another device has other memory.
    with pytest.raises(AssertionError, match="measured again"):
        capacity(storage).measure("float16", never)
    with pytest.raises(AssertionError, match="measured again"):
        capacity(storage, replace(L4, name="NVIDIA A100")).measure("bfloat16", never)


def test_an_out_of_memory_counts_for_more_than_a_measurement(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    one = capacity(storage)
    one.measure("bfloat16", lambda: LINE)
    one.lower("a step")
    lowered = one.tokens
    other = capacity(storage)
    other.measure("bfloat16", never)
    assert other.tokens == lowered
    assert f"up to {lowered} tokens, because an earlier attempt ran out of memory" in other.limited
    assert KEY in other.limited
    assert not capacity(open_storage(str(tmp_path / "new"))).limited


def test_what_the_user_forbids_is_not_computed_again_whatever_is_remembered(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write(KEY, b'{"recompute": "blocks", "capacity_tokens": 900}')
    assert capacity(storage).recompute == "blocks"
    strict = capacity(storage, longest=900, may_recompute=False)
    assert strict.recompute == "nothing"
    with pytest.raises(DeviceMemoryError, match=r"as little kept as hardware.recompute allows"):
        strict.lower("a step")


def test_what_does_not_fit_is_measured_with_activations_computed_again(tmp_path: Path) -> None:
    one = capacity(open_storage(str(tmp_path)), longest=2000)
    thick = replace(LINE, bytes_per_token=8 * 2**20)
    lines = {"nothing": thick, "gelu": None, "blocks": LINE}  # not even two samples fit with GELUs computed again
    found = one.measure("bfloat16", lambda: lines[one.recompute])
    assert one.recompute == "blocks"
    assert found
    assert one.tokens == int(0.9 * 22 * 1024 - 8 * 1024)
    strict = capacity(open_storage(str(tmp_path / "other")), longest=2000, may_recompute=False)
    strict.measure("bfloat16", lambda: thick)
    assert (strict.recompute, strict.tokens) == ("nothing", 2000)


def test_nothing_measured_leaves_the_estimate(tmp_path: Path) -> None:
    one = capacity(open_storage(str(tmp_path)))
    assert one.measure("bfloat16", lambda: None) == ""
    assert (one.tokens, one.recompute) == (3000, "nothing")


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"[]", b"{", b"[" * 100_000),
        b'{"measured": {"bfloat16": {"fixed_bytes": NaN, "bytes_per_token": 1e6}}}',
        b'{"measured": {"bfloat16": {"fixed_bytes": 1e999, "bytes_per_token": 1e6}}}',
        b'{"measured": {"bfloat16": {"fixed_bytes": 1e9, "bytes_per_token": 1e-9}}}',
        b'{"measured": []}',
        b'{"recompute": true}',
        b'{"measured": {"bfloat16": {"fixed_bytes": 1}}}',
    ],
)
def test_a_damaged_memory_is_none(tmp_path: Path, garbage: bytes) -> None:
    storage = open_storage(str(tmp_path))
    storage.write(KEY, garbage)
    assert capacity(storage).measure("bfloat16", lambda: LINE).startswith("measured: ")


class SavedActivations:
    """Measures what autograd keeps for backward: the part of the memory that micro-batches decide on."""

    def peak_bytes(self, work: Callable[[], None]) -> float:
        kept: dict[int, int] = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            work()
        return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_line_foretells_a_larger_micro_batch(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    monkeypatch.setattr(probe, "LEAST_PROBED_TOKENS", 500)
    parts = engine(small_model(dropout=dropout), dropout=dropout)
    before = [p.detach().clone() for p in parts.model.parameters()]
    line = measured_line(parts, SMALL, (10, 30), 100, SavedActivations(), step=0)
    assert line is not None
    # The samples of a real step are not alike.
    (batch,) = micro_batches(random_samples(40), 10**6)
    counts = TargetCounts(1.0, 1.0, 1.0)
    real = SavedActivations().peak_bytes(lambda: (accumulate(parts, batch, counts), None)[1])
    foretold = line.fixed_bytes + line.bytes_per_token * batch.num_tokens
    assert real == pytest.approx(foretold, rel=0.03)
    assert all(torch.equal(p, value) for p, value in zip(parts.model.parameters(), before, strict=True))


def test_measuring_leaves_no_gradients() -> None:
    parts = engine(small_model())
    measured_line(parts, SMALL, (10, 30), 100, SavedActivations(), step=0)
    assert all(p.grad is None for p in parts.model.parameters())


def test_a_device_that_is_too_small_for_measuring_leaves_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def peak_bytes(self, work: Callable[[], None]) -> float:
            raise torch.OutOfMemoryError("says the test")

    parts = engine(small_model())
    assert measured_line(parts, SMALL, (10, 30), 100, Full(), step=0) is None
    assert all(p.grad is None for p in parts.model.parameters())


def test_the_message_about_an_earlier_attempt_names_what_all_ranks_agreed_on(tmp_path: Path) -> None:
    """Ranks on unlike cards remember unlike capacities; the smallest holds for all."""
    left = (2400, 1600)

    def said(group: ProcessGroup) -> str:
        storage = open_storage(str(tmp_path / str(group.rank)))
        storage.write(KEY, json.dumps({"capacity_tokens": left[group.rank]}).encode())
        messages: list[str] = []
        agreed = measured_capacity(
            capacity(storage),
            HardwareConfig(),
            None,  # type: ignore[arg-type]  # only a measurement needs the inputs, and only a GPU is measured
            engine(small_model(), group=group),
            0,
            lambda notice: messages.append(str(notice)),
        )
        assert agreed.tokens == min(left)
        return messages[0]

    assert all(f"up to {min(left)} tokens" in message for message in on_ranks(2, said))
