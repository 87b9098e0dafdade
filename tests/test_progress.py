"""Progress reaches the pipeline's pipe when there is one, and the reader's screen otherwise."""
from __future__ import annotations

from lib.base.stage import PIPE, progress


def test_it_iterates_and_counts(capsys):
    assert list(progress(range(5), desc="counting")) == list(range(5))
    with progress(desc="by hand", total=3) as bar:
        bar.update(2)
        assert (bar.n, bar.total) == (2, 3)
    assert capsys.readouterr().out == ""


def test_inside_the_pipeline_nothing_is_printed(tmp_path, monkeypatch, capsys):
    pipe = tmp_path / "pipe"
    monkeypatch.setenv(PIPE, str(pipe))
    assert list(progress(range(3), desc="training")) == [0, 1, 2]
    with progress(desc="by hand", total=3) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
    text = pipe.read_text(encoding="utf-8")
    assert "by hand" in text and "/3" in text
