"""The help of every command: two examples that parse, and the default of every option."""

import argparse
import shlex

import pytest

from indextts_job.cli import build_parser, main
from indextts_job.commands.examples import EXAMPLES, every_command
from indextts_job.legacy.flags import normalise

COMMANDS = dict(every_command(build_parser()))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_two_examples_that_parse(path: tuple[str, ...]) -> None:
    assert len(EXAMPLES[path]) >= 2
    for example in EXAMPLES[path]:
        program, *arguments = shlex.split(example.partition(" >")[0])
        assert program == "indextts-job"
        assert tuple(arguments[: len(path)]) == path
        build_parser().parse_args(normalise(arguments))
        assert example in COMMANDS[path].format_help()


def test_no_example_is_of_a_command_that_is_gone() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_defaults_are_shown(path: tuple[str, ...]) -> None:
    silent: tuple[object, ...] = (None, False, "", [], argparse.SUPPRESS)
    for action in COMMANDS[path]._actions:
        if action.option_strings and action.default not in silent:
            assert "default" in (action.help or ""), action.option_strings


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -"), ("zsh", "#compdef indextts-job")])
def test_completion_knows_the_commands(shell: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert words in script
    assert "--help-config" in script
