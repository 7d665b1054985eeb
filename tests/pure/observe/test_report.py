from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pure.observe.synthetic import ONE, TWO, Model, exchange_trace, write_run
from weft.runtime.errors import Mistake
from weft.runtime.observe import Metrics, RankTrace, RunFolder, Span, write_chrome
from weft.runtime.observe.report import PORTIONS_SHOWN, compare, report


def masked(text: str, **paths: Path) -> str:
    """Without what differs from run to run: every figure a 9, every change ±."""
    for name, path in paths.items():
        text = text.replace(str(path), name)
    text = re.sub(r"[+-](\S+ points)", r"±\1", re.sub(r" +", " ", text))
    return re.sub(r"\d+", "9", text)


def run(parent: Path, name: str, traces: list[RankTrace]) -> RunFolder:
    folder = RunFolder(parent / name)
    folder.checkpoints.mkdir(parents=True)
    write_chrome(folder.trace, traces)
    return folder


def test_a_whole_run_is_described_in_words_and_pictures(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ranks=2)
    assert (
        masked(report(folder.path), RUN=folder.path)
        == """\
digits: 9 steps in 9 s, 9,9 samples/s; all steps done
 training loss 9.9 (mean of 9 steps)
 validation loss 9.9 accuracy 9.9
 test loss 9.9 accuracy 9.9

 rank host compute wire busy exposed hidden idle steps
 9 n9 9.9% 9.9% 9.9% 9.9% 9.9% 9
 9 n9 9.9% 9.9% 9.9% 9.9% 9.9% 9
 mean 9.9% 9.9% 9.9% 9.9% 9.9%
 exposed: the wire is busy and no kernel runs; hidden: share of the wire's time

 bound by compute: 9.9% of the ranks' training time

 portions: medians over steps and ranks, in ms; times count from the step's first backward kernel
 layer portion KB ready posted done used waiting travelling lying exposed
 9 conv9 9,9 – 9.9 9.9 – – 9.9 – 9.9
 9 conv9 9,9 – 9.9 9.9 – – 9.9 – 9.9
 9 dense9 9,9 – 9.9 9.9 – – 9.9 – 9.9
 9 dense9 9,9 – 9.9 9.9 – – 9.9 – 9.9

every step and portion: RUN/portions.csv

pictures: RUN/loss.png RUN/timeline.png"""
    )
    assert folder.loss_picture.stat().st_size > 20_000
    assert folder.timeline_picture.stat().st_size > 20_000
    assert len(folder.portions.read_text().splitlines()) == 1 + 2 * 12 * 4


def test_what_the_exchange_costs_the_lane_has_a_column(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", [exchange_trace(0, "n1", ONE, reduce_ms=0.3)])
    text = masked(report(folder.path))
    assert "rank host compute exchange wire busy exposed hidden idle steps" in text
    assert "exchange: sums and encodings, a part of compute" in text


NO_WIRE = {
    "one rank": (["n1"], "no wire: one rank"),
    "a node": (["n1", "n1"], "no wire: one node, gradients meet in shared memory"),
    "two nodes": (["n1", "n2"], "no wire: the trace holds no transfers"),
}


@pytest.mark.parametrize(("hosts", "words"), NO_WIRE.values(), ids=NO_WIRE.keys())
def test_where_nothing_is_sent_the_report_says_why(tmp_path: Path, hosts: list[str], words: str) -> None:
    traces = [exchange_trace(rank, host, ONE, sends=False) for rank, host in enumerate(hosts)]
    text = report(run(tmp_path, "a", traces).path)
    assert words in text
    assert "hidden" not in text
    assert "portions" not in text


def test_a_rank_that_leaves_sending_to_others_is_in_the_mean_as_it_is_shown(tmp_path: Path) -> None:
    traces = [exchange_trace(rank, "n1", ONE, sends=rank == 0) for rank in range(2)]
    lines = report(run(tmp_path, "a", traces).path).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("  rank  host"))
    sends, quiet, mean = ([cell.rstrip("%") for cell in line.split()] for line in lines[head + 1 : head + 4])
    assert quiet[3:6] == ["0.0", "0.0", "–"]
    assert [float(cell) for cell in mean[2:4]] == pytest.approx(
        [float(cell) / 2 for cell in sends[3:5]], abs=0.1
    )
    assert mean[4] == sends[5]


