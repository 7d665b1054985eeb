"""The table of who computed what."""

from __future__ import annotations

from pathlib import Path

from weft.runtime.observe import Metrics
from weft.runtime.observe.history import read_metrics
from weft.runtime.observe.work import NOTE, work_table


def test_the_table_says_whose_work_each_rank_did(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(
            kind="work", rank=1, micro_batches={"1": 1200}, kernels={}, attempts=0, misses=0, left=7
        )
        metrics.write(
            kind="work", rank=0, micro_batches={"0": 1500, "1": 312, "3": 2}, kernels={"1": 22},
            attempts=317, misses=3, left=0,
        )  # fmt: skip
    lines = work_table(read_metrics(tmp_path / "metrics.jsonl").work).splitlines()
    assert lines == [
        "  rank  micro-batches  of others         kernels of others  tried  missed  left",
        "     0          1,814  312 of 1, 2 of 3  22 of 1              317       3     0",
        "     1          1,200  –                 –                      0       0     7",
        *f"  {NOTE}".splitlines(),
    ]


def test_of_a_resumed_run_the_later_rows_count() -> None:
    rows = [{"rank": 0, "micro_batches": {"0": count}} for count in (1, 2)]
    assert "     0              2" in work_table(rows)


def test_a_damaged_row_is_left_out_as_far_as_it_is_damaged() -> None:
    table = work_table([{"rank": 0, "micro_batches": {"0": 5, "x": 3, "1": "many"}, "kernels": 7}])
    assert "     0              5" in table


def test_there_is_no_table_where_nothing_could_be_taken() -> None:
    assert work_table([]) == ""
