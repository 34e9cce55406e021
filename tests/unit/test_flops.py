"""Operations of the model against torch's own count, and what a card could do."""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bench import costs
from indextts_job.hardware.peak import peak_flops
from indextts_job.hardware.plan import HardwareFacts
from indextts_job.model.flops import training_flops
from indextts_job.training.step import TargetCounts, accumulate
from tests.support.models import SMALL, engine, micro_batches, random_samples, small_model
from tests.support.warm_parent import REPOSITORY

CARD = HardwareFacts(device="cuda", name="NVIDIA A100-SXM4-80GB", memory_bytes=1, bfloat16=True, cpus=1)


def test_operations_are_those_that_torch_counts() -> None:
    samples = random_samples(12)
    (batch,) = micro_batches(samples, 10**6)
    with FlopCounterMode(display=False) as counter:
        accumulate(engine(small_model(pieces=50)), batch, TargetCounts(1.0, 1.0, 1.0))
    ours = training_flops(SMALL, 51, [(len(s.text_ids), len(s.codes)) for s in samples])
    # torch's counter does not see attention on a CPU.
    rows = [SMALL.sample_tokens(len(s.text_ids), len(s.codes)) for s in samples]
    attention = 6 * SMALL.model_dim * SMALL.layers * sum(n * n for n in rows)
    assert counter.get_total_flops() == ours - attention


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 0),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA A10G", 0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090 Ti", 0),
        ("Something new", 0),
    ],
)
def test_a_card_is_known_by_its_whole_name(name: str, tflops: float) -> None:
    assert peak_flops(replace(CARD, name=name), "bfloat16") == tflops * 1e12


def test_no_peak_no_share() -> None:
    assert peak_flops(CARD, "float32") == 0
    assert peak_flops(replace(CARD, device="cpu"), "bfloat16") == 0


def test_the_page_of_costs_has_the_estimates_of_the_bench() -> None:
    page = (REPOSITORY / "docs/costs.md").read_text(encoding="utf-8")
    assert "\n".join(costs.rows(20, 10, costs.MFU)) in page
