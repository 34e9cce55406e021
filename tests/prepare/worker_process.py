"""Workers in processes of their own, forked from one that has imported everything, and killed at any point.

A point is a forward pass of the codec, an fsync, a rename, a link, a deletion, or a request to an object store; the
worker sends itself SIGKILL at its n-th.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import s3fs  # noqa: F401  # imported before the fork
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel  # noqa: F401

from indextts_job.cli import main
from indextts_job.commands import prepare  # noqa: F401
from indextts_job.prepare import run as _run  # noqa: F401
from indextts_job.prepare.encoders import encoders as _encoders  # noqa: F401
from indextts_job.prepare.encoders.codec import CodecEncoder
from tests.support.warm_parent import _install_s3_points, _pointed

AWAY_S = 1.5
"""A worker that waits longer, for the claim of a dead one, is killed from outside."""


def start(config: Path, worker: str, log: Path, at: int, environment: Mapping[str, str]) -> BaseProcess:
    """Start a worker.

    Args:
        config: Its configuration.
        worker: Its name.
        log: File that its output is appended to.
        at: The point at which it kills itself, from 1; 0 = it does not.
        environment: Added to that of the process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_work, args=(str(config), worker, str(log), at, dict(environment)))
    process.start()
    return process


def _work(config: str, worker: str, log: str, at: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with (
        Path(log).open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        if at:
            _kill_at(at)
        code = main(["prepare", config, "--worker", worker])
    sys.stdout.flush()
    os._exit(code)


def _kill_at(at: int) -> None:
    count = 0

    def point(_kind: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def forward(module: torch.nn.Module, _inputs: object) -> None:
        if isinstance(module, CodecEncoder):
            point("codec")

    torch.nn.modules.module.register_module_forward_pre_hook(forward)
    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, _pointed(getattr(os, name), name, point))
    _install_s3_points(point)
