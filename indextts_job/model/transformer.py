"""GPT-2 blocks over a packed sequence.

Module and parameter names are those of the published checkpoint, so a state dict needs no renaming.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from indextts_job.model.adapter import InOutLinear
from indextts_job.model.adapter_config import AdapterConfig
from indextts_job.model.attention import Attend, SampleEdges, attend_with, packed_causal_attention
from indextts_job.model.memory import Recompute
from indextts_job.model.precision import computing_dtype

LAYER_NORM_EPSILON = 1e-5
"""GPT-2's `layer_norm_epsilon`, which the published model uses in all norms."""


class _KeepCasts:
    """Entered where activations are computed again: the end of autocast there must not forget the casts of the step.

    The nesting of autocast is counted by thread, and the backward pass runs in a thread of the device, where every end
    of autocast would be that of the outermost one. So that thread is left inside for good. What belongs to a step is
    forgotten by `weights_cast_once`.
    """

    _inside = threading.local()

    def __enter__(self) -> None:
        if not hasattr(self._inside, "ever"):
            torch.autocast_increment_nesting()
            self._inside.ever = True

    def __exit__(self, *_error: object) -> None:
        """Stay inside."""


def _keeping_casts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward pass and of the recomputation, for `checkpoint`."""
    return contextlib.nullcontext(), _KeepCasts()


def _computed_again(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`work(x)`, which backward computes again as far as it needs it. Without random numbers.

    `checkpoint` stops behind the last tensor that is needed: of a GELU and a product, before the product.
    """
    output: Tensor
    if torch.compiler.is_compiling():
        # Compiled blocks make their own casts, and the compiler does not know these contexts.
        output = checkpoint(work, x, use_reentrant=False, preserve_rng_state=False)
    else:
        output = checkpoint(work, x, use_reentrant=False, preserve_rng_state=False, context_fn=_keeping_casts)
    return output


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.c_attn = InOutLinear(width, 3 * width)
        self.c_proj = InOutLinear(width, width)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        tokens, width = x.shape
        qkv = self.c_attn(x).view(tokens, 3, self.heads, width // self.heads)
        mixed = packed_causal_attention(qkv, attend, self.dropout if self.training else 0.0)
        return F.dropout(self.c_proj(mixed.reshape(tokens, width)), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with the tanh approximation of GELU (`gelu_new`)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.recompute_gelu = False
        self.c_fc = InOutLinear(width, 4 * width)
        self.c_proj = InOutLinear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        hidden = self.c_fc(x)
        if self.recompute_gelu and self.training:
            output = _computed_again(self._after_gelu, hidden)
        else:
            output = self._after_gelu(hidden)
        return F.dropout(output, self.dropout, self.training)

    def _after_gelu(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.c_proj(F.gelu(hidden, approximate="tanh"))
        return output


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, width: int, heads: int, dropout: float, adapter: AdapterConfig | None = None) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(width, dropout)
        if adapter:
            for target in adapter.targets:
                projection = self.get_submodule(target)
                assert isinstance(projection, InOutLinear)  # noqa: S101  # the configuration names nothing else
                projection.adapt(adapter)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        x = x + self.attn(self.ln_1(x), attend)
        output: Tensor = x + self.mlp(self.ln_2(x))
        return output


def _run_block(block: nn.Module, x: Tensor, attend: Attend) -> Tensor:
    output: Tensor = block(x, attend)
    return output


_RunBlock = Callable[[nn.Module, Tensor, Attend], Tensor]


class Transformer(nn.Module):
    """The blocks and the final norm. Its inputs are embeddings: it has no token table and no position table."""

    def __init__(
        self, width: int, layers: int, heads: int, dropout: float, adapter: AdapterConfig | None = None
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self._sizes = width, heads
        self._adapter = adapter
        self._recompute: Recompute = "nothing"
        self._run_block: _RunBlock = _run_block
        self._compiled: _RunBlock | None = None
        first = layers - adapter.last_blocks if adapter and adapter.last_blocks else 0
        self.h = nn.ModuleList(
            Block(width, heads, dropout, adapter if number >= first else None) for number in range(layers)
        )
        self.ln_f = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    @property
    def recompute(self) -> Recompute:
        """The activations that backward computes again: less memory, the same bits."""
        return self._recompute

    @recompute.setter
    def recompute(self, what: Recompute) -> None:
        self._recompute = what
        for module in self.modules():
            if isinstance(module, MLP):
                # Dropout of an adapter behind the GELU would be drawn anew when it is computed again.
                module.recompute_gelu = what == "gelu" and not (self._adapter and self._adapter.dropout)

    @property
    def compiled(self) -> bool:
        """Whether the blocks are compiled."""
        return self._run_block is not _run_block

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch.compile make the kernels of the blocks; at the first forward pass, which takes longer.

        One function of all blocks, whose graph takes any number of tokens: it is compiled once.

        Args:
            backend: Name of a backend of torch.compile.
        """
        # `set_deterministic_debug_mode`, which the attempt calls, does not tell the compiler. This does.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        # Kept, so that going back and forth compiles once.
        self._compiled = self._compiled or torch.compile(_run_block, dynamic=True, backend=backend)
        self._run_block = self._compiled

    def pass_through_new_block(self, x: Tensor, edges: SampleEdges) -> Tensor:
        """[tokens, dim] -> [tokens, dim] through a block of its own, without values, as through any other block.

        The first pass of compiled blocks compiles. This one needs no weights, and disturbs none.
        """
        width, heads = self._sizes
        with x.device:
            block = Block(width, heads, self.dropout, self._adapter).train()
        block.mlp.recompute_gelu = self.recompute == "gelu"
        return self._run_block(block, x, attend_with(x, computing_dtype(x), edges))

    def run_uncompiled(self) -> None:
        """Undo `compile_blocks`."""
        self._run_block = _run_block

    def forward(self, x: Tensor, edges: SampleEdges) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        x = F.dropout(x, self.dropout, self.training)
        attend = attend_with(x, computing_dtype(x), edges)
        for block in self.h:
            # Without gradients the kernels of a compiled block would be others, and have to be compiled too.
            run = self._run_block if self.training else _run_block
            if self.recompute == "blocks" and self.training:
                x = checkpoint(run, block, x, attend, use_reentrant=False, context_fn=_keeping_casts)
            else:
                x = run(block, x, attend)
        output: Tensor = self.ln_f(x)
        return output
