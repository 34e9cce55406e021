"""How new vocabulary rows should start: validation losses after a short fine-tuning, by start, width and seed.

A base is pretrained on one synthetic language. Its vocabulary then grows by the pieces of another one, and each start
trains on the same samples in the same order. The public trainer's way (all rows train and decay, mean of the means of
padded micro-batches) is a rival in the same run. The evaluator shares no code with the training: one sample at a time,
unpadded, dropout off, sums divided by the counted tokens.

python -m bench.new_rows                 the starts that matter
python -m bench.new_rows --all           every start, embedding and head apart
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bench.workload import model_config
from indextts_job.checkpoint.tensor_names import TEXT_TABLES
from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import GPTConfig, trained_shapes
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.training.engine import Engine, to_device
from indextts_job.training.recipe import OptimizerConfig, RecipeConfig
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import RowFactors, build_optimizer
from indextts_job.training.step import train_step

BASE_PIECES, NEW_PIECES, CODES = 400, 300, 128
SAMPLES, VALIDATION, BATCH, MICRO_BATCH = 960, 120, 32, 8
PRETRAINING_STEPS, STEPS = 200, 120
LAYERS = 3
CPU = torch.device("cpu")
SCHEDULE = ScheduleConfig(learning_rate=1e-3, warmup_steps=10)
Tables = dict[str, Tensor]
Start = Callable[[Tensor, int, torch.Generator], Tensor]


def config_of(width: int) -> GPTConfig:
    """The published architecture, small."""
    return replace(
        model_config(width, LAYERS),
        heads=4,
        max_text_tokens=60,
        max_mel_tokens=200,
        number_text_tokens=BASE_PIECES,
        number_mel_codes=CODES + 2,
        start_mel_token=CODES,
        stop_mel_token=CODES + 1,
    )


def language(pieces: Sequence[int], count: int, config: GPTConfig, seed: int) -> list[Sample]:
    """Sentences of words of a Zipf distribution; a word is one to three pieces, and a piece sounds as four codes."""
    random = np.random.default_rng(seed)
    words = [random.choice(pieces, random.integers(1, 4)).tolist() for _ in range(250)]
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    samples = []
    for index in range(count):
        chosen = random.choice(len(words), random.integers(3, 9), p=weights)
        # Pieces that both languages share, as spaces and stops are, stand between the words.
        ids = [piece for word in chosen for piece in (3 + int(random.integers(3)), *words[word])]
        codes = [(17 * piece + 5 * j) % CODES for piece in ids for j in range(4)]
        samples.append(
            Sample(
                index=index,
                id=str(index),
                text_ids=np.array(ids, np.int32),
                codes=np.array(codes, np.int32),
                condition=random.normal(0, 0.5, (32, config.model_dim)).astype(np.float32),
                emotion=random.normal(0, 0.1, config.model_dim).astype(np.float32),
            )
        )
    return samples


def fresh_tables(config: GPTConfig, seed: int) -> Tables:
    """A model at birth, as the published constructor makes it (heads uniform, all else N(0, 0.02))."""
    generator = torch.Generator().manual_seed(seed)
    tables = {}
    for key, shape in trained_shapes(config, BASE_PIECES + 1).items():
        module = key.split(".")[-2]
        if module.startswith(("ln_", "final_norm")):
            tables[key] = torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
        elif module in ("text_head", "mel_head"):
            tables[key] = _uniform(shape, config.model_dim, generator)
        elif key.endswith("bias"):
            tables[key] = torch.zeros(shape)
        else:
            std = 0.02 / math.sqrt(2 * config.layers) if module == "c_proj" else 0.02
            tables[key] = torch.randn(shape, generator=generator) * std
    return tables


def _uniform(shape: Sequence[int], width: int, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(tuple(shape), generator=generator) - 1) / math.sqrt(width)


def near_mean(ratio: float) -> Start:
    """The mean base row, and noise of so many standard deviations of the base rows in every component."""

    def start(base: Tensor, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn((count, *base.shape[1:]), generator=generator)
        return base.mean(0) + ratio * base.std(0) * noise

    return start


def sampled(base: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A base row drawn for each new one."""
    return base[torch.randint(len(base), (count,), generator=generator)].clone()


