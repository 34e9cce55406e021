"""One rank of a test: steps that end in every way, over gloo; fails with an assertion.

python -m tests.distributed.exchange broken-off
python -m tests.distributed.exchange killed
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from indextts_job.errors import UnavailableError
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.training.distributed import ProcessGroup, joined, read_world
from indextts_job.training.engine import Engine
from indextts_job.training.step import Discarded, Updated, reset_step, train_step
from tests.support.models import SMALL, engine, random_samples, small_model

STEPS = 4
CYCLE = 3
"""Micro-batches of a step."""


def batches(group: ProcessGroup, step: int) -> list[PackedBatch]:
    """One sample each. The last rank has none in the last micro-batch of step 1, and none at all in step 3."""
    samples = random_samples(CYCLE * group.world_size, seed=step)[group.rank :: group.world_size]
    taken = [[sample] for sample in samples]
    if group.rank == group.world_size - 1 and step == 1:
        taken[-1] = []
    if group.rank == group.world_size - 1 and step == 3:
        taken = [[] for _ in taken]
    return [collate(each, SMALL) for each in taken]


def fresh(group: ProcessGroup, *, sharded: bool) -> Engine:
    return engine(small_model(dropout=0.1), dropout=0.1, group=group, sharded=sharded)


def updated(parts: Engine, step: int) -> None:
    assert isinstance(train_step(parts, batches(parts.group, step), step, 1e-3), Updated)


def values(parts: Engine) -> Tensor:
    states = parts.optimizer.state.values()
    tensors = [*parts.model.parameters(), *(state[key] for state in states for key in ("exp_avg", "exp_avg_sq"))]
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def copied(source: Engine, target: Engine) -> None:
    """What a checkpoint carries over."""
    target.model.load_state_dict(source.model.state_dict())
    target.optimizer.load_state_dict(source.optimizer.state_dict())


@contextmanager
def out_of_memory(parts: Engine, parameter: str, passes: int) -> Iterator[None]:
    """Of the last rank, when the gradient of a parameter has been computed for the n-th time."""
    computed: list[None] = []

    def hook(_gradient: Tensor) -> None:
        computed.append(None)
        if len(computed) == passes and parts.group.rank == parts.group.world_size - 1:
            raise torch.OutOfMemoryError("says the test")

    handle = parts.model.get_parameter(parameter).register_hook(hook)
    yield
    handle.remove()


def ends_in_every_way(group: ProcessGroup, *, sharded: bool) -> None:
    """Disturbed in every step and begun anew once, beside undisturbed steps: the same bits."""
    undisturbed, disturbed = (fresh(group, sharded=sharded) for _ in range(2))
    for step in range(STEPS):
        updated(undisturbed, step)
    for step in range(STEPS):
        mine = batches(group, step)
        if step == 0:
            # In the last backward pass: before the first bucket is sent, after some, and after most of them.
            for parameter in ("mel_head.weight", "gpt.h.0.mlp.c_fc.weight", "text_embedding.weight"):
                broken_off(disturbed, mine, step, parameter, CYCLE)
        if step == 1:
            broken_off(disturbed, mine, step, "gpt.h.1.ln_1.weight", 1)
            assert isinstance(train_step(disturbed, mine, step, 1e-3, lambda left: left == 1), Discarded)
        if step == 2:
            again = fresh(group, sharded=sharded)
            copied(disturbed, again)
            disturbed = again
        updated(disturbed, step)
    assert torch.equal(values(disturbed), values(undisturbed))


def broken_off(parts: Engine, mine: list[PackedBatch], step: int, parameter: str, passes: int) -> None:
    before = values(parts)
    try:
        with out_of_memory(parts, parameter, passes):
            train_step(parts, mine, step, 1e-3)
    except torch.OutOfMemoryError:
        reset_step(parts, step)
        assert torch.equal(values(parts), before)
        return
    raise AssertionError("one rank has run out of memory, and this one went on")


def killed(group: ProcessGroup) -> None:
    """The last rank is killed in its last backward pass, when some of its buckets have been sent."""
    parts = fresh(group, sharded=False)
    updated(parts, 0)

    def die(_gradient: Tensor) -> None:
        if group.rank == group.world_size - 1 and parts.gradients._sent:
            os.kill(os.getpid(), signal.SIGKILL)

    parts.model.get_parameter("gpt.h.0.mlp.c_fc.weight").register_hook(die)
    updated(parts, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with joined(read_world(os.environ), "cpu") as ranks:
            if sys.argv[1] == "killed":
                killed(ranks)
            else:
                ends_in_every_way(ranks, sharded=False)
                ends_in_every_way(ranks, sharded=True)
    except UnavailableError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
