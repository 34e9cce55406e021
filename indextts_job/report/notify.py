"""Runs the user's command when an attempt ends or a language is being forgotten: for a message to a chat, say."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from indextts_job.background import begin
from indextts_job.programs import run_program
from indextts_job.report.events import AttemptEnded, AttemptStarted, Event, Notice

logger = logging.getLogger(__name__)

TOPICS = ("guard", "speaking", "overfitting")
"""Warnings that somebody may want to hear of while the training goes on."""


class NotifyCommand:
    """A reader of events. The command gets a JSON object on its standard input; it can neither fail nor hold a run."""

    def __init__(self, command: Sequence[str], limit_s: float, run: str) -> None:
        """Nothing is started yet.

        Args:
            command: Program and arguments.
            limit_s: Seconds after which it is ended.
            run: URL of the run, without secrets.
        """
        self._command, self._limit_s, self._run = command, limit_s, run
        self._facts: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Run the command for an event that it is meant for."""
        match event:
            case AttemptStarted():
                self._facts = {"attempt": event.attempt, "total_steps": event.total_steps}
            case Notice(warning=True) if event.topic in TOPICS:
                told = self._document(event.topic, event.step, message=event.message)
                begin(lambda: self._tell(told), "notification")
            case AttemptEnded():
                # Waited for: the process ends behind it. All is committed, and the exit guard keeps the deadline.
                self._tell(self._document(event.outcome, event.step, exit_code=event.exit_code, message=event.message))

    def _document(self, kind: str, step: int, **more: object) -> str:
        return json.dumps({"event": kind, "run": self._run, "step": step, **self._facts, **more}, ensure_ascii=False)

    def _tell(self, document: str) -> None:
        try:
            ended = run_program(self._command, self._limit_s, told=document)
        except OSError as error:
            logger.warning("report.command cannot be started, nobody was told: %s", error)
            return
        if ended.code:
            logger.warning("report.command ended with %d: %s", ended.code, ended.output[-1000:].strip())
        elif ended.why:
            logger.warning("report.command was ended: %s", ended.why)
