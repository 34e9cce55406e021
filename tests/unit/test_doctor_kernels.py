"""`doctor gpu` finds kernels that compute something else. The same checks run on a CPU, with kernels made wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from indextts_job.doctor import kernels
from indextts_job.doctor.findings import exit_code
from indextts_job.doctor.kernels import examine_kernels
from indextts_job.hardware.plan import Precision
from indextts_job.model.attention import Attend, packed_causal_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_right_kernels_are_found_right(precision: Precision) -> None:
    findings = list(examine_kernels(CPU, precision))
    assert [finding.level for finding in findings] == ["ok"] * 7, findings


def attention(wrong: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def computed(qkv: Tensor, attend: Attend, dropout: float) -> Tensor:
        return wrong(packed_causal_attention(qkv, attend, dropout), qkv)

    return computed


def test_wrong_values_a_wrong_mask_and_a_refusal_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> dict[str, str]:
        findings = list(examine_kernels(CPU, "float32"))
        assert exit_code(findings) == 70
        return {finding.subject: finding.found for finding in findings if finding.level == "error"}

    def other_gradient(mixed: Tensor, qkv: Tensor) -> Tensor:
        return mixed + 0.1 * (qkv[:, 2] - qkv[:, 2].detach())

    def refused(mixed: Tensor, _qkv: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device\nmore")

    double = torch.float64
    # The reference in float64 stays right.
    spared = attention(lambda mixed, qkv: mixed if qkv.dtype == double else 1.01 * mixed)
    monkeypatch.setattr(kernels, "packed_causal_attention", spared)
    assert found() == {"attention": "values and gradients are off by 0.01, at most 0.0001 is rounding"}
    spared = attention(lambda mixed, qkv: mixed if qkv.dtype == double else other_gradient(mixed, qkv))
    monkeypatch.setattr(kernels, "packed_causal_attention", spared)
    assert set(found()) == {"attention", "attention dropout"}
    monkeypatch.setattr(kernels, "packed_causal_attention", attention(refused))
    assert found()["attention"] == "RuntimeError: no kernel image is available for execution on the device"
