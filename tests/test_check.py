"""The door itself: what each check accepts, what it refuses, and in which words."""
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.base import check

X = torch.zeros(3, 2)
FORM = r"^value: got .+; need .+"


@pytest.mark.parametrize(("call", "got"), [
    (lambda: check.rows("value", [[1.0]]), "list"),
    (lambda: check.rows("value", torch.zeros(3)), r"shape \(3,\)"),
    (lambda: check.rows("value", torch.zeros(0, 2)), r"shape \(0, 2\)"),
    (lambda: check.rows("value", torch.zeros(2, 0)), r"shape \(2, 0\)"),
    (lambda: check.rows("value", X, dim=3), "2 columns"),
    (lambda: check.points("value", X.long()), "dtype torch.int64"),
    (lambda: check.points("value", X.half()), "dtype torch.float16"),
    (lambda: check.points("value", X, like=X.double()), "torch.float32 on cpu"),
    (lambda: check.points("value", torch.tensor([[math.nan, math.inf, 1.0]])), "2 non-finite entries of 3"),
    (lambda: check.vector("value", 1.0), "float"),
    (lambda: check.vector("value", torch.zeros(3), 2), r"shape \(3,\)"),
    (lambda: check.vector("value", torch.zeros(0)), r"shape \(0,\)"),
    (lambda: check.vector("value", X), r"shape \(3, 2\)"),
    (lambda: check.floating("value", None), "NoneType"),
    (lambda: check.log_weights("value", torch.zeros(3), 2, like=X), r"shape \(3,\)"),
    (lambda: check.log_weights("value", None, 2, like=X), "NoneType"),
    (lambda: check.log_weights("value", torch.tensor([0.0, math.inf]), 2, like=X), r"NaN or \+inf"),
    (lambda: check.log_weights("value", torch.tensor([0.0, math.nan]), 2, like=X), r"NaN or \+inf"),
    (lambda: check.log_weights("value", torch.full((2,), -math.inf), 2, like=X), "all −inf"),
    (lambda: check.positive("value", 0), "smallest 0"),
    (lambda: check.positive("value", -1.5), "smallest -1.5"),
    (lambda: check.positive("value", math.nan), "smallest nan"),
    (lambda: check.positive("value", True), "True"),
    (lambda: check.positive("value", "1"), "'1'"),
    (lambda: check.positive("value", torch.tensor([1.0, 0.0]), shape=(2,)), "smallest 0"),
    (lambda: check.positive("value", torch.ones(3), shape=(2,)), r"shape \(3,\)"),
    (lambda: check.positive("value", torch.ones(3)), r"shape \(3,\)"),
    (lambda: check.within("value", 1.1, 0, 1), r"1\.1; need numbers in \[0, 1\]"),
    (lambda: check.within("value", torch.tensor([0.5, -0.1]), 0, 1), "entries from -0.1 to 0.5"),
    (lambda: check.within("value", math.nan, 0, 1), "nan"),
    (lambda: check.within("value", "a", 0, 1), "'a'"),
    (lambda: check.count("value", 0), "0; need an integer ≥ 1"),
    (lambda: check.count("value", 2.0), r"2\.0"),
    (lambda: check.count("value", True), "True"),
    (lambda: check.choice("value", "c", ("a", "b")), "'c'; need one of 'a', 'b'"),
    (lambda: check.generator("value", 0), "int; need a torch.Generator"),
])
def test_refusals_name_the_argument_what_came_and_what_is_needed(call, got):
    with pytest.raises(ValueError, match=FORM) as error:
        call()
    with pytest.raises(ValueError, match=got):
        raise error.value


def test_what_is_valid_comes_back():
    assert check.points("x", X, dim=2, like=X) is X
    assert check.vector("v", X[0]) is not None and check.vector("v", X[0], 2).shape == (2,)
    weights = torch.tensor([0.0, -math.inf])
    assert check.log_weights("w", weights, 2, like=X) is weights
    assert check.positive("s", 1e-100).item() == 1e-100  # a number keeps its precision
    assert check.positive("s", 2, like=X).dtype == torch.float32
    assert check.positive("s", torch.ones(3), shape=(3,)).shape == (3,)
    assert check.count("n", 0, low=0) == 0
    check.within("t", torch.tensor([0.0, 1.0]), 0, 1)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_one_bad_entry_anywhere_is_found(n, d, bad, data):
    x = torch.zeros(n, d)
    check.points("x", x)
    x[data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, d - 1))] = bad
    with pytest.raises(ValueError, match=f"^x: got 1 non-finite entries of {n * d}; need finite"):
        check.points("x", x)


def test_values_are_not_read_inside_transforms():
    def f(x):
        check.points("x", x[None])
        check.positive("s", x.sum())
        check.within("t", x, 5, 6)
        check.log_weights("w", x, 2, like=x)
        return x.sum()

    bad = torch.tensor([[math.nan, -1.0]])
    assert torch.func.vmap(f)(bad).isnan().all()
    assert torch.func.grad(f)(bad[0]).tolist() == [1, 1]
    assert not check.opaque(bad, None, 1.0)
