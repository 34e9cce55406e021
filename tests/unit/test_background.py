"""Work in threads of its own."""

import os
import sys
import threading

import pytest

from indextts_job.background import GIVES_WAY, begin, give_way
from indextts_job.waiting import result


def test_the_exception_of_the_work_is_that_of_its_result() -> None:
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        result(begin(fails, "fails"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_only_the_thread_that_gives_way_has_a_lower_priority() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def lowered() -> int:
        give_way()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert result(begin(lowered, "gives way")) == GIVES_WAY
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
