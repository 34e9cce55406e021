"""Exit codes to decisions."""

import pytest

from launch.job import decide, describe, shell_code


@pytest.mark.parametrize(
    ("code", "failures", "move"),
    [
        (0, 0, "end"),
        (65, 1, "end"),
        (77, 1, "end"),
        (78, 1, "end"),
        (75, 0, "restart"),
        (75, 99, "restart"),
        (69, 1, "retry"),
        (70, 3, "retry"),
        (70, 4, "end"),
        (137, 1, "retry"),
        (143, 1, "retry"),
        (1, 4, "end"),
    ],
)
def test_the_exit_code_says_what_to_do(code: int, failures: int, move: str) -> None:
    assert decide(code, failures, 3) == move


def test_a_signal_is_a_code_as_shells_report_it() -> None:
    assert [shell_code(code) for code in (0, 75, -9, -15)] == [0, 75, 137, 143]
    assert describe(137) == "killed by SIGKILL"
    assert describe(75).startswith("stopped on request")
    assert describe(3) == "failed"
