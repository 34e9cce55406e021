"""The plan from facts, and facts from a container's files."""

from dataclasses import replace
from pathlib import Path

import pytest

from indextts_job.attempt.machine import agreed_plan
from indextts_job.checkpoint.values import Environment
from indextts_job.errors import ConfigError
from indextts_job.hardware.facts import demand_kernels, read_facts, usable_cpus
from indextts_job.hardware.plan import (
    CPU_CAPACITY_TOKENS,
    PRECISIONS,
    HardwareConfig,
    HardwareFacts,
    Needs,
    changes,
    in_samples,
    make_plan,
    planned_bytes,
)
from indextts_job.model.config import ConformerConfig, GPTConfig
from indextts_job.model.memory import Sizes
from indextts_job.model.versions import V2_0
from indextts_job.scheduler import read_scheduler
from indextts_job.training.distributed import SingleProcess

GIB = 2**30
MODEL = GPTConfig(
    **{"model_dim": 1280, "layers": 24, "heads": 20, "max_text_tokens": 600, "max_mel_tokens": 1815},
    **{"number_text_tokens": 12000, "number_mel_codes": 8194, "start_mel_token": 8192, "stop_mel_token": 8193},
    **{"start_text_token": 0, "stop_text_token": 1},
    condition_module=ConformerConfig(output_size=512, linear_units=2048, attention_heads=8, num_blocks=6),
    emo_condition_module=ConformerConfig(output_size=512, linear_units=1024, attention_heads=4, num_blocks=4),
    version=V2_0,
)
PIECES = 12000
MEAN_SAMPLE_TOKENS = 418


def needs(longest_tokens: int) -> Needs:
    return Needs(
        sizes=Sizes(model=MODEL, pieces=PIECES, base_pieces=PIECES),
        longest_tokens=longest_tokens,
    )


CPU = HardwareFacts(device="cpu", name="x86_64", memory_bytes=16 * GIB, bfloat16=False, cpus=8)
L4 = HardwareFacts(device="cuda", name="NVIDIA L4", memory_bytes=int(22.0 * GIB), bfloat16=True, cpus=8)
A100 = replace(L4, name="NVIDIA A100 80GB", memory_bytes=int(79.2 * GIB), cpus=12)
V100 = replace(L4, name="Tesla V100", memory_bytes=int(15.8 * GIB), bfloat16=False)
AUTO = HardwareConfig()


@pytest.mark.parametrize(
    ("facts", "precision", "least_samples"),
    [(L4, "bfloat16", 8), (A100, "bfloat16", 64), (V100, "float16", 6)],
    ids=lambda value: value.name if isinstance(value, HardwareFacts) else str(value),
)
def test_a_gpu_gets_the_precision_and_capacity_it_can_bear(
    facts: HardwareFacts, precision: str, least_samples: int
) -> None:
    plan = make_plan(facts, AUTO, needs(700))
    assert plan.precision == precision
    assert plan.capacity_tokens >= least_samples * MEAN_SAMPLE_TOKENS


GIBS = {
    "RTX 3060 12 GB": 11.6, "RTX 4070 12 GB": 11.7, "T4": 14.6, "RTX 4080": 15.7, "V100 16 GB": 15.8, "A4000": 15.7,
    "V100 32 GB": 31.7, "A10": 22.1, "L4": 22.0, "A30": 23.7, "RTX 3090": 23.7, "RTX 4090": 23.6, "A5000": 23.7,
    "RTX 5090": 31.4, "A100 40 GB": 39.4, "A40": 44.4, "L40S": 44.4, "A100 80 GB": 79.2, "H100": 79.1, "H200": 139.8,
    "MIG 3g.40gb": 39.2,
}  # fmt: skip
"""What each has, in GiB; MIG slices too."""
WITHOUT_BFLOAT16 = ("T4", "V100 16 GB", "V100 32 GB")


@pytest.mark.parametrize("name", GIBS)
def test_every_card_gets_a_plan_that_fits_it(name: str) -> None:
    native = name not in WITHOUT_BFLOAT16
    facts = replace(L4, name=name, memory_bytes=int(GIBS[name] * GIB), bfloat16=native)
    plan = make_plan(facts, AUTO, needs(700))
    assert plan.precision == ("bfloat16" if native else "float16")
    found = planned_bytes(facts, plan, needs(700).sizes)
    assert found.fixed + found.per_token * plan.capacity_tokens <= 0.85 * facts.memory_bytes
    # Fastest by the formula: whole blocks are computed again where few tokens would fit otherwise.
    assert plan.recompute == ("blocks" if GIBS[name] < 14 else "gelu" if GIBS[name] < 30 else "nothing")
    assert plan.capacity_tokens >= 2700


