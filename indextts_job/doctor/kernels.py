"""Checks that a device computes what a training needs: attention, heads, a step, its bits, a validation, a save.

Everything is compared with float64 on the CPU. A build of torch without kernels for a card, or with wrong ones, shows
here and not in the losses of a week.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.doctor.findings import Finding
from indextts_job.errors import EXIT_SOFTWARE
from indextts_job.hardware.plan import Precision
from indextts_job.loop.staging import HostCopies
from indextts_job.model.attention import SampleEdges, attend_with, longest_bound, packed_causal_attention
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import ConformerConfig, GPTConfig
from indextts_job.model.head import HeadTables, head_loss
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.resume.consistency import TOLERANCES
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.engine import AUTOCAST_DTYPES, Engine
from indextts_job.training.evaluate import evaluate
from indextts_job.training.recipe import OptimizerConfig, RecipeConfig
from indextts_job.training.state import TrainState, build_optimizer
from indextts_job.training.step import Updated, train_step

_ENCODER = ConformerConfig(output_size=8, linear_units=8, attention_heads=1, num_blocks=1)
MODEL = GPTConfig(
    model_dim=128,
    layers=2,
    heads=2,
    max_text_tokens=64,
    max_mel_tokens=256,
    number_text_tokens=120,
    number_mel_codes=1002,
    start_mel_token=1000,
    stop_mel_token=1001,
    start_text_token=0,
    stop_text_token=1,
    condition_module=_ENCODER,
    emo_condition_module=_ENCODER,
)
"""Small, with heads of the released model's width: the kernels depend on it. The columns of its heads are unaligned."""
LENGTHS = ((5, 40), (20, 230), (1, 3), (12, 129))
"""Text tokens and codes of the samples, below and above the block sizes of kernels."""
DROPOUT = 0.1
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Case:
    """The device under test."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """Type of the products."""
        return AUTOCAST_DTYPES.get(self.precision, torch.float32)

    @property
    def tolerance(self) -> float:
        """Relative error that rounding explains."""
        return TOLERANCES[self.precision]


def examine_kernels(device: torch.device, precision: Precision) -> Iterator[Finding]:
    """Run all checks.

    Args:
        device: The device that trains.
        precision: The precision that the plan chooses for it.
    """
    case = _Case(device, precision)
    checks: dict[str, Callable[[_Case], str]] = {
        "attention": _attention,
        "attention dropout": _attention_dropout,
        "heads": _heads,
        "training step": _step,
        "same bits": _bits,
        "validation": _validation,
        "copy for a save": _save,
    }
    for subject, check in checks.items():
        yield _finding(subject, partial(check, case))


class _WrongError(Exception):
    """A result that differs from the right one."""


def _finding(subject: str, check: Callable[[], str]) -> Finding:
    advice = "Do not train with this build of torch on this device: look for one that fits card and driver."
    try:
        return Finding(subject=subject, level="ok", found=check())
    except _WrongError as error:
        found = str(error)
    except torch.OutOfMemoryError:
        advice = "Somebody else uses this GPU: look with nvidia-smi."
        return Finding(subject=subject, level="error", found="not checked: no memory is free", advice=advice)
    # Whatever a kernel may raise: a finding too, and the checks behind it may still run.
    except Exception as error:  # noqa: BLE001
        lines = str(error).strip().splitlines() or [""]
        found = f"{type(error).__name__}: {lines[0]:.200}"
    return Finding(subject=subject, level="error", found=found, advice=advice, exit_code=EXIT_SOFTWARE)


def _demand(what: str, errors: Iterable[float], limit: float) -> str:
    """The finding's text; one that is not a number is wrong too, which `max` alone would pass over."""
    found = list(errors)
    if wrong := [error for error in found if not error <= limit]:
        raise _WrongError(f"{what} are off by {max(wrong):.2g}, at most {limit:.2g} is rounding")
    return f"{what} within {max(found):.1g} of float64"


