"""A preparation in a bucket: killed workers, two finishers of one unit, and a store that ignores conditions."""

from pathlib import Path

from indextts_job.data.sources import load_dataset
from indextts_job.prepare.run import read_work_list
from tests.prepare.conftest import Run, run, voices  # noqa: F401
from tests.prepare.kills import demand_same, kill_until
from tests.prepare.outcomes import TRAIN, indexes
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
    # And what lies in the bucket is what training reads there.
    assert samples_of(voices, made[0], tmp_path) == samples_of(voices, str(tmp_path / "undisturbed"), tmp_path)


def samples_of(voices: Voices, output: str, cache: Path) -> list[tuple[str, list[int], bytes]]:  # noqa: F811
    limits = read_work_list(voices.config("unused")).limits
    dataset = load_dataset([f"{output}/{TRAIN}"], limits, skip_bad_samples=False, cache_folder=str(cache / "cache"))
    return [
        (one.id, one.codes.tolist(), one.condition.tobytes() + one.emotion.tobytes())
        for one in dataset.samples(range(len(dataset)))
    ]


def test_a_store_that_ignores_conditions_holds_the_same_dataset(
    voices: Voices,  # noqa: F811
    run: Run,  # noqa: F811
    tmp_path: Path,
    lawless_run: str,
) -> None:
    assert run(voices.settings(tmp_path / "lawful")) == 0
    assert run(voices.settings(lawless_run, storage={"retry_seconds": 10.0})) == 0
    assert indexes(lawless_run) == indexes(tmp_path / "lawful")
