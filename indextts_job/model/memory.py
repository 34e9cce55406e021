"""Bytes that a training step needs on a GPU, counted from what is kept. Pure: needs no torch.

The constants were read off torch's allocator, with a stand-in for the GPU that only counts (`tests/gpu_stand_in`).
"""

import math
from dataclasses import dataclass
from typing import Literal

from indextts_job.model.config import GPTConfig, trained_shapes

Recompute = Literal["nothing", "gelu", "blocks"]
"""The activations that backward computes again, instead of keeping them: none; the output of each GELU; everything
between the inputs of the blocks."""

WEIGHT_BYTES, GRADIENT_BYTES, MOMENT_BYTES = 4, 4, 8
"""float32; two moments."""
CAST_BYTES = 2
"""The 16-bit copy of a weight that autocast keeps during a step."""
Products = Literal["flash", "padded", "float32"]
"""Products in 16 bit with attention on packed rows; in 16 bit with attention on padded samples, below sm_80; in
float32, with attention on padded samples too."""
BLOCK_BYTES: dict[Products, dict[Recompute, int]] = {
    # The float32 inputs of both norms 4 + 4, their 16-bit outputs 2 + 2, query, key and value 6, attention's output 2,
    # the MLP's input to the GELU 8 and its output 8, masks of both dropouts 2.
    "flash": {"nothing": 38, "gelu": 30, "blocks": 4},
    # Attention's output a second time 2, and 8 for the padding of query, key, value and output: micro-batches of
    # utterances between 2 and 15 s are nearly doubled by it.
    "padded": {"nothing": 48, "gelu": 40, "blocks": 4},
    # The same in float32, but for the inputs of the norms and the masks. Whole blocks keep their input either way.
    "float32": {"nothing": 85, "gelu": 69, "blocks": 4},
}
"""Activations per token, layer and unit of width."""
OUTSIDE_BYTES: dict[Products, int] = {"flash": 22, "padded": 22, "float32": 26}
"""The same outside of the blocks: embeddings, rows in packed order, final norms, inputs of the heads, gradients."""
HEAD_CHUNK_BYTES = 10 * 2**24
"""A chunk of a head: logits and log-probabilities in float32 and the gradient in 16 bit, of 2^24 logits."""
WORKSPACE_BYTES = 64 * 2**20
"""cuBLAS's workspace, and the allocator's rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a training that decide about memory."""

    model: GPTConfig
    pieces: int
    """Pieces of the tokenizer."""
    base_pieces: int
    """Pieces whose rows the base checkpoint has. With more of them than that, the base rows are frozen."""
    adapted: int | None = None
    """Values of the adapter, beside which only new rows train; None without one."""
    narrow_base: bool = False
    """Whether the constant matrices of the blocks and the constant text tables are held in 16 bit."""

    @property
    def text_rows(self) -> int:
        """Rows of a text table."""
        return self.pieces + 1

    @property
    def trained_text_rows(self) -> int:
        """Those of them that train."""
        if self.pieces > self.base_pieces:
            return self.pieces - self.base_pieces
        return self.text_rows if self.adapted is None else 0

    @property
    def trained_parameters(self) -> int:
        """Values that train."""
        return self._parameters - self.frozen_parameters + (self.adapted or 0)

    @property
    def frozen_parameters(self) -> int:
        """Constant values: frozen rows of the text embedding, of the head's weight and bias; beside an adapter all."""
        row = 2 * self.model.model_dim + 1
        if self.adapted is not None:
            return self._parameters - self.trained_text_rows * row
        return (self.text_rows - self.trained_text_rows) * row

    @property
    def frozen_blocks(self) -> int:
        """Those of them that are in the blocks."""
        if self.adapted is None:
            return 0
        shapes = trained_shapes(self.model, self.text_rows)
        return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("gpt.h."))

    @property
    def narrow_values(self) -> int:
        """Constant values that are held in 16 bit."""
        if not self.narrow_base:
            return 0
        frozen_rows = self.text_rows - self.trained_text_rows
        return self.frozen_blocks + 2 * frozen_rows * self.model.model_dim

    @property
    def _parameters(self) -> int:
        """Values that a forward pass reads, without an adapter."""
        return sum(math.prod(shape) for shape in trained_shapes(self.model, self.text_rows).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """Peak of a step = fixed + per token x tokens of the micro-batch."""

    fixed: float
    per_token: float


def step_bytes(sizes: Sizes, recompute: Recompute, products: Products, moments_shared_by: int = 1) -> StepBytes:
    """Memory of a step, from its second micro-batch on.

    Args:
        sizes: The model.
        recompute: The activations that are computed again.
        products: How products and attention are computed.
        moments_shared_by: Number of processes that keep a share of the moments each.
    """
    model, sixteen_bit = sizes.model, products != "float32"
    per_parameter = WEIGHT_BYTES + GRADIENT_BYTES + MOMENT_BYTES / moments_shared_by + CAST_BYTES * sixteen_bit
    fixed = (
        per_parameter * sizes.trained_parameters
        + WEIGHT_BYTES * sizes.frozen_parameters
        - (WEIGHT_BYTES - CAST_BYTES) * sizes.narrow_values
        # Beside an adapter the products need the constant weights too, and backward keeps their copies.
        + _copied_bytes(sizes, products) * sizes.frozen_blocks
        + _head_bytes(sizes, sixteen_bit=sixteen_bit)
        + WORKSPACE_BYTES
    )
    kept, outside = BLOCK_BYTES[products], OUTSIDE_BYTES[products]
    # Where whole blocks are computed again, all of one block is there at a time.
    outside = max(outside, kept["nothing"]) if recompute == "blocks" else outside
    widths = model.layers * kept[recompute] + outside
    return StepBytes(fixed=fixed, per_token=widths * model.model_dim)


def _copied_bytes(sizes: Sizes, products: Products) -> int:
    """Bytes of the copy of a constant weight, in the type of the products."""
    if products == "float32":
        return WEIGHT_BYTES if sizes.narrow_base else 0
    # Held in bfloat16 it is what bfloat16 products read; below sm_80 they are in float16.
    return 0 if sizes.narrow_base and products == "flash" else CAST_BYTES


def _head_bytes(sizes: Sizes, *, sixteen_bit: bool) -> float:
    """The larger of the peaks in both heads: table in the type of the products, gradient and its part of a chunk."""
    width, codes = sizes.model.model_dim, sizes.model.number_mel_codes
    # In float32 the code head's table is the parameter itself, and the text head's is a copy if rows are frozen.
    element = 2 if sixteen_bit else 4
    of_text = element * sizes.text_rows + 8 * sizes.trained_text_rows
    trained_codes = codes if sizes.adapted is None else 0
    of_codes = element * codes + 8 * trained_codes + 4 * sizes.trained_text_rows
    return width * max(of_text, of_codes) + HEAD_CHUNK_BYTES
