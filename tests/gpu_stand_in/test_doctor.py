"""`doctor gpu` on a card that answers every call and computes nothing: the worst card that there can be."""

import re

from tests.gpu_stand_in.attempts import ended
from tests.gpu_stand_in.cards import T4
from tests.gpu_stand_in.environment import StandIn, started


def test_a_card_that_computes_nothing_is_found_out(stand_in: StandIn) -> None:
    with started(stand_in.variables(T4), "-m", "indextts_job", "doctor", "gpu") as child:
        code, output = ended(child)
    assert code == 70, output
    errors = set(re.findall(r"^error +(\S.*?)  ", output, re.MULTILINE))
    assert {
        *("attention", "attention dropout", "heads", "training step", "same bits", "validation", "copy for a save"),
    } <= errors, output
