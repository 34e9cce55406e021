"""The settings that define the mathematics of a run, besides its data, schedule and base checkpoint."""

from dataclasses import dataclass
from typing import Annotated, Literal

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig:
    """The update of a step is a function of these values and of the step's samples (I3)."""

    global_batch_samples: Annotated[int, Bounds(1, 10**6)] = 32
    """Samples of one optimizer step. Belongs to the run: hardware only decides how it is cut."""
    seed: Annotated[int, Bounds(0, 2**63 - 1)] = 1234
    """Keys the order of samples, dropout, and the noise of new vocabulary rows."""
    text_loss_weight: Annotated[float, Bounds(0, 1e6)] = 0.2
    """Weight of the text loss; 0.4 for a new language."""
    mel_loss_weight: Annotated[float, Bounds(0, 1e6)] = 0.8
    """Weight of the code loss; 0.6 for a new language."""
    dropout: Annotated[float, Bounds(0, 1, below=True)] = 0.1
    """Dropout on embeddings, attention probabilities and residual branches (the base model's recipe)."""
    new_rows: Literal["spread", "mean", "normal"] = "spread"
    """Start of new vocabulary rows: around the mean of the base rows and as far apart as they are, closely around it
    (learns slowly), or N(0, 0.02)."""
    language_start: Literal["mean", "own", "en", "zh", "es", "ja", "ar"] = "mean"
    """Start of the row of a language that the base was not trained on (IndexTTS-2.5): the mean of the trained
    languages' rows, the row of one of them, or its own row, which the release may hold untrained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW and clipping (Loshchilov & Hutter 2019; defaults of the published recipe)."""

    weight_decay: Annotated[float, Bounds(0, 1e3)] = 0.01
    """Decay of the transformer's matrices. Norms, biases, positions, embeddings and heads are never decayed:
    a row of a vocabulary table that the data does not touch has to keep its value."""
    beta1: Annotated[float, Bounds(0, 1, below=True)] = 0.9
    """Decay rate of the first moment."""
    beta2: Annotated[float, Bounds(0, 1, below=True)] = 0.999
    """Decay rate of the second moment."""
    epsilon: Annotated[float, Bounds(0, 1)] = 1e-8
    """Added to the root of the second moment."""
    grad_clip: Annotated[float, Bounds(0, 1e12)] = 1.0
    """Upper bound of the global gradient norm; 0 = no clipping."""
