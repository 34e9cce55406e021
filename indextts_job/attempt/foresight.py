"""Warns before the first step about settings that will not have the effect that they seem to have. Pure."""

from collections.abc import Iterator

from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.training.quality import ValidationConfig, parse_goals
from indextts_job.training.schedule import ScheduleConfig


def foreseen(
    total_steps: int,
    schedule: ScheduleConfig,
    validation: ValidationConfig,
    checkpoint: CheckpointConfig,
    *,
    validates: bool,
) -> Iterator[str]:
    """Warnings, one sentence each.

    Args:
        total_steps: Updates of the whole run.
        schedule: Settings of the learning rate.
        validation: Settings of validations.
        checkpoint: Settings of saves.
        validates: Whether there are validation samples.
    """
    # Warnings, not errors: a short trial run with the settings of a long one is legitimate.
    # Such a run never reaches its learning rate.
    if schedule.warmup_steps >= total_steps:
        reached = schedule.learning_rate * max(0, total_steps - 1) / max(1, schedule.warmup_steps)
        yield (
            f"the warm-up (schedule.warmup_steps={schedule.warmup_steps}) is as long as the run or longer "
            f"({total_steps} steps): the learning rate only rises, to {reached:.3g} of {schedule.learning_rate:.3g}"
        )
    if not validates:
        yield "no validation samples: there will be no best checkpoint, and nothing shows overfitting"
    elif validation.interval_steps > total_steps:
        yield (
            f"validation.interval_steps={validation.interval_steps} is longer than the run ({total_steps} steps): it "
            "is validated once, at its end"
        )
    if checkpoint.interval_steps > total_steps:
        yield (
            f"checkpoint.interval_steps={checkpoint.interval_steps} is longer than the run ({total_steps} steps): a "
            "kill without notice loses everything since the last validation that improved"
        )
    for goal in parse_goals(validation.stop_unless):
        # Goals are judged at validations, and the last one is at the end of the run.
        if goal.step > total_steps:
            yield (
                f"the goal for {goal.metric} by step {goal.step} lies behind the end of the run ({total_steps} steps): "
                "it is never judged"
            )
