"""The table of docs/adapters.md: what the plan takes on small cards."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.workload import FULL, FULL_2_5
from indextts_job.hardware.plan import HardwareConfig, HardwareFacts, Needs, make_plan
from indextts_job.model.adapter import Adapter
from indextts_job.model.adapter_config import AdapterConfig
from indextts_job.model.vocabulary import Vocabulary

PAGE = Path(__file__).parents[2] / "docs/adapters.md"
ROWS = re.findall(r"^\| \d+ GB \(([\d.]+) GiB\) \| (\w+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE.read_text("utf-8"), re.M)


def test_the_table_is_found() -> None:
    assert len(ROWS) == 4


@pytest.mark.parametrize(("gib", "base_dtype", "of_2_0", "of_2_5"), ROWS)
def test_the_page_says_what_the_plan_takes(gib: str, base_dtype: str, of_2_0: str, of_2_5: str) -> None:
    memory = int(float(gib) * 2**30)
    facts = HardwareFacts(device="cuda", name="", memory_bytes=memory, bfloat16=True, cpus=4, capability="8.6")
    adapter = Adapter(replace(AdapterConfig(rank=32), base_dtype=base_dtype))  # type: ignore[arg-type]
    for model, said in ((FULL, of_2_0), (FULL_2_5, of_2_5)):
        pieces = model.number_text_tokens
        needs = Needs(sizes=Vocabulary(pieces, pieces).sizes(model, adapter), longest_tokens=1000)
        planned = make_plan(facts, HardwareConfig(), needs).capacity_tokens
        assert int(said.replace(",", "")) == pytest.approx(planned, rel=0.02)
