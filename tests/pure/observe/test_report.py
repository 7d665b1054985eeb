from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pure.observe.synthetic import write_run
from weft.runtime.errors import Mistake
from weft.runtime.observe import Metrics, RunFolder
from weft.runtime.observe.report import report


def test_a_whole_run_is_described_in_words_and_pictures(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ranks=2)
    text = report(folder.path)
    assert (
        re.sub(r"\d", "9", text.replace(str(folder.path), "RUN"))
        == """\
digits: 999 steps in 9 s, 9,999 samples/s; all steps done
  training    loss 9.9999 (mean of 99 steps)
  validation  loss 9.9999  accuracy 9.9999
  test        loss 9.9999  accuracy 9.9999

  rank  host  compute  exposed wire  hidden wire    idle  steps
     9  n9      99.9%          9.9%        99.9%    9.9%     99
     9  n9      99.9%          9.9%        99.9%    9.9%     99
  mean          99.9%          9.9%        99.9%    9.9%

pictures: RUN/loss.png  RUN/timeline.png"""
    )
    assert folder.loss_picture.stat().st_size > 20_000
    assert folder.timeline_picture.stat().st_size > 20_000


def test_a_run_that_broke_off_is_described_by_what_it_left(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    with Metrics(folder.metrics) as metrics:
        metrics.write(kind="step", step=1, loss=2.3)
    with folder.metrics.open("a") as file:
        file.write('{"kind": "st')
    text = report(folder.path)
    assert "digits: 1 step; it did not end" in text
    assert "metrics.jsonl that were skipped: 1" in text
    assert "no trace.json" in text
    assert folder.loss_picture.exists()
    assert not folder.timeline_picture.exists()


def test_a_run_that_did_nothing_says_so(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    folder.job.write_text("")
    assert report(folder.path).startswith("digits: no step was done")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="is not a run"):
        report(tmp_path)
