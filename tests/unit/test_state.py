"""The state of a training, and how it is filled."""

import torch

from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import TrainState, build_optimizer
from tests.support.models import small_model


def state_of(*, loaded: bool) -> TrainState:
    model = small_model()
    optimizer = build_optimizer(model, OptimizerConfig(), loaded=loaded)
    return TrainState(model=model, optimizer=optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False), step=1)


def test_moments_that_are_loaded_leave_nothing_of_the_memory_that_was_there() -> None:
    saved = state_of(loaded=False)
    for kept in saved.optimizer.state.values():
        kept["exp_avg"].uniform_()
        kept["exp_avg_sq"].uniform_()
    tensors = {key: value for group in saved.tensor_groups(with_moments=True) for key, value in group.items()}
    state = state_of(loaded=True)
    for kept in state.optimizer.state.values():
        kept["exp_avg"].fill_(torch.nan)
        kept["exp_avg_sq"].fill_(torch.nan)
    state.load_moments(tensors, step=1)
    assert len(state.optimizer.state) == len(list(state.model.parameters()))
    found = {key: value for group in state.tensor_groups(with_moments=True) for key, value in group.items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