def normal(base: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """N(0, 0.02), and 0 for biases."""
    noise = torch.randn((count, *base.shape[1:]), generator=generator)
    return 0.02 * noise if base.dim() > 1 else torch.zeros(count)


def public(base: Tensor, count: int, generator: torch.Generator, width: int = 0) -> Tensor:
    """The public trainer's head: uniform within 1 / sqrt(width), the bias too."""
    shape = (count, *base.shape[1:])
    return _uniform(shape, base.shape[1] if base.dim() > 1 else width, generator)


def grown(base: Tables, embedding: Start, head: Start, seed: int, width: int) -> Tables:
    """New rows of the three text tables."""
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for key in TEXT_TABLES:
        start = embedding if key.startswith("text_embedding") else head
        used = base[key][:-1]
        given = {"width": width} if start is public else {}
        rows[key] = start(used, NEW_PIECES, generator, **given)
    return rows


def pretrained(config: GPTConfig, seed: int) -> Tables:
    """A base that speaks the first language."""
    model = UnifiedVoice(config, Vocabulary(BASE_PIECES, BASE_PIECES), 0.1)
    model.load_state_dict(fresh_tables(config, seed))
    data = language(range(6, BASE_PIECES), SAMPLES, config, 1000 + seed)
    _train(_engine(model, 1.0), data, PRETRAINING_STEPS, config, seed)
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def _engine(model: UnifiedVoice, factor: float) -> Engine:
    optimizer = build_optimizer(model, OptimizerConfig(), factors=RowFactors(pieces=factor))
    return Engine(
        model=model.train(),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=CPU,
        precision="float32",
        recipe=RecipeConfig(text_loss_weight=0.4, mel_loss_weight=0.6, dropout=0.1),
        grad_clip=1.0,
    )


def _order(steps: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    epochs = [random.permutation(SAMPLES) for _ in range(-(-steps * BATCH // SAMPLES))]
    return list(np.concatenate(epochs)[: steps * BATCH].reshape(steps, BATCH))


def _parts(chosen: np.ndarray) -> list[np.ndarray]:
    return list(chosen.reshape(-1, MICRO_BATCH))


def _train(engine: Engine, data: Sequence[Sample], steps: int, config: GPTConfig, seed: int) -> None:
    for step, chosen in enumerate(_order(steps, seed)):
        batches = [collate([data[i] for i in part], config) for part in _parts(chosen)]
        train_step(engine, batches, step, learning_rate(step, steps, SCHEDULE))


def ours(base: Tables, rows: Tables, factor: float, data: Sequence[Sample], config: GPTConfig, seed: int) -> Tables:
    """Base rows frozen, new rows trained; the full tables afterwards."""
    model = UnifiedVoice(config, Vocabulary(BASE_PIECES + NEW_PIECES, BASE_PIECES), 0.1)
    model.load_state_dict(base | {f"{key}_new": value for key, value in rows.items()})
    _train(_engine(model, factor), data, STEPS, config, seed)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for key in TEXT_TABLES:
        state[key] = torch.cat([state[key][:-1], state.pop(f"{key}_new"), state[key][-1:]])
    return state


def public_trainer(base: Tables, rows: Tables, data: Sequence[Sample], config: GPTConfig, seed: int) -> Tables:
    """As the public trainer does it: every row trains and decays, each micro-batch is a mean of its own."""
    model = UnifiedVoice(config, Vocabulary(BASE_PIECES + NEW_PIECES, BASE_PIECES + NEW_PIECES), 0.1)
    # It copies the base's spare row into the first new one, and the last row starts like a new one.
    tables = {key: torch.cat([base[key], rows[key]]) for key in TEXT_TABLES}
    model.load_state_dict(base | tables)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for step, chosen in enumerate(_order(STEPS, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, SCHEDULE)
        torch.manual_seed(seed * 1000 + step)
        for part in _parts(chosen):
            batch = collate([data[i] for i in part], config)
            sums = model(to_device(batch, CPU))
            loss = 0.4 * sums.text / len(batch.text_targets) + 0.6 * sums.mel / len(batch.code_targets)
            (loss / (BATCH / MICRO_BATCH)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.detach() for key, value in model.state_dict().items()}


@torch.no_grad()
def losses(state: Mapping[str, Tensor], data: Sequence[Sample], config: GPTConfig) -> tuple[float, float]:
    """Text and code loss per counted token, written out from the description of the model."""
    sums, counts = [0.0, 0.0], [0, 0]
    for sample in data:
        text = torch.tensor([0, *sample.text_ids.tolist(), 1])
        codes = torch.tensor([CODES, *sample.codes.tolist(), CODES + 1])
        condition = torch.from_numpy(sample.condition) + torch.from_numpy(sample.emotion)
        x = torch.cat(
            [
                condition,
                state["speed_emb.weight"][[1, 0]],
                state["text_embedding.weight"][text] + state["text_pos_embedding.emb.weight"][: len(text)],
                state["mel_embedding.weight"][codes] + state["mel_pos_embedding.emb.weight"][: len(codes)],
            ]
        )
        for layer in range(config.layers):
            name = f"gpt.h.{layer}"
            h = _norm(state, f"{name}.ln_1", x)
            q, k, v = (h @ state[f"{name}.attn.c_attn.weight"] + state[f"{name}.attn.c_attn.bias"]).chunk(3, 1)
            heads = []
            for one, other, third in zip(*(t.chunk(config.heads, 1) for t in (q, k, v)), strict=True):
                scores = one @ other.T / math.sqrt(one.shape[1])
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
                heads.append(scores.softmax(1) @ third)
            x = x + torch.cat(heads, 1) @ state[f"{name}.attn.c_proj.weight"] + state[f"{name}.attn.c_proj.bias"]
            h = _norm(state, f"{name}.ln_2", x)
            h = h @ state[f"{name}.mlp.c_fc.weight"] + state[f"{name}.mlp.c_fc.bias"]
            h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            x = x + h @ state[f"{name}.mlp.c_proj.weight"] + state[f"{name}.mlp.c_proj.bias"]
        x = _norm(state, "final_norm", _norm(state, "gpt.ln_f", x))
        for index, (head, ids, start) in enumerate(
            (("text_head", text, len(condition) + 2), ("mel_head", codes, len(condition) + 2 + len(text)))
        ):
            rows = x[start : start + len(ids) - 1]
            logits = rows @ state[f"{head}.weight"].T + state[f"{head}.bias"]
            sums[index] += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
            counts[index] += len(ids) - 1
    return sums[0] / counts[0], sums[1] / counts[1]


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to start, and the factor of the learning rate of new rows."""

    name: str
    embedding: Start
    head: Start
    factor: float = 1.0


SPREAD = near_mean(1.0)
CANDIDATES = (
    Candidate("mean, noise 0.1", near_mean(0.1), near_mean(0.1)),
    Candidate("mean, noise 1 (spread)", SPREAD, SPREAD),
    Candidate("base rows sampled", sampled, sampled),
    Candidate("N(0, 0.02)", normal, normal),
    Candidate("public start", normal, public),
    Candidate("spread, factor 2", SPREAD, SPREAD, 2.0),
    Candidate("spread, factor 4", SPREAD, SPREAD, 4.0),
    Candidate("public start, factor 4", normal, public, 4.0),
)
APART = (
    Candidate("embedding spread, head 0.1", SPREAD, near_mean(0.1)),
    Candidate("embedding 0.1, head spread", near_mean(0.1), SPREAD),
    Candidate("embedding normal, head spread", normal, SPREAD),
    Candidate("embedding spread, head public", SPREAD, public),
    Candidate("embedding spread, head normal", SPREAD, normal),
    Candidate("noise 2", near_mean(2.0), near_mean(2.0)),
    Candidate("spread, factor 8", SPREAD, SPREAD, 8.0),
    Candidate("noise 0.1, factor 4", near_mean(0.1), near_mean(0.1), 4.0),
    Candidate("sampled, factor 2", sampled, sampled, 2.0),
    Candidate("public start, factor 2", normal, public, 2.0),
)


def main() -> None:
    """Print text and code losses of every candidate on every seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    candidates = CANDIDATES + (APART if given.all else ())
    for width in given.widths:
        config = config_of(width)
        table: dict[str, list[tuple[float, float]]] = {}
        for seed in given.seeds:
            base = pretrained(config, seed)
            pieces = range(BASE_PIECES, BASE_PIECES + NEW_PIECES)
            everything = language(pieces, SAMPLES + VALIDATION, config, 2000 + seed)
            data, validation = everything[:SAMPLES], everything[SAMPLES:]
            rows = grown(base, normal, public, 3000 + seed, width)
            results = {"public trainer": public_trainer(base, rows, data, config, seed)}
            for candidate in candidates:
                began_s = time.monotonic()
                rows = grown(base, candidate.embedding, candidate.head, 3000 + seed, width)
                results[candidate.name] = ours(base, rows, candidate.factor, data, config, seed)
                text, mel = losses(results[candidate.name], validation[:60], config)
                print(
                    f"# {width} {seed} {candidate.name}: {text:.3f} {mel:.3f} {time.monotonic() - began_s:.0f} s",
                    flush=True,
                )
            for name, state in results.items():
                table.setdefault(name, []).append(losses(state, validation, config))
        print(f"\nwidth {width}: text loss by seed (mean), code loss (mean)")
        for name, found in sorted(table.items(), key=lambda row: statistics.mean(text for text, _ in row[1])):
            texts = " ".join(f"{text:.3f}" for text, _ in found)
            mean_text, mean_code = (statistics.mean(column) for column in zip(*found, strict=True))
            print(f"  {name:<32}{texts}  ({mean_text:.3f})   ({mean_code:.3f})", flush=True)


if __name__ == "__main__":
    main()
