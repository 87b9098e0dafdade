"""lib.chapter.exercise: three words, whatever the answer does."""
from __future__ import annotations

import pytest
import torch

from lib.chapter.exercise import CORRECT, NOT_ATTEMPTED, NOT_YET, Check, close

WRONG = {"sum": lambda x: x.sum(), "unchanged": lambda x: x, "nought": lambda x: torch.tensor(0.0)}
MEAN = Check("1", {"two numbers": lambda f: close(f(torch.tensor([1.0, 3.0])), 2.0),
                   "one number": lambda f: close(f(torch.tensor([5.0])), 5.0)}, wrong=WRONG)


def test_the_right_answer_passes_and_the_wrong_ones_do_not():
    assert MEAN.judge(lambda x: x.mean()) == (CORRECT, "")
    for name, answer in WRONG.items():
        word, why = MEAN.judge(answer)
        assert word == NOT_YET and why, name


@pytest.mark.parametrize("answer", [None, ..., lambda x: None, lambda x: ..., lambda *a, **k: None])
def test_a_stub_is_not_an_attempt(answer):
    assert MEAN.judge(answer) == (NOT_ATTEMPTED, "")


def test_not_implemented_is_a_stub():
    def later(x):
        raise NotImplementedError

    assert MEAN.judge(later).word == NOT_ATTEMPTED


@pytest.mark.parametrize("answer", [lambda: 1.0, lambda x: 1 / 0, lambda x: "text", lambda x: [x, x],
                                    lambda x: x.absent, "text", 3.0, [], torch.zeros(3), object()])
def test_nothing_an_answer_does_comes_through(answer, capsys):
    MEAN(answer)
    out = capsys.readouterr().out
    assert out.startswith("exercise 1: not yet (") and out.count("\n") == 1
    assert MEAN.verdict.word == NOT_YET


def test_an_exception_is_told_with_its_line():
    def answer(x):
        "It does nothing first."
        raise ValueError("no such luck")

    word, why = MEAN.judge(answer)
    line = answer.__code__.co_firstlineno + 2
    assert word == NOT_YET and why == (
        f"two numbers: ValueError: no such luck, line {line}: raise ValueError(\"no such luck\")")


def test_a_case_may_give_a_hint_and_the_first_failing_one_is_named():
    two = Check("2", {"sign": lambda f: f > 0 or "think of the sign", "size": lambda f: f == 3}, wrong=WRONG)
    assert two.judge(-3) == (NOT_YET, "think of the sign")
    assert two.judge(2) == (NOT_YET, "it fails for: size")
    assert two.judge(3) == (CORRECT, "")
    assert two.judge(None) == (NOT_ATTEMPTED, "")


def test_an_answer_that_is_none_only_sometimes_has_been_attempted():
    assert MEAN.judge(lambda x: x.mean() if len(x) > 1 else None).word == NOT_YET


def test_the_line_is_one_that_a_machine_reads(capsys):
    MEAN(lambda x: x.mean())
    MEAN(None)
    assert capsys.readouterr().out == "exercise 1: correct\nexercise 1: not attempted\n"


def test_close_looks_at_shapes_and_sizes():
    assert close(torch.tensor([1.0, 2.0]), [1.0, 2.0]) and close(1e6 + 0.1, 1e6) and not close(1.1, 1.0)
    assert not close(torch.ones(3), torch.ones(3, 1)) and not close(float("nan"), 1.0)


def test_infinite_numbers_are_told_apart_and_forgive_nothing():
    inf = float("inf")
    assert close([-inf, 1.0], [-inf, 1.0]) and not close([0.0, 1.0], [-inf, 1.0]) and not close([inf, 1.0], [-inf, 1.0])
    assert not close([-inf, 5.0], [-inf, 1.0]) and not close([-inf, 1.0], [0.0, 1.0]) and not close(1 + 1j, 1.0)


def test_an_answer_that_changes_its_arguments_spoils_no_later_one():
    x, pair = torch.tensor([1.0, 3.0]), (torch.tensor([5.0]),)
    check = Check("4", {"in place": lambda f: close(f(x, pair), 7.0)}, wrong=WRONG)

    def slip(x, pair):
        x -= x.mean()
        pair[0].zero_()
        return x.sum()

    right = lambda x, pair: x.mean() + pair[0][0]
    assert [check.judge(answer).word for answer in (right, slip, right)] == [CORRECT, NOT_YET, CORRECT]


def test_a_check_needs_cases_and_wrong_answers():
    with pytest.raises(ValueError, match=r"^cases: got none; need at least one case"):
        Check("1", {}, wrong=WRONG)
    with pytest.raises(ValueError, match=r"^wrong: got 1 answers; need at least three"):
        Check("1", {"a": lambda f: True}, wrong={"sum": sum})
