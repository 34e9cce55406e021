"""The doctor at a bucket."""

import json
from typing import Any

import pytest

from indextts_job.cli import main
from indextts_job.doctor import machine
from indextts_job.storage.remote_storage import open_storage


def storage_rows(url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    main(["doctor", "gpu", url, "--json"])
    return {row["subject"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_good_bucket_is_tried_and_left_as_it_was(s3_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = storage_rows(s3_run, capsys)
    assert rows["storage"]["level"] == rows["conditional writes"]["level"] == "ok"
    assert "/s, read " in rows["storage"]["found"]
    assert open_storage(s3_run).list("doctor") == {}


def test_a_store_that_ignores_conditions_is_warned_about(lawless_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = storage_rows(lawless_run, capsys)
    assert rows["storage"]["level"] == "ok"
    assert rows["conditional writes"]["level"] == "warning"


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [("AWS_SECRET_ACCESS_KEY", "wrong", 77), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", 69)],
)
def test_what_is_wrong_is_said_with_the_code_of_training(
    s3_run: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    code: int,
) -> None:
    monkeypatch.setattr(machine, "RETRY_S", 0.2)
    monkeypatch.setenv(variable, value)
    row = storage_rows(s3_run, capsys)["storage"]
    assert (row["level"], row["exit_code"]) == ("error", code)
