"""The short form of fuzz_inputs.py: no case ends in a traceback, and none loses anything without a word."""

import pytest
from fuzz_inputs import FAULTS, SilentLoss, fuzz_inputs, fuzz_json, run_cases


@pytest.mark.parametrize("cases", [lambda processor: fuzz_json(40, seed=1), lambda p: fuzz_inputs(60, p, seed=1)])
def test_odd_input_is_taken_whole_or_refused_in_one_line(cases, processor):
    found = cases(processor)
    assert found["taken"] and found["refused"]
    assert not any(found[fault] for fault in FAULTS)


def test_a_fault_of_each_kind_is_seen():
    """What the table counts, it can count."""

    def crashes(draw):
        raise KeyError("qa")

    def refuses_in_two_lines(draw):
        raise ValueError("one\ntwo")

    def loses(draw):
        raise SilentLoss("3 questions, 2 written")

    assert run_cases(2, crashes, 0)["traceback"] == 2
    assert run_cases(1, refuses_in_two_lines, 0)["traceback"] == 1
    assert run_cases(1, loses, 0)["silent loss"] == 1
    assert run_cases(1, lambda draw: None, 0)["taken"] == 1
