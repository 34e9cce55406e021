"""The operators that attention calls by name, and one graph for every number of tokens."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from indextts_job.model import attention
from indextts_job.model.attention import Padding, SampleEdges, attend_with, longest_bound, packed_causal_attention
from indextts_job.model.transformer import Transformer


def test_the_operator_that_has_no_public_name_takes_what_it_is_given() -> None:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    assert positional == [
        *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
        *("dropout_p", "is_causal", "return_debug_mask"),
    ]
    # Whatever else a release of torch adds has a default.
    assert all(argument.has_default_value() for argument in schema.arguments if argument.kwarg_only)
    assert schema.returns[0].name == "output"
    assert "SymInt max_q" in str(schema)  # else a compiled graph would hold for one length only


def edges_of(lengths: list[int]) -> SampleEdges:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return SampleEdges(starts, lengths, longest_bound(lengths))


@pytest.mark.parametrize("lengths", [[5], [64], [3, 70, 64, 1], [128, 128]])
def test_padded_samples_attend_as_one_by_one(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    # The way of GPUs below sm_80, here with torch's own choice of a kernel.
    monkeypatch.setattr(attention, "SDPBackend", _AnyBackend)
    edges, tokens = edges_of(lengths), sum(lengths)
    values = torch.randn(tokens, 3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(tokens, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for kernel in ("loop", "padded"):
        monkeypatch.setattr(attention, "attention_kernel", lambda _device, _dtype, kernel=kernel: kernel)
        qkv = values.clone().requires_grad_()
        attend = attend_with(qkv, qkv.dtype, edges)
        assert isinstance(attend.padding, Padding) == (kernel == "padded")
        mixed = packed_causal_attention(qkv, attend, 0.0)
        mixed.backward(upstream)
        assert qkv.grad is not None
        found.append((mixed.detach(), qkv.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


class _AnyBackend:
    from torch.nn.attention import SDPBackend as _Backend

    EFFICIENT_ATTENTION = _Backend.MATH


def test_the_longest_length_is_rounded_up() -> None:
    assert [longest_bound(lengths) for lengths in ([], [1], [64], [3, 65])] == [0, 64, 64, 128]


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An operator of the same name and shapes for CPUs, where torch has none; its values do not matter here."""
    library = torch.library.Library("aten", "IMPL")

    def forward(query: Tensor, *_others: object, **_options: object) -> tuple[Tensor, ...]:
        tokens, heads, _ = query.shape
        state = torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64)
        return query.clone(), query.new_zeros(heads, tokens, dtype=torch.float32), *state, query.new_empty(0)

    def backward(_grad: Tensor, *inputs: Tensor, **_options: object) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in inputs[:3])

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    monkeypatch.setattr(attention, "attention_kernel", lambda _device, _dtype: "flash")
    yield
    library._destroy()


@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
@pytest.mark.parametrize("recompute", ["nothing", "gelu", "blocks"])
def test_one_graph_holds_for_all_packed_shapes(flash_on_cpu: None, recompute: str) -> None:
    torch.compiler.reset()
    counters.clear()
    model = Transformer(width=16, layers=3, heads=2, dropout=0.1).train()
    model.recompute = recompute  # type: ignore[assignment]
    model.compile_blocks("aot_eager")
    # The first pass compiles, at lengths that are always the same; here as elsewhere, one of a block of its own.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ahead = torch.zeros(512, 16, requires_grad=True)
        model.pass_through_new_block(ahead, edges_of([256, 256])).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    shapes = [[40, 30], [7], [65, 64, 63], [1, 1, 1, 1], [200], [128, 5], *([30 + 7 * i, 90 - i] for i in range(6))]
    for lengths in shapes:
        x = torch.randn(sum(lengths), 16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x, edges_of(lengths)).sum().backward()
        assert x.grad is not None
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    # Without gradients the blocks run as they are: nothing is compiled for a validation.
    with torch.no_grad():
        model.eval()(torch.randn(50, 16), edges_of([50]))
    assert counters["stats"]["unique_graphs"] == 1
    assert model.compiled
    model.train().run_uncompiled()
    assert not model.compiled
    model(torch.randn(9, 16), edges_of([9]))
    assert counters["stats"]["unique_graphs"] == 1