def test_several_processes_share_the_moments_before_they_compute_twice() -> None:
    small = replace(L4, memory_bytes=int(9.5 * GIB))
    plans = [make_plan(small, AUTO, needs(700), world_size) for world_size in (1, 4)]
    # Alone nothing fits by the estimate; then what needs least is tried.
    assert [(plan.shard_optimizer, plan.recompute) for plan in plans] == [(False, "blocks"), (True, "gelu")]
    never = HardwareConfig(shard_optimizer="never")
    assert make_plan(small, never, needs(700), 4).recompute == "blocks"
    assert not make_plan(L4, AUTO, needs(700), 4).shard_optimizer
    always = HardwareConfig(shard_optimizer="always")
    assert make_plan(L4, always, needs(700), 4).capacity_tokens > make_plan(L4, AUTO, needs(700), 4).capacity_tokens
    assert not make_plan(L4, always, needs(700)).shard_optimizer  # nobody to share them with


def test_memory_that_others_use_is_not_planned_with() -> None:
    shared = replace(L4, free_bytes=14 * GIB)
    assert make_plan(shared, AUTO, needs(700)).capacity_tokens < 0.6 * (make_plan(L4, AUTO, needs(700)).capacity_tokens)
    all_free = replace(L4, free_bytes=int(21.6 * GIB))
    assert make_plan(all_free, AUTO, needs(700)) == make_plan(L4, AUTO, needs(700))


def test_a_plan_is_told_in_sequences_and_in_what_changed() -> None:
    assert in_samples(8 * 418, 418, 32, 1) == "about 8 sequences x 4 micro-batches = global batch 32"
    assert in_samples(8 * 418, 418, 32, 2) == "about 8 sequences x 2 micro-batches x 2 processes = global batch 32"
    assert in_samples(10**6, 418, 32, 1) == "about 32 sequences x 1 micro-batches = global batch 32"
    plan = make_plan(A100, AUTO, needs(700))
    before = Environment(
        hardware={"name": "Tesla V100"},
        plan={"precision": "float16", "capacity_tokens": 3000},
        torch="2.12.0",
        cuda="12.8",
    )
    here = {"torch": "2.13.0", "cuda": "12.8"}
    tokens = plan.capacity_tokens
    assert changes(before, A100, plan, here) == [
        "device Tesla V100 -> NVIDIA A100 80GB",
        "precision float16 -> bfloat16",
        f"tokens per micro-batch 3000 -> {tokens}",
        "torch 2.12.0 -> 2.13.0",
    ]
    assert changes(Environment(hardware={}, plan={}), A100, plan, here) == []


@pytest.mark.parametrize("what", ["torch", "cuda"])
def test_another_version_alone_is_told(what: str) -> None:
    here = {"torch": "2.13.0", "cuda": "13.0"}
    shown = {"torch": "torch", "cuda": "CUDA"}[what]
    plan = make_plan(A100, AUTO, needs(700))
    then = {**here, what: "12.8"}
    before = Environment(hardware={}, plan={}, torch=then["torch"], cuda=then["cuda"])
    assert changes(before, A100, plan, here) == [f"{shown} 12.8 -> {here[what]}"]


class WithAnOlderGpu(SingleProcess):
    """Two processes; the other one computes in float16, and shares the moments."""

    world_size = 2

    def all_reduce_min(self, value: int) -> int:
        return min(value, PRECISIONS.index("float16"))

    def any_rank(self, flag: bool) -> bool:
        return True


def test_unlike_gpus_compute_in_what_all_of_them_can() -> None:
    plan = make_plan(A100, AUTO, needs(700), 2)
    agreed = agreed_plan(plan, WithAnOlderGpu())
    assert (plan.precision, agreed.precision) == ("bfloat16", "float16")
    assert agreed.shard_optimizer  # all or none: the update is shared out
    assert agreed_plan(plan, SingleProcess()) == plan


def test_a_cpu_computes_in_float32() -> None:
    plan = make_plan(CPU, AUTO, needs(700))
    assert (plan.device, plan.precision, plan.threads) == ("cpu", "float32", 8)
    assert plan.capacity_tokens == CPU_CAPACITY_TOKENS


def test_the_longest_sample_always_fits() -> None:
    tiny = replace(L4, memory_bytes=1 * GIB)
    assert make_plan(tiny, AUTO, needs(2452)).capacity_tokens == 2452


def test_wishes_are_followed_or_refused() -> None:
    wish = HardwareConfig(precision="float32", capacity_tokens=900, threads=3)
    plan = make_plan(L4, wish, needs(700))
    assert (plan.precision, plan.capacity_tokens, plan.threads) == ("float32", 900, 3)
    with pytest.raises(ConfigError, match="the longest sample has 901"):
        make_plan(L4, wish, needs(901))
    with pytest.raises(ConfigError, match=r"Tesla V100 .* does not have"):
        make_plan(V100, HardwareConfig(precision="bfloat16"), needs(700))


def test_a_gpu_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no GPU here. torch .* is a CPU build"):
        read_facts("cuda")


