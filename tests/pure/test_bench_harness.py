"""The bench harness: figures, interleaving, the JSON file and what a wrong result does."""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import pytest

import bench
from bench import __main__ as command
from bench import _help
from bench.harness import (
    Figure,
    WrongResultError,
    amount,
    amount_or_none,
    check,
    installed,
    interleaved,
    machine,
    measure,
    portion_bytes,
    positive,
    ratio,
    require,
    several,
    shown,
    timed,
)
from tests.launch import ROOT, run
from weft.runtime.errors import Mistake


def test_a_figure_is_the_median_with_least_and_greatest():
    assert Figure.of([3.0, 1.0, 2.0], "us", scale=1e3) == Figure(2000.0, "us", 1000.0, 3000.0)


def test_a_figure_without_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Figure.of([], "s")


def test_a_ratio_is_taken_round_by_round():
    # The second round ran on a machine twice as slow: the ratio does not notice.
    assert ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == Figure(2.0, "x", 2.0, 2.0)


def test_candidates_take_turns_and_the_warm_up_is_not_counted():
    assert list(interleaved(["a", "b"], repetitions=2)) == [
        ("a", False),
        ("b", False),
        ("b", True),
        ("a", True),
        ("a", True),
        ("b", True),
    ]


def test_every_repetition_is_kept_and_the_warm_up_is_dropped():
    calls = iter(range(10))
    assert measure({"only": lambda: float(next(calls))}, repetitions=3, warmup=2) == {"only": [2.0, 3.0, 4.0]}


def test_timed_averages_over_the_calls_it_makes():
    made: list[int] = []
    assert timed(lambda: made.append(1), calls=5)() >= 0
    assert len(made) == 5


def test_peers_that_are_not_installed_are_named(capsys):
    assert installed("sample", {"NumPy": "numpy", "Nothing": "no_such_module"}) == ["NumPy"]
    assert capsys.readouterr().err == "sample: not installed, so left out: Nothing\n"
    assert installed("sample", {"NumPy": "numpy"}) == ["NumPy"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive, "3", 3),
        (portion_bytes, "1024", 1024),
        (amount, "0.5", 0.5),
        (amount_or_none, "0", 0.0),
        (several(positive), "1,4,16", [1, 4, 16]),
        (several(amount), "0.8", [0.8]),
    ],
)
def test_an_option_is_read(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (positive, "0", "'0' is no whole number of 1 or more"),
        (positive, "-3", "'-3' is no whole number"),
        (positive, "2.5", "'2.5' is no whole number"),
        (amount, "0", "'0' is no number above 0"),
        (amount, "-1", "'-1' is no number above 0"),
        (amount, "nan", "'nan' is no number above 0"),
        (amount, "inf", "'inf' is no number above 0"),
        (amount, "two", "'two' is no number above 0"),
        (amount_or_none, "-1", "'-1' is no number of 0 or more"),
        (several(positive), "1,,4", "'' is no whole number"),
        (portion_bytes, "1023", "'1023': a portion has 1024 bytes or more"),
        (portion_bytes, "0", "'0' is no whole number of 1 or more"),
    ],
)
def test_an_option_that_would_give_no_figure_or_no_end_is_refused(kind, text, told):
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        kind(text)


def test_what_a_bench_cannot_do_without_is_named_with_what_brings_it():
    require("sample", {"numpy": "numpy"})
    with pytest.raises(
        SystemExit, match=r"sample: no_such_module is not installed: pip install 'weft\[some\]'"
    ):
        require("sample", {"numpy": "numpy", "no_such_module": "weft[some]"})


def test_a_process_of_a_slurm_job_that_srun_did_not_start_is_one_rank(monkeypatch):
    for variable in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert machine()["ranks"] == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert machine()["ranks"] == 4


