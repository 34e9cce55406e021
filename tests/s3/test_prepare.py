"""A preparation in a bucket: killed workers, two finishers of one unit, and a store that ignores conditions."""

from pathlib import Path

from tests.prepare.conftest import Run, run, voices  # noqa: F401
from tests.prepare.kills import demand_same, kill_until
from tests.support.servers import Server, client_environment
from tests.support.voices import Voices

# With those of `tests/prepare/test_kills.py` forty.
KILLS = 16


def test_kills_in_a_bucket_leave_the_bytes_of_an_undisturbed_run(
    voices: Voices,  # noqa: F811
    run: Run,  # noqa: F811
    tmp_path: Path,
    s3_run: str,
    seaweed: Server,
) -> None:
    settings = voices.settings(tmp_path / "undisturbed", unit=1)
    assert run(settings) == 0
    settings["storage"] = {"retry_seconds": 10.0}
    outputs = [f"{s3_run}/killed-{number}" for number in range(20)]
    killed, made = kill_until(settings, outputs, KILLS, tmp_path, client_environment(seaweed))
    assert killed >= KILLS
    demand_same(made, str(tmp_path / "undisturbed"))
