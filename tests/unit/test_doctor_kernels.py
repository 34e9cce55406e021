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


def test_what_is_not_a_number_is_wrong_wherever_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention(lambda mixed, qkv: mixed if qkv.dtype == torch.float64 else _nan_gradient(mixed))
    monkeypatch.setattr(kernels, "packed_causal_attention", right)
    (found,) = [finding for finding in examine_kernels(CPU, "float32") if finding.subject == "attention"]
    assert found.level == "error"
    assert "nan" in found.found


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_ctx: object, *gradients: Tensor) -> Tensor:
        return torch.full_like(gradients[0], torch.nan)


def _nan_gradient(value: Tensor) -> Tensor:
    result: Tensor = _NanGradient.apply(value)
    return result


@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_another_dropout_than_the_one_asked_for_is_an_error(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(qkv: Tensor, attend: Attend, asked: float) -> Tensor:
        return packed_causal_attention(qkv, attend, dropout if asked else 0.0)

    monkeypatch.setattr(kernels, "packed_causal_attention", computed)
    (found,) = [finding for finding in examine_kernels(CPU, "float32") if finding.subject == "attention dropout"]
    assert found.level == "error"
    assert "expected 10%" in found.found