@pytest.fixture
def a_bench(monkeypatch, tmp_path):
    """A bench named `sample` in the package, whose main is to be set."""
    source = tmp_path / "sample.py"
    source.write_text('"""Times nothing."""\ndef main(arguments): ...\n')
    module = types.ModuleType("bench.sample", "Times nothing.")
    monkeypatch.setitem(sys.modules, "bench.sample", module)
    monkeypatch.setattr(bench, "__path__", [str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["bench", "sample"])
    return module


def test_the_list_names_each_bench_with_its_first_line(a_bench, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 0
    assert "sample       Times nothing." in capsys.readouterr().out


OPTIONS = {
    "a number without a word": ({"type": int, "default": 7}, "(7)"),
    "nothing, as a number": ({"type": int, "default": 0, "help": "seed"}, "seed (0)"),
    "a number of seconds": ({"type": float, "default": 2.0, "help": "how long"}, "how long (2)"),
    "several": ({"nargs": "+", "default": [1, 32], "help": "samples"}, "samples (1 32)"),
    "names, of which none": ({"default": (), "help": "peers"}, "peers"),
    "a help that tells it itself": ({"default": None, "help": "of ranks (all)"}, "of ranks (all)"),
    "a switch": ({"action": "store_true", "help": "draw it"}, "draw it"),
    "an option without a default": ({"default": None, "help": "a file"}, "a file"),
}


@pytest.mark.parametrize(("option", "told"), OPTIONS.values(), ids=OPTIONS)
def test_the_help_tells_the_default_of(option, told, a_bench, capsys):
    a_bench.add_arguments = lambda parser: parser.add_argument("--this", **option)
    with pytest.raises(SystemExit):
        command.main(["sample", "--help"])
    out = capsys.readouterr().out
    assert out.rstrip().endswith(f"  {told}")
    assert "show this help message and exit\n" in out


@pytest.mark.parametrize("arguments", [["sample", "--help"], ["sample", "--that"], ["smaple"], []])
def test_help_and_what_is_wrong_with_options_are_told_by_rank_0_alone(
    arguments, a_bench, capsys, monkeypatch
):
    monkeypatch.setattr(_help, "HEAD_START_S", 0.0)
    monkeypatch.setenv("PMI_RANK", "1")
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == (0 if arguments in (["sample", "--help"], []) else 2)
    assert capsys.readouterr() == ("", "")


def test_an_unknown_bench_is_refused_with_the_known_ones(a_bench, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["smaple"])
    assert ended.value.code == 2
    assert "sample" in capsys.readouterr().err


def test_options_before_a_benchs_name_are_told_where_they_belong(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--json", "out.json", "pingpong"])
    assert ended.value.code == 2
    assert "python -m bench NAME --json" in capsys.readouterr().err


def test_rank_0_writes_the_table_and_the_same_values_as_json(a_bench, capsys, tmp_path):
    a_bench.main = lambda arguments: {"rtt_us": Figure(12.5, "us", 11.0, 20.0)}
    path = tmp_path / "out.json"
    assert command.main(["sample", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["bench"] == "sample"
    assert written["figures"] == {"rtt_us": {"value": 12.5, "unit": "us", "min": 11.0, "max": 20.0}}
    assert written["command"] == "python -m bench sample"
    assert written["machine"]["cores"] >= 1
    assert datetime.fromisoformat(written["when"]).tzinfo is UTC
    out = capsys.readouterr().out
    assert "python -m bench sample --help tells what each figure is" in out
    assert "rtt_us" in out
    assert "12.5" in out


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (15_123.4, "15,123"),
        (9_999.7, "10,000"),
        (4_953.2, "4,953"),
        (0.0056789, "0.005679"),
        (0.0, "0"),
        (-20_000.5, "-20,000"),
        (math.inf, "inf"),
    ],
)
def test_a_figure_is_shown_without_an_exponent(number, text):
    assert shown(number) == text


def test_other_ranks_write_nothing(a_bench, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    a_bench.main = lambda arguments: {}
    path = tmp_path / "out.json"
    assert command.main(["sample", "--json", str(path)]) == 0
    assert not path.exists()
    assert capsys.readouterr().out == ""


def test_a_wrong_result_ends_non_zero_without_figures(a_bench, capsys, tmp_path):
    def wrong(arguments):
        check(False, "sum is 3, expected 4")

    a_bench.main = wrong
    path = tmp_path / "out.json"
    assert command.main(["sample", "--json", str(path)]) == 1
    assert not path.exists()
    assert "wrong result: sum is 3, expected 4" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["json", "picture"])
def test_a_file_that_cannot_be_written_is_told_of_before_anything_is_measured(
    option, a_bench, capsys, tmp_path
):
    a_bench.main = lambda arguments: pytest.fail("it was measured")
    a_bench.add_arguments = lambda parser: parser.add_argument("--picture", type=Path)
    path = tmp_path / "missing" / "out"
    assert command.main(["sample", f"--{option}", str(path)]) == 2
    told = f"sample: --{option} {path} cannot be written: No such file or directory\n"
    assert capsys.readouterr().err == told


def test_a_file_to_read_is_looked_for_before_anything_is_measured(a_bench, capsys, tmp_path, monkeypatch):
    a_bench.main = lambda arguments: pytest.fail("it was measured")
    a_bench.add_arguments = lambda parser: parser.add_argument("--model", type=Path)
    for path, reason in (tmp_path / "none.onnx", "No such file or directory"), (tmp_path, "Is a directory"):
        assert command.main(["sample", "--model", str(path)]) == 2
        assert capsys.readouterr().err == f"sample: --model {path} cannot be read: {reason}\n"
    a_bench.main = lambda arguments: {}  # another rank does not read it: it may lie on rank 0's host alone
    monkeypatch.setattr(command, "launched_rank", lambda: 1)
    assert command.main(["sample", "--model", str(tmp_path / "none.onnx")]) == 0


def test_the_list_is_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        command.main([])
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("benches:") :]
    assert [line for line in listed if len(line) > 80] == []
    assert any(line.startswith(" " * 15) for line in listed)  # what goes on stands under what began


def test_who_looks_for_hosts_among_the_benches_is_told_where_it_is(capsys):
    with pytest.raises(SystemExit):
        command.main(["hosts"])
    assert "hosts is a program of its own: python -m bench.hosts --help" in capsys.readouterr().err


def test_a_file_of_before_is_kept_until_there_are_figures(a_bench, tmp_path):
    path = tmp_path / "out.json"
    path.write_text("of before")
    a_bench.main = lambda arguments: check(False, "sum is 3, expected 4")
    assert command.main(["sample", "--json", str(path)]) == 1
    assert path.read_text() == "of before"


def test_a_mistake_is_told_without_a_traceback(a_bench, capsys):
    def mistaken(arguments):
        raise Mistake("skew 2 of 8 layers: give a share")

    a_bench.main = mistaken
    assert command.main(["sample"]) == 2
    assert capsys.readouterr().err == "sample: skew 2 of 8 layers: give a share\n"


def test_an_interrupted_bench_ends_without_a_traceback(a_bench, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    a_bench.main = interrupted
    assert command.main(["sample"]) == 130
    assert capsys.readouterr().err == ""


def test_what_is_infinite_is_null_in_json(a_bench, tmp_path):
    a_bench.main = lambda arguments: {"paid_after": Figure(math.inf, "runs", 3.0, math.inf)}
    path = tmp_path / "out.json"
    assert command.main(["sample", "--json", str(path)]) == 0
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["figures"]["paid_after"] == {"value": None, "unit": "runs", "min": 3.0, "max": None}


def test_the_machine_is_described_where_mpi_is_loaded_but_not_started():
    # Asking for a size before MPI_Init ends the process without a word.
    program = (
        "import weft.runtime.message, bench.harness as h; print(h.machine()['mpi'], h.machine()['ranks'])"
    )
    result = run([sys.executable, "-c", program], cwd=ROOT)
    assert result.returncode == 0, result
    assert "MPI" in result.stdout


def test_check_passes_what_holds():
    check(True, "unused")
    with pytest.raises(WrongResultError):
        check(False, "does not hold")


def test_every_bench_of_the_package_has_a_line_for_the_list():
    assert all(command.benches().values())
    assert Path(bench.__file__).parent.name == "bench"