def _attention(case: _Case) -> str:
    qkv, edges = _attention_inputs(case)
    right, right_edges = qkv.detach().to(CPU, torch.float64).requires_grad_(), _edges(CPU)
    upstream = torch.randn(_rows(), MODEL.heads, MODEL.model_dim // MODEL.heads, generator=_generator())
    found = _with_gradient(qkv, edges, upstream)
    expected = _with_gradient(right, right_edges, upstream)
    return _demand("values and gradients", map(_error, found, expected), case.tolerance)


def _with_gradient(qkv: Tensor, edges: SampleEdges, upstream: Tensor) -> list[Tensor]:
    mixed = packed_causal_attention(qkv, attend_with(qkv, qkv.dtype, edges), 0.0)
    (gradient,) = torch.autograd.grad(mixed, qkv, upstream.to(mixed.device, mixed.dtype))
    return [mixed.detach(), *gradient.unbind(1)]


def _attention_dropout(case: _Case) -> str:
    # For fixed weights attention is linear in the values: <output, u> = <values, gradient of the values>, but only if
    # the backward pass drops the weights that the forward pass has dropped.
    qkv, edges = _attention_inputs(case)
    output = packed_causal_attention(qkv, attend_with(qkv, qkv.dtype, edges), DROPOUT)
    upstream = output.detach().clone()
    (gradient,) = torch.autograd.grad(output, qkv, upstream)
    forward = (upstream.double() ** 2).sum()
    if not forward > 0:
        raise _WrongError("the output is zero")
    backward = (qkv.detach()[:, 2].double() * gradient[:, 2].double()).sum()
    dropped = _dropped_share(case)
    if not DROPOUT / 2 < dropped < 2 * DROPOUT:
        raise _WrongError(f"{dropped:.0%} of the weights are dropped, expected {DROPOUT:.0%}")
    error = float((backward - forward).abs() / forward)
    return _demand("weights dropped in forward and in backward", [error], case.tolerance)


def _dropped_share(case: _Case) -> float:
    """The share of weights that are dropped, from samples of one row, which have one weight for each head."""
    samples = 512
    starts = torch.arange(samples + 1, dtype=torch.int32, device=case.device)
    edges = SampleEdges(starts, [1] * samples, longest_bound([1]))
    shape = (samples, 3, MODEL.heads, MODEL.model_dim // MODEL.heads)
    ones = torch.ones(shape, device=case.device, dtype=case.dtype)
    mixed = packed_causal_attention(ones, attend_with(ones, ones.dtype, edges), DROPOUT)
    return float((mixed == 0).double().mean())


def _attention_inputs(case: _Case) -> tuple[Tensor, SampleEdges]:
    shape = (_rows(), 3, MODEL.heads, MODEL.model_dim // MODEL.heads)
    values = torch.randn(shape, generator=_generator()).to(case.device, case.dtype)
    return values.requires_grad_(), _edges(case.device)


def _edges(device: torch.device) -> SampleEdges:
    lengths = [MODEL.sample_tokens(*lengths) for lengths in LENGTHS]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    return SampleEdges(starts, lengths, longest_bound(lengths))


def _rows() -> int:
    return sum(MODEL.sample_tokens(*lengths) for lengths in LENGTHS)


def _heads(case: _Case) -> str:
    rows, columns = 700, MODEL.number_mel_codes
    generator = _generator()
    hidden = torch.randn(rows, MODEL.model_dim, generator=generator).to(case.dtype)
    weight = torch.randn(columns, MODEL.model_dim, generator=generator).mul(0.1).to(case.dtype).float()
    targets = torch.randint(0, columns, (rows,), generator=generator)
    found, expected = (
        _head_with_gradients(hidden.to(device, dtype), weight.to(device, wide), targets.to(device))
        for device, dtype, wide in (
            (case.device, case.dtype, torch.float32),
            (CPU, torch.float64, torch.float64),
        )
    )
    return _demand("loss and gradients", map(_error, found, expected), case.tolerance)


def _head_with_gradients(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    hidden.requires_grad_()
    weight.requires_grad_()
    loss, *_ = head_loss(hidden, HeadTables(weight, torch.zeros_like(weight[:, 0])), targets)
    return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]


def _step(case: _Case) -> str:
    engine = _engine(case.device, case.precision)
    right = _engine(CPU, "float32", torch.float64)
    found, expected = _trained(engine), _trained(right)
    loss_error = abs(found.losses.total - expected.losses.total) / expected.losses.total
    # Both gradients are clipped to the same norm, so this compares their directions.
    gradients = (torch.cat([_gradient(p) for p in own.model.parameters()]) for own in (engine, right))
    return _demand("loss and gradient", [loss_error, _error(*gradients)], case.tolerance)


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return torch.zeros_like(parameter).flatten().cpu() if gradient is None else gradient.flatten().cpu()


def _bits(case: _Case) -> str:
    engines = [_engine(case.device, case.precision, dropout=DROPOUT) for _ in range(2)]
    for step in range(3):
        for engine in engines:
            _trained(engine, step)
    pairs = zip(*(engine.model.parameters() for engine in engines), strict=True)
    different = sum(int((one != other).sum()) for one, other in pairs)
    if not any(bool(parameter.grad.any()) for parameter in engines[0].model.parameters() if parameter.grad is not None):
        raise _WrongError("all gradients are zero")
    if different:
        raise _WrongError(f"three steps done twice differ in {different} weights: a resumed run will differ too")
    return "three steps done twice give the same"


def _validation(case: _Case) -> str:
    found = evaluate(_engine(case.device, case.precision), [_batch()], lambda _done: False)
    right = evaluate(_engine(CPU, "float32", torch.float64), [_batch()], lambda _done: False)
    if found is None or right is None:
        raise _WrongError("it was interrupted")
    errors = [abs(found.text_loss / right.text_loss - 1), abs(found.mel_loss / right.mel_loss - 1)]
    return _demand("losses", errors, case.tolerance)


def _save(case: _Case) -> str:
    engine = _engine(case.device, case.precision)
    _trained(engine)
    state = TrainState(model=engine.model, optimizer=engine.optimizer, scaler=engine.scaler, step=1)  # type: ignore[arg-type]
    groups = state.tensor_groups()
    before = [{key: tensor.detach().clone() for key, tensor in group.items()} for group in groups]
    snapshot = HostCopies().of(groups, engine.optimizer)
    _trained(engine, 1)  # the copies are of the state before this step, however late they are made
    snapshot.complete()
    copied = {name: tensor for draft in snapshot.objects for name, tensor in draft.tensors().items()}
    for kept in before:
        if wrong := [key for key, tensor in kept.items() if not torch.equal(tensor.cpu(), copied[key])]:
            raise _WrongError(f"{len(wrong)} of {len(kept)} tensors are not what they were, {wrong[0]} say")
    with TemporaryDirectory(prefix="indextts-doctor-") as folder:
        written = CheckpointStore(open_storage(folder)).write(snapshot.objects)
    return f"{len(written.tensors)} tensors as they were, while the next step ran"


def _engine(
    device: torch.device, precision: Precision, dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> Engine:
    """A small model, always with the same weights."""
    model = UnifiedVoice(MODEL, Vocabulary(MODEL.number_text_tokens, MODEL.number_text_tokens), dropout)
    generator = _generator()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The weights of norms stay ones.
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.to(device, dtype)
    return Engine(
        model=model.train(),
        optimizer=build_optimizer(model, OptimizerConfig()),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "float16"),
        device=device,
        precision=precision,
        recipe=RecipeConfig(dropout=dropout),
        grad_clip=1.0,
    )


def _trained(engine: Engine, step: int = 0) -> Updated:
    batch = _batch()
    updated = train_step(engine, [batch, batch], step, 1e-3)
    if not isinstance(updated, Updated):
        raise _WrongError("the step was given up")
    return updated


def _batch() -> PackedBatch:
    random = np.random.default_rng(0)
    samples = [
        Sample(
            index=index,
            id=str(index),
            text_ids=random.integers(3, MODEL.number_text_tokens, text),
            codes=random.integers(0, MODEL.number_codes, codes),
            condition=random.normal(0, 0.5, MODEL.speaker_shape).astype(np.float32),
            emotion=random.normal(0, 0.1, MODEL.model_dim).astype(np.float32),
        )
        for index, (text, codes) in enumerate(LENGTHS)
    ]
    return collate(samples, MODEL)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _error(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of the right value."""
    difference = found.detach().double().cpu() - right.detach().double().cpu()
    return float(difference.norm() / right.detach().double().cpu().norm())