def test_the_time_of_a_step_is_without_the_evaluations_behind_each(tmp_path: Path) -> None:
    def traced(evaluation_ms: int) -> RankTrace:
        spans, now = list[Span](), 0
        for step in range(6):
            facts = {"step": step, "micro_batch": 0, "model": "a"}
            for name, phase, ms, of in (
                ("load", "load", 1, facts),
                ("dense_1.forward", "forward", 3, facts),
                ("dense_1.weight_gradient", "weight_gradient", 4, facts),
                ("portion 0 (dense_1).update", "update", 2, facts),
                ("rest", "rest", 0, {}),
                ("dense_1.forward", "forward", evaluation_ms, {}),
            ):
                end = now + ms * 1_000_000
                spans.append(Span("compute", name, now, end, {"phase": phase, **of}))
                now = end
        return RankTrace(0, "n1", tuple(spans))

    long, short = (run(tmp_path, str(ms), [traced(ms)]) for ms in (700, 5))
    text = compare(long.path, short.path)
    assert re.search(r"^  step, median +10\.00 ms +10\.00 ms +×1\.00$", text, re.MULTILINE), text


def test_two_models_are_told_apart(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", [exchange_trace(0, "n1", TWO)])
    text = masked(report(folder.path))
    assert " idle steps of 9 models\n" in text
    assert " model compute own kernels others' kernels none\n mlp 9.9% 9.9% 9.9% 9.9%\n cnn 9.9%" in text
    assert " model layer portion KB ready" in text
    assert " mlp 9a dense_9 rows 9-9 9,9 9.9" in text


def test_of_many_portions_the_most_exposed_are_shown(tmp_path: Path) -> None:
    deep = Model("deep", (1.0,) * 20, (1,) * 20, 2.0)
    lines = report(run(tmp_path, "a", [exchange_trace(0, "n1", [deep])]).path).splitlines()
    assert sum(" dense_" in line for line in lines) == PORTIONS_SHOWN
    assert any(line.startswith("  and 4 more, which are exposed less: ") for line in lines)
    assert any(line.startswith("  1      dense_1 ") for line in lines)  # the last to come is waited for


def test_two_runs_are_laid_side_by_side(tmp_path: Path) -> None:
    one = run(tmp_path, "a", [exchange_trace(0, "n1", ONE, reduce_ms=0.3)])
    other = write_run(tmp_path, ranks=2)
    assert (
        masked(compare(one.path, other.path), A=one.path)
        == """\
 a digits
 ranks 9 9
 steps 9 9
 speed – 9,9 samples/s
 step, median 9.9 ms 9.9 ms ×9.9
 compute 9.9% 9.9% ±9.9 points
 of it for the exchange 9.9% –
 wire busy 9.9% 9.9% ±9.9 points
 exposed 9.9% 9.9% ±9.9 points
 hidden, of the wire's time 9.9% 9.9% ±9.9 points
 idle 9.9% 9.9% ±9.9 points
 training loss – 9.9
 validation loss – 9.9
 validation accuracy – 9.9
 test loss – 9.9
 test accuracy – 9.9

picture: A/compare.png"""
    )
    assert one.compare_picture.stat().st_size > 20_000


def test_a_comparison_and_a_report_tell_how_gradients_travelled(tmp_path: Path) -> None:
    one, other = write_run(tmp_path, ranks=2), write_run(tmp_path, ranks=2)
    row = {"kind": "exchange", "step": 20, "portion_bytes": 262144, "credit": 4, "rule": "first_come"}
    for number in (20, 30, None):  # the last is damaged, and does not count
        line = json.dumps({**row, "step": number, "plan": f"of step {number}"})
        other.metrics.write_text(other.metrics.read_text() + line + "\n")
    words = "gradients travelled in portions of 262,144 bytes, 4 at once, first_come"
    assert f"  {other.path.name}: {words}\n" in compare(one.path, other.path)
    assert f"\n\n  {words}\n  plan since step 30: of step 30\n\n" in report(other.path)
    assert "gradients travelled" not in report(one.path)


def test_a_comparison_does_without_what_is_not_there(tmp_path: Path) -> None:
    with_trace, without = write_run(tmp_path, ranks=1), write_run(tmp_path, ranks=1)
    without.trace.unlink()
    text = compare(with_trace.path, without.path)
    assert f"no trace.json in {without.path}" in text
    assert "picture" not in text
    assert with_trace.path.name in text  # the job's name would not tell which is which


def test_a_run_that_broke_off_is_described_by_what_it_left(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    with Metrics(folder.metrics) as metrics:
        metrics.write(kind="step", step=1, loss=2.3)
    with folder.metrics.open("a") as file:
        file.write('{"kind": "st')
    text = report(folder.path)
    assert "digits: 1 step; it runs still, or broke off" in text
    assert "metrics.jsonl that were skipped: 1" in text
    assert "no trace.json" in text
    assert folder.loss_picture.exists()
    assert not folder.timeline_picture.exists()


def test_a_run_that_was_resumed_tells_what_is_of_before(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ranks=1)
    assert "the trace is of steps" not in report(folder.path)
    with Metrics(folder.metrics) as metrics:
        metrics.write(kind="start", step=400, ranks=1)
        metrics.write(kind="step", step=401, loss=0.03, time_s=2.0)
    text = report(folder.path)
    assert re.search(r"^digits: 401 steps in 8 s, .*; it runs still, or broke off$", text, re.MULTILINE)
    assert re.search(r"^  test .* \(after step 400\)$", text, re.MULTILINE)
    assert re.search(r"^  the trace is of steps 1 to \d+: what came later has not ended$", text, re.MULTILINE)


def of_later_steps(by: int) -> RankTrace:
    """A trace of eight steps, the first of them after `by` others."""
    spans = (span for span in exchange_trace(0, "n1", ONE).spans if "step" in span.args)
    later = (span._replace(args={**span.args, "step": span.args["step"] + by}) for span in spans)
    return RankTrace(0, "n1", tuple(later))


def test_a_run_that_was_resumed_and_ended_tells_of_which_steps_its_trace_is(tmp_path: Path) -> None:
    folder, other = write_run(tmp_path, ranks=1), write_run(tmp_path, ranks=1)
    steps = folder.metrics.read_text().splitlines(keepends=True)
    start = '{"kind": "start", "step": 5, "ranks": 1}\n'
    folder.metrics.write_text("".join([*steps[:5], start, *steps[5:]]))
    write_chrome(folder.trace, [of_later_steps(5)])
    told = "the trace is of steps 6 to 13: since the run was resumed"
    assert f"\n  {told}\n" in report(folder.path)
    for text in (compare(folder.path, other.path), compare(other.path, folder.path)):
        assert f"\n  {folder.path.name}: {told}\n" in text
        assert text.count("the trace is of steps") == 1


def test_a_run_that_was_resumed_with_nothing_left_to_do_tells_of_which_steps_its_trace_is(
    tmp_path: Path,
) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    with Metrics(folder.metrics) as metrics:
        for start, until in ((0, 5), (5, 13), (13, 13)):
            metrics.write(kind="start", step=start, ranks=1)
            for step in range(start + 1, until + 1):
                metrics.write(kind="step", step=step, loss=0.5, time_s=step - start)
            metrics.write(kind="end", step=until, reason="all steps done")
    write_chrome(folder.trace, [of_later_steps(5)])
    assert "\n  the trace is of steps 6 to 13\n" in report(folder.path)
    write_chrome(folder.trace, [of_later_steps(0)])
    with folder.metrics.open("a") as file:
        file.write('{"kind": "start", "step": 8, "ranks": 1}\n')
    assert "the trace is of steps" not in report(folder.path)


def test_a_run_whose_metrics_are_gone_is_not_said_to_have_done_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ranks=1)
    folder.metrics.unlink()
    text = report(folder.path)
    assert text.startswith(
        "digits: metrics.jsonl, which would tell what its steps reached, is missing or empty"
    )
    assert "no step was done" not in text
    assert " rank  host" in text


def test_a_trace_that_may_not_be_read_is_told_of(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ranks=1)
    folder.trace.unlink()
    folder.trace.mkdir()
    assert f"{folder.trace}: cannot be read: Is a directory" in report(folder.path)


def test_where_requests_were_answered_compute_is_said_to_hold_them(tmp_path: Path) -> None:
    trace = exchange_trace(0, "n1", ONE, sends=False)
    assert "answered requests" not in report(run(tmp_path, "a", [trace]).path)
    answer = Span("compute", "infer a/1@3", 0, 5, {"phase": "inference"})
    text = report(run(tmp_path, "b", [RankTrace(0, "n1", (answer, *trace.spans))]).path)
    assert "\n  compute: also what answered requests amid the steps\n" in text


def test_a_damaged_trace_is_told_of_beside_the_rest(tmp_path: Path) -> None:
    folder, whole = write_run(tmp_path, ranks=1), write_run(tmp_path, ranks=1)
    folder.trace.write_text(folder.trace.read_text()[:3000])
    for text in (report(folder.path), compare(folder.path, whole.path)):
        assert f"{folder.trace} is not a trace that Weft wrote (JSONDecodeError" in text
        assert "training" in text


def test_what_cannot_be_written_is_told_of_below_the_words(tmp_path: Path) -> None:
    folder, other = write_run(tmp_path, ranks=2), write_run(tmp_path, ranks=2)
    for file in (folder.loss_picture, folder.timeline_picture, folder.portions, folder.compare_picture):
        file.symlink_to("/dev/full")
    text = report(folder.path)
    assert "digits: 400 steps" in text
    assert "pictures:" not in text
    assert "every step and portion:" not in text
    for file in (folder.loss_picture, folder.timeline_picture, folder.portions):
        assert f"{file}: cannot be written: No space left on device" in text
    text = compare(folder.path, other.path)
    assert "training loss" in text
    assert text.endswith(f"{folder.compare_picture}: cannot be written: No space left on device")


def test_a_run_that_did_nothing_says_so(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    folder.job.write_text("")
    assert report(folder.path).startswith("digits: no step was done")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="is not a run"):
        report(tmp_path)
