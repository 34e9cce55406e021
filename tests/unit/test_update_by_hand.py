"""The update of a step, written out with plain operations in float64, beside the one that training makes.

Nothing here comes from the step, the optimizer or the loss: only hidden states are the model's. Two updates, so that
moments and bias corrections of a second one count too.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from indextts_job.data.order import derive_seed
from indextts_job.data.packing import pack
from indextts_job.model.batch import Sample, collate
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import to_device
from indextts_job.training.recipe import OptimizerConfig, RecipeConfig
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import RowFactors, build_optimizer
from indextts_job.training.step import Updated, train_step
from tests.support.lockstep import on_ranks
from tests.support.models import SMALL, engine, random_samples, small_model

SEED, STEPS, TOTAL_STEPS = 99, 2, 10
TEXT_WEIGHT, MEL_WEIGHT = 0.3, 0.7
PEAK, FACTOR = 1e-2, 4.0
BETA1, BETA2, EPSILON, DECAY = 0.8, 0.95, 1e-6, 0.1
NO_CLIPPING, CLIPPING, OUT_OF_REACH = 0.0, 0.05, 1e6
PIECES, BASE_PIECES = 50, 30
SAMPLES = [random_samples(11, seed=step) for step in range(STEPS)]
DECAYED = re.compile(r"gpt\.h\.[01]\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
TOLERANCE = 1e-12

Pieces = list[list[Sample]]


def model_of_the_run(dropout: float) -> UnifiedVoice:
    return small_model(pieces=PIECES, base_pieces=BASE_PIECES, dropout=dropout).double()


def micro_batches(samples: Sequence[Sample], capacity: int, world_size: int) -> Pieces:
    """In the order of their numbers: those of all ranks at one index are neighbours."""
    lengths = [34 + len(s.text_ids) + 2 + len(s.codes) + 1 for s in samples]
    return [[samples[slot] for slot in slots] for slots in pack(lengths, capacity, world_size)]


class ByHand:
    """Weights and moments, and how they move."""

    def __init__(self, dropout: float, clip: float) -> None:
        self.model = model_of_the_run(dropout).train()
        self.weights = dict(self.model.named_parameters())
        self.first = {name: torch.zeros_like(p) for name, p in self.weights.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.weights.items()}
        self.clip = clip

    def losses_of(self, samples: Sequence[Sample]) -> tuple[list[Tensor], list[Tensor], int]:
        """Text and code loss of every sample, in nats summed over its targets, and how many codes are right."""
        batch = collate(samples, SMALL)
        hidden = self.model.hidden_states(to_device(batch, torch.device("cpu"), torch.float64))
        head = self.model.text_head
        weight = torch.cat([head.weight[:-1], head.weight_new, head.weight[-1:]])
        bias = torch.cat([head.bias[:-1], head.bias_new, head.bias[-1:]])
        text, mel, right, start = [], [], 0, 0
        for sample in samples:
            text_targets = torch.tensor([*sample.text_ids, 1])
            code_targets = torch.tensor([*sample.codes, 33])
            # Row r predicts the token behind it: start, text, stop; then start, codes.
            first_text = start + 34
            first_code = first_text + len(sample.text_ids) + 2
            text_logits = hidden[first_text : first_text + len(text_targets)] @ weight.T + bias
            code_logits = (
                hidden[first_code : first_code + len(code_targets)] @ self.model.mel_head.weight.T
                + self.model.mel_head.bias
            )
            text.append(-text_logits.log_softmax(1).gather(1, text_targets[:, None]).sum())
            mel.append(-code_logits.log_softmax(1).gather(1, code_targets[:, None]).sum())
            right += int((code_logits.argmax(1) == code_targets).sum())
            start = first_code + len(code_targets)
        return text, mel, right

    def update(self, step: int, pieces: Pieces) -> dict[str, float]:
        """One step over micro-batches, each with the dropout of its number; tells what it was."""
        samples = [sample for piece in pieces for sample in piece]
        text_targets = sum(len(sample.text_ids) + 1 for sample in samples)
        code_targets = sum(len(sample.codes) + 1 for sample in samples)
        gradients = {name: torch.zeros_like(p) for name, p in self.weights.items()}
        text_loss = mel_loss = 0.0
        right = 0
        for number, piece in enumerate(pieces):
            if not piece:
                continue
            torch.manual_seed(derive_seed(SEED, step, number))
            text, mel, right_here = self.losses_of(piece)
            text_sum, mel_sum = torch.stack(text).sum(), torch.stack(mel).sum()
            loss = TEXT_WEIGHT * text_sum / text_targets + MEL_WEIGHT * mel_sum / code_targets
            for name, gradient in zip(
                self.weights, torch.autograd.grad(loss, list(self.weights.values())), strict=True
            ):
                gradients[name] += gradient
            text_loss += text_sum.item() / text_targets
            mel_loss += mel_sum.item() / code_targets
            right += right_here
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        if self.clip and norm > self.clip:
            # torch adds 1e-6 to the norm that it divides by.
            gradients = {name: gradient * (self.clip / (norm + 1e-6)) for name, gradient in gradients.items()}
        rate = PEAK * (1 + math.cos(math.pi * step / TOTAL_STEPS)) / 2
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.move(weight, name, gradients[name], rate * (FACTOR if name.endswith("_new") else 1.0), step + 1)
        return {
            "text_loss": text_loss,
            "mel_loss": mel_loss,
            "mel_top1": right / code_targets,
            "total": TEXT_WEIGHT * text_loss + MEL_WEIGHT * mel_loss,
            "grad_norm": norm,
        }

    def move(self, weight: Tensor, name: str, gradient: Tensor, rate: float, updates: int) -> None:
        """AdamW, as Loshchilov and Hutter write it."""
        if DECAYED.fullmatch(name):
            weight -= rate * DECAY * weight
        self.first[name] = BETA1 * self.first[name] + (1 - BETA1) * gradient
        self.second[name] = BETA2 * self.second[name] + (1 - BETA2) * gradient.square()
        first = self.first[name] / (1 - BETA1**updates)
        second = self.second[name] / (1 - BETA2**updates)
        weight -= rate * first / (second.sqrt() + EPSILON)


def trained(
    group: ProcessGroup, capacity: int, dropout: float, clip: float, *, sharded: bool = False, count: int = 11
) -> UnifiedVoice:
    """What training makes of the first `count` samples on one rank; compares what each step tells."""
    world_size = group.world_size
    model = model_of_the_run(dropout)
    parts = engine(model, dropout=dropout, grad_clip=clip, group=group, sharded=sharded)
    optimizer = OptimizerConfig(weight_decay=DECAY, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
    mine = {
        name
        for index, (name, _) in enumerate(model.named_parameters())
        if not parts.owners or parts.owners[index] == group.rank
    }
    recipe = RecipeConfig(text_loss_weight=TEXT_WEIGHT, mel_loss_weight=MEL_WEIGHT, dropout=dropout, seed=SEED)
    parts = replace(parts, optimizer=build_optimizer(model, optimizer, mine, RowFactors(pieces=FACTOR)), recipe=recipe)
    schedule = ScheduleConfig(learning_rate=PEAK, warmup_steps=0)
    reference = ByHand(dropout, clip)
    for step in range(STEPS):
        samples = SAMPLES[step][:count]
        pieces = micro_batches(samples, capacity, world_size)
        batches = [collate(piece, SMALL) for piece in pieces[group.rank :: world_size]]
        outcome = train_step(parts, batches, step, learning_rate(step, TOTAL_STEPS, schedule))
        # Without dropout the reference looks at one sample at a time: nothing of the cut is left in it.
        told = reference.update(step, pieces if dropout else [[sample] for piece in pieces for sample in piece])
        assert isinstance(outcome, Updated)
        for name in ("text_loss", "mel_loss", "mel_top1", "total"):
            assert getattr(outcome.losses, name) == pytest.approx(told[name], rel=TOLERANCE), (step, name)
        assert outcome.grad_norm == pytest.approx(told["grad_norm"], rel=TOLERANCE)
        assert (outcome.grad_norm > clip) == (clip != OUT_OF_REACH)
        assert outcome.tokens == sum(34 + len(s.text_ids) + 2 + len(s.codes) + 1 for s in samples)
        of_ranks = [piece for rank in range(world_size) for piece in pieces[rank::world_size]]
        assert outcome.samples == tuple(sample.index for piece in of_ranks for sample in piece)
        for name, weight in model.named_parameters():
            assert_equal(weight, reference.weights[name], f"{name} after step {step}")
            if name in mine:
                moments = parts.optimizer.state[weight]
                assert_equal(moments["exp_avg"], reference.first[name], f"first moment of {name} after step {step}")
                assert_equal(moments["exp_avg_sq"], reference.second[name], f"second moment of {name}, step {step}")
    return model


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    assert float((found.detach() - expected.detach()).norm()) <= TOLERANCE * float(expected.detach().norm()), what


@pytest.mark.parametrize("clip", [NO_CLIPPING, CLIPPING, OUT_OF_REACH])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("capacity", [97, 222, 10_000])
def test_two_updates_are_those_written_out(capacity: int, dropout: float, clip: float) -> None:
    on_ranks(1, lambda group: trained(group, capacity, dropout, clip))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("world_size", "capacity", "count"),
    [(2, 97, 11), (3, 222, 11), (3, 10_000, 11), pytest.param(3, 97, 2, id="a rank with nothing to do")],
)
def test_two_updates_of_several_ranks_are_those_written_out(
    world_size: int, capacity: int, count: int, dropout: float, *, sharded: bool
) -> None:
    models = on_ranks(
        world_size, lambda group: trained(group, capacity, dropout, CLIPPING, sharded=sharded, count=count)
    )
    for other in models[1:]:
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), other.parameters(), strict=True))