def test_a_capacity_of_the_user_takes_what_it_needs() -> None:
    t4 = replace(V100, name="Tesla T4", memory_bytes=int(14.6 * GIB))
    few, many = (make_plan(t4, HardwareConfig(capacity_tokens=tokens), needs(700)) for tokens in (1000, 9000))
    assert (few.recompute, many.recompute) == ("nothing", "blocks")
    assert (few.capacity_tokens, many.capacity_tokens) == (1000, 9000)
    kept = HardwareConfig(capacity_tokens=9000, recompute="never")
    assert make_plan(t4, kept, needs(700)).recompute == "nothing"
    # Two that do not hold the state alone share it, whoever has chosen the capacity.
    small = replace(L4, memory_bytes=8 * GIB)
    assert make_plan(small, HardwareConfig(capacity_tokens=900), needs(700), 4).shard_optimizer
    # On a CPU the capacity is no matter of memory.
    plan = make_plan(CPU, HardwareConfig(capacity_tokens=10_000), needs(700), 2)
    assert (plan.shard_optimizer, plan.recompute) == (False, "nothing")


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"INDEXTTS_GPUS": "1"}, True),
        ({"INDEXTTS_GPUS": "0"}, False),
        ({"SLURM_JOB_ID": "7"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, True),  # the index of one
    ],
)
def test_a_job_that_asked_for_gpus_does_not_train_on_a_cpu(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    for name in ("INDEXTTS_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_facts("cpu").device == "cpu"  # who asks for the CPU gets it
    if not asked:
        assert read_facts("auto").device == "cpu"
        return
    with pytest.raises(ConfigError, match=r"asked its scheduler for GPUs.* set hardware.device .* to cpu"):
        read_facts("auto")


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 5), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # code for 8.6 runs on 8.9
        ((9, 0), CUDA_13, True),
        ((12, 0), CUDA_13, True),
        ((7, 0), CUDA_13, False),
        ((6, 1), CUDA_13, False),
        ((11, 0), CUDA_13, False),  # another major version than 10.0
        ((7, 0), ["sm_50", "sm_60", "sm_70", "sm_90"], True),
        ((12, 1), ["sm_90", "compute_90"], True),  # PTX is compiled by the driver
        ((8, 0), ["sm_90", "compute_90"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], True),  # a build that does not say it
    ],
)
def test_a_card_without_kernels_in_this_build_is_refused(
    capability: tuple[int, int], architectures: list[str], *, runs: bool
) -> None:
    if runs:
        demand_kernels("a card", capability, architectures, "2.13.0")
        return
    expected = "constraints-v100.txt" if capability < (7, 5) else "newer torch"
    with pytest.raises(ConfigError, match=expected) as found:
        demand_kernels("a card", capability, architectures, "2.13.0")
    assert found.value.exit_code == 78


@pytest.mark.parametrize(("content", "expected"), [("max 100000", None), ("50000 100000", 1), ("150000 100000", 2)])
def test_cpus_are_those_of_the_container(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content + "\n")
    everything = usable_cpus(tmp_path / "missing")
    assert usable_cpus(tmp_path) == (everything if expected is None else min(expected, everything))


def test_cpus_of_an_older_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == 1


@pytest.mark.parametrize(
    ("value", "threads"), [("1", 1), ("4,2", 4), (" 3 ", 3), ("", 0), ("0", 0), ("-1", 0), ("many", 0), ("9" * 99, 0)]
)
def test_threads_are_those_that_the_environment_asks_for(
    value: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    facts = read_facts("cpu")
    assert facts.threads == threads
    assert make_plan(facts, AUTO, needs(700)).threads == (threads or facts.cpus)
    assert make_plan(facts, HardwareConfig(threads=5), needs(700)).threads == 5  # the configuration says more
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert read_facts("cpu").threads == 0


def test_facts_of_this_machine_are_plausible() -> None:
    facts = read_facts("cpu")
    assert facts.device == "cpu"
    assert facts.memory_bytes > 2**29
    assert facts.cpus >= 1


def test_the_scheduler_is_known_from_the_environment() -> None:
    slurm = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1"}
    found = read_scheduler(slurm)
    assert (found["kind"], found["chain"], found["task"], found["restarts"]) == ("slurm", "9", "3", "1")
    assert read_scheduler({"SLURM_JOB_ID": "12"})["chain"] == "12"
    assert read_scheduler({"INDEXTTS_LAUNCHER": "n1-77"}) == {"kind": "local", "chain": "n1-77"}
    pod = {"INDEXTTS_JOB": "am", "INDEXTTS_JOB_UID": "7b", "INDEXTTS_POD": "am-x", "INDEXTTS_NODE_NAME": "n1"}
    assert read_scheduler(pod) == {"kind": "kubernetes", "chain": "am/7b", "node": "n1", "pod": "am-x"}
    assert read_scheduler({"HOME": "/root"}) == {}
