"""What all tests share: explicit randomness, double precision on request, reproducible property tests."""
from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import matplotlib
import pytest
import torch

# A background job of a shell ignores Ctrl-C and so would all its children, whom tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

matplotlib.use("Agg")
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("house")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Identities are tested in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def outside_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes where a running pipeline reads."""
    for name in ("FIVE_ROADS_OUT", "FIVE_ROADS_PROGRESS", "FIVE_ROADS_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
