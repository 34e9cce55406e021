"""`indextts-job` in a process whose file system stops to answer: opening certain files never returns.

python -m tests.support.hanging PATTERN TRIGGER MARK train run.yaml

Once the file TRIGGER is there, every opening of a path that contains PATTERN hangs; the file MARK is made when the
first one does. It happens below the program, in the functions of the standard library that open files.
"""

import builtins
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any


def hang_on(pattern: str, trigger: str, mark: Path) -> None:
    forever = threading.Event()

    def guarded(function: Any) -> Any:
        def wrapper(path: Any, *arguments: Any, **named: Any) -> Any:
            if pattern in str(path) and os.path.exists(trigger):  # noqa: PTH110  # Path would open through here
                os.close(os_open(mark, os.O_CREAT))
                forever.wait()
            return function(path, *arguments, **named)

        return wrapper

    os_open = os.open
    os.open = guarded(os.open)
    io.open = builtins.open = guarded(io.open)


if __name__ == "__main__":
    hang_on(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    del sys.argv[1:4]
    from indextts_job.entry import entry

    entry()
