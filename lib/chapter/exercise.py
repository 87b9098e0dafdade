"""Exercises that cannot break a notebook, and checks that a wrong answer does not pass.

    check_1 = exercise.Check("1", {
        "two points": lambda f: close(f(two, 1.0), …),
        "unequal weights": lambda f: close(f(cloud, 0.3), …),
    }, wrong={"σ for σ²": lambda x, s: …, "the sum, not the mean": lambda x, s: …, "unchanged": lambda x, s: x})

    def covariance(x, sigma):
        return None  # your turn

    check_1(covariance)

A case takes the answer, calls it if it is a function, and returns whether it is right, or a hint.  The answer is called
nowhere else, so whatever it does, the reader sees one line,

    exercise 1: not attempted | correct | not yet (why)

which `python -m pipeline grade` reads too.  `wrong` lists answers that a reader may come to and that must not pass;
they are never run in a notebook, but a test runs them all.
"""
import linecache
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from lib.base import check

NOT_ATTEMPTED, CORRECT, NOT_YET = "not attempted", "correct", "not yet"

Case = Callable[[Any], "bool | str"]  # of the answer: right or wrong, or a hint in words


class Verdict(NamedTuple):
    """What a check says of an answer."""

    word: str  # one of the three above
    why: str = ""


class Check:
    """The check of one exercise; calling it with an answer prints the verdict."""

    def __init__(self, name: str, cases: dict[str, Case], *, wrong: dict[str, Any]) -> None:
        if not cases:
            check.refuse("cases", "none", "at least one case")
        if len(wrong) < 3:
            check.refuse("wrong", f"{len(wrong)} answers", "at least three that must not pass")
        self.name, self.cases, self.wrong = name, cases, wrong
        self.verdict = Verdict(NOT_ATTEMPTED)  # of the last answer

    def __call__(self, answer: Any) -> None:
        """Print the verdict on `answer`, a function or a value."""
        self.verdict = self.judge(answer)
        word, why = self.verdict
        print(f"exercise {self.name}: {word}" + (f" ({why})" if why else ""))

    def judge(self, answer: Any) -> Verdict:
        """The verdict on `answer`; never raises an Exception, whatever the answer does."""
        seen: list[Any] = [] if callable(answer) else [answer]

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                out = answer(*map(_copy, args), **{key: _copy(value) for key, value in kwargs.items()})
            except NotImplementedError:
                out = None
            seen.append(out)
            return out

        for case, right in self.cases.items():
            try:
                found = right(watched if callable(answer) else answer)
                why = found if isinstance(found, str) else "" if bool(found) else f"it fails for: {case}"
            except Exception as error:
                why = f"{case}: {_told(error, answer)}"
            if why and seen and all(out is None or out is Ellipsis for out in seen):
                return Verdict(NOT_ATTEMPTED)
            if why:
                return Verdict(NOT_YET, " ".join(why.split()))
        return Verdict(CORRECT)


def _copy(value: Any) -> Any:
    """A case's own tensors are not the answer's to change."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(map(_copy, value)) if type(value) in (tuple, list) else value


def close(got: Any, wanted: Any, tolerance: float = 1e-6) -> bool:
    """Whether real numbers, arrays or tensors of one shape agree: the infinite ones exactly, the others to `tolerance`
    of the largest finite one wanted or of 1."""
    got, wanted = (np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v) for v in (got, wanted))
    if got.shape != wanted.shape or np.iscomplexobj(got):
        return False
    finite = np.isfinite(wanted)
    scale = max(1.0, float(np.abs(wanted[finite]).max(initial=0.0)))
    near = np.abs(got[finite].astype(float) - wanted[finite]) <= tolerance * scale
    return bool(near.all()) and np.array_equal(got[~finite], wanted[~finite])


def _told(error: Exception, answer: Any) -> str:
    """The message of an exception, with the line of the reader's own function where it came from there."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    own = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    if own is None or not lines:
        return said[:300]
    text = linecache.getline(own, lines[-1]).strip()
    return f"{said[:300]}, line {lines[-1]}" + (f": {text}" if text else "")
