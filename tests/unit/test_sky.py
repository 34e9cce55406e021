"""The task for SkyPilot: what it runs is a command of ours, and what it tries again is what the exit codes mean."""

import shlex
from pathlib import Path

import yaml

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_REFUSED, EXIT_RULE, EXIT_STOPPED
from launch.cli import build_parser

TASK = yaml.safe_load((Path(__file__).parents[2] / "sky/train.yaml").read_text(encoding="utf-8"))


def test_it_runs_a_command_of_ours() -> None:
    words = shlex.split(TASK["run"])
    assert words[:2] == ["exec", "~/trainer/bin/indextts-launch"]
    given = build_parser().parse_args(words[2:])
    assert given.place == "local"
    assert given.arguments[:2] == ["run.yaml", "run=$RUN"]
    assert set(TASK["envs"]) == {"RUN"}


def test_only_a_stop_and_a_kill_are_tried_again() -> None:
    recovery = TASK["resources"]["job_recovery"]
    assert recovery["max_restarts_on_errors"] == 0
    assert EXIT_STOPPED in recovery["recover_on_exit_codes"]
    assert not {EXIT_DATA, EXIT_REFUSED, EXIT_CONFIG, EXIT_RULE} & set(recovery["recover_on_exit_codes"])
    assert TASK["resources"]["use_spot"] is True
