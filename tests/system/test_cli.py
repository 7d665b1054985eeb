"""The program `weft`, as a person calls it: alone, and under mpirun.

Help and mistakes that are found without MPI are asked of `called`, in this process: another one imports for a
second. What a process as a whole does (its status, where it prints to, MPI) is seen on one of its own.
"""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.launch import VENDORS, environment, mpiexec, run
from weft.runtime.serve.policy import POLICIES


def weft(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    settings = environment("mpich", {"COLUMNS": "120", "NO_COLOR": "1", **env})
    return run([sys.executable, "-m", "weft.runtime.cli", *arguments], env=settings, cwd=cwd, timeout=60)


def called(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same for a command that starts no MPI, without a process of its own."""
    app, out, err = importlib.import_module("weft.runtime.cli.app"), io.StringIO(), io.StringIO()
    command = ["weft", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as here:
        for name, stream in (("stdout", out), ("stderr", err)):
            here.setattr(sys, name, stream)
            here.setattr(sys, f"__{name}__", stream)
        here.setattr(sys, "argv", command)
        here.setattr(app, "begun", False)
        here.setenv("COLUMNS", "120")
        here.setenv("NO_COLOR", "1")
        if cwd is not None:
            here.chdir(cwd)
        with pytest.raises(SystemExit) as end:
            app.main()
    return subprocess.CompletedProcess(command, end.value.code or 0, out.getvalue(), err.getvalue())


def weft_onto_a_full_disk(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Its stdout is a file there."""
    command = [
        "sh",
        "-c",
        'exec "$@" > /dev/full',
        "sh",
        sys.executable,
        "-m",
        "weft.runtime.cli",
        *arguments,
    ]
    return run(command, env=environment("mpich"), cwd=cwd, timeout=60)


def plain(text: str) -> str:
    """Without the frames that rich draws, which break lines."""
    return re.sub(r"[\s│]+", " ", text)


def test_version() -> None:
    assert weft("--version").stdout == "weft 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["train", "info", "report", "--install-completion", "mpirun -n 4 weft train digits"]),
        (
            ["train"],
            [
                "--resume",
                "--set",
                "KEY=VALUE",
                "[run] folder",
                "mpirun -n 2 weft train --resume",
                "mpirun -n 2 weft train a.toml b.toml",
                "stdlib-gpt",
            ],
        ),
        (
            ["info"],
            ["Works without MPI too", "mpirun -n 4 weft info", "MODEL", "--batch", "--size", "--whole"],
        ),
        (["report"], ["RUN", "loss.png", "timeline.png"]),
        (
            ["serve"],
            ["REPO", "--host", "--port", "--token", *POLICIES, "--profile", "NAME/VERSION/model.onnx"],
        ),
        (
            ["run"],
            ["JOB", "--resume", "--set", "--token", "a [serve] table", "mpirun -n 4 weft run job.toml"],
        ),
        (["export"], ["RUN", "[RUN/model.onnx]", "models/digits/1/model.onnx"]),
        (["predict"], ["MODEL", "SAMPLES", "[SAMPLES-predictions.npy]", "--output", "--batch", "--device"]),
    ],
    ids=["of weft", "of train", "of info", "of report", "of serve", "of run", "of export", "of predict"],
)
def test_help(arguments: list[str], words: list[str]) -> None:
    result = called(*arguments, "--help")
    assert result.returncode == 0
    assert [word for word in words if word not in plain(result.stdout)] == []


@pytest.mark.parametrize(
    "command", ["", "train", "serve", "run", "predict", "info", "export", "report"], ids="of {}".format
)
def test_help_names_no_types_of_python(command: str) -> None:
    """`--profile <bool>` asked for a value that a flag does not take; `{REPO}` is what is to be given."""
    shown = plain(called(*command.split(), "--help").stdout)
    usage = next(line for line in shown.splitlines() if "Usage:" in line)
    assert [word for word in ("<bool>", "<str>", "<path>", "<list[str]>") if word in shown] == []
    assert not {"{", "}"}.intersection(usage)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['weft', '--help']\n"
        "from weft.runtime import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'numba', 'mpi4py', 'pydantic', 'asyncio') if name in sys.modules])"
    )
    assert run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "[]"


WRONG = {
    "an unknown command": (["trian"], 2, "No such command 'trian'. Did you mean 'train'?"),
    "an unknown option": (["train", "--st"], 2, "No such option: --st"),
    "no job": (
        ["train"],
        2,
        "weft: no job was named: give a .toml file or a packaged job (weft train digits), or",
    ),
    "no job to run": (["run"], 2, "weft: no job was named: give a .toml file or a packaged job, or --resume"),
    "two jobs to run": (
        ["run", "digits", "digits-mlp"],
        2,
        "digits-mlp: one job is trained and served at once; several train together with weft train JOB JOB",
    ),
    "two folders to serve": (
        ["serve", "models", "runs/x"],
        2,
        "runs/x: one folder is served; put the models into it, as NAME/VERSION",
    ),
    "a pattern that the shell has filled in": (
        ["predict", "runs/x", "new-1.npy", "new-2.npy", "new-3.npy"],
        2,
        "new-3.npy: samples are one file, or several by a pattern in quotation marks, as 'new-*.npy'",
    ),
    "more jobs than runs": (
        ["train", "digits", "digits-mlp", "--resume", "runs/x"],
        2,
        "weft: 2 jobs and 1 runs were named: a run has its job, so name only runs, or a run for each job",
    ),
    "problems of two jobs": (
        ["train", "digits", "digits-mlp", "--set", "digits:train.batch=0", "--set", "digits-mlp:seed=x"],
        2,
        "weft: --set digits:train.batch=0: [train] batch = 0: must be at least 1 --set digits-mlp:seed=x:",
    ),
    "an unknown job": (
        ["train", "digit"],
        2,
        "weft: no packaged job is called 'digit'; did you mean digits? There are",
    ),
    "a job file that is not there": (
        ["train", "no/such.toml"],
        2,
        "weft: no/such.toml: cannot be read: No such file",
    ),
    "a wrong override": (
        ["train", "digits", "--set", "train.batch=0"],
        2,
        "weft: --set train.batch=0: [train] batch = 0: must be at least 1",
    ),
    "an unknown device": (
        ["train", "digits", "--device", "tpu"],
        2,
        "Invalid value for '--device': 'tpu' must be one of auto, cpu, cuda",
    ),
    "a device that serves": (
        ["serve", "models", "--device", "tpu"],
        2,
        "Invalid value for '--device': 'tpu' must be one of auto, cpu, cuda",
    ),
    "a run that is not there": (["train", "--resume", "runs/x"], 2, "weft: there is no run runs/x"),
    "a new place for an old run": (
        ["train", "--resume", "runs/x", "--folder", "y"],
        2,
        "weft: --folder y is for new runs: runs/x goes on where it is stored",
    ),
    "a run twice": (
        ["train", "--resume", "runs/x", "--resume", "runs/../runs/x"],
        2,
        "weft: --resume names a run twice: it can go on once",
    ),
    "a report of nothing": (["report", "runs/x"], 2, "weft: there is no run runs/x"),
}


@pytest.mark.parametrize(("arguments", "status", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_message_and_a_status(
    arguments: list[str], status: int, message: str, tmp_path: Path
) -> None:
    result = called(*arguments, cwd=tmp_path)
    assert message in plain(result.stderr)
    assert "Traceback" not in result.stderr
    assert (result.returncode, result.stdout) == (status, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("name", ["an unknown option", "no job", "an unknown job"])
def test_under_mpirun_a_mistake_is_said_once(name: str, vendor: str, tmp_path: Path) -> None:
    arguments, status, message = WRONG[name]
    result = mpiexec(
        3,
        ["-m", "weft.runtime.cli", *arguments],
        vendor=vendor,
        cwd=tmp_path,
        env={"COLUMNS": "200"},
        timeout=60,
    )
    assert plain(result.stderr).count(message) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == status


@pytest.mark.parametrize("vendor", VENDORS)
def test_under_mpirun_help_is_printed_once(vendor: str) -> None:
    result = mpiexec(3, ["-m", "weft.runtime.cli", "--version"], vendor=vendor, timeout=60)
    assert (result.returncode, result.stdout) == (0, "weft 0.1.0\n")


def lines(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert result.returncode == 0, result.stderr
    return {line[:14].strip(): line[15:] for line in result.stdout.splitlines()}


@pytest.mark.parametrize(("vendor", "library"), [("mpich", "MPICH"), ("openmpi", "Open MPI")])
def test_info_under_mpirun_shows_where_the_ranks_are(vendor: str, library: str) -> None:
    found = lines(mpiexec(3, ["-m", "weft.runtime.cli", "info"], vendor=vendor, timeout=60))
    assert found["mpi"].startswith(library)
    assert re.match(r"3 on 1 node: 3 on \S+$", found["ranks"])


def test_info_alone() -> None:
    found = lines(weft("info"))
    assert set(found) == {
        "weft", "python", "host", "mpi", "ranks", "cores", "blas", "compiler", "device", "shared memory",
    }  # fmt: skip
    assert found["ranks"] == "1; `mpirun -n 4 weft info` shows how ranks are placed"


def test_without_mpi_info_works_and_says_how_to_get_one(tmp_path: Path) -> None:
    # mpi4py takes the library of this name and no other.
    found = lines(weft("info", MPI4PY_LIBMPI=str(tmp_path / "libmpi.so")))
    assert found["mpi"].startswith(
        "none. no MPI library was found. Install one beside Weft: pip install 'weft[mpich]'"
    )


def test_without_mpi_train_says_how_to_get_one(tmp_path: Path) -> None:
    result = weft("train", "digits", MPI4PY_LIBMPI=str(tmp_path / "libmpi.so"), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("weft: no MPI library was found.")
    assert "Traceback" not in result.stderr


def onnx_file(path: Path, *operators: str) -> Path:
    """A chain of operators, each node called after its own, on images of an open batch and size."""
    values = ["image", *(f"value{i}" for i in range(len(operators)))]
    nodes = [
        onnx.helper.make_node(operator, [source], [value], name=f"my_{operator}")
        for operator, source, value in zip(operators, values, values[1:], strict=False)
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 3, "pixels", "pixels"])
    output = onnx.helper.make_empty_tensor_value_info(values[-1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "chain", [image], [output])), path)
    return path


def test_info_shows_the_nodes_of_an_onnx_file(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "small.onnx", "Relu", "GlobalAveragePool")
    result = called("info", path, "--size", "pixels=8", "--batch", "1000")
    assert result.returncode == 0, result.stderr
    head, relu, pool, *_ = result.stdout.splitlines()
    assert head.split()[:5] == ["node", "kernel", "output", "MFLOP", "MB"]
    assert relu.split()[:4] == ["my_Relu", "relu", "3×8×8", "0.19"]
    assert pool.split()[:3] == ["my_GlobalAveragePool", "global_average_pool2d", "3"]
    assert "forward for 1,000 samples; from x (3×8×8 float32)" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        "client  name    dtype    datatype  shape",
        "gives   image   float32  FP32      [batch, 3, 8, 8]",  # as the file calls it, and so weft serve
        "gets    value1  float32  FP32      [batch, 3, 1, 1]",
    ]


def test_info_shows_the_model_of_a_job() -> None:
    result = called("info", "digits-mlp")
    assert result.returncode == 0, result.stderr
    assert [line.split()[:4] for line in result.stdout.splitlines()[1:5]] == [
        ["flatten_1", "flatten", "64", "0.00"],
        ["dense_1", "dense", "features=128", "128"],
        ["relu_1", "relu", "128", "0.13"],
        ["dense_2", "dense", "features=10", "10"],
    ]
    assert "9,610 parameters" in result.stdout


@pytest.mark.parametrize(
    ("encoding", "shape"),
    [("ascii", "1?8?8"), ("latin-1", "1×8×8"), ("koi8-r", "1?8?8")],
    ids=["no letters but English ones", "Western ones", "Russian ones"],
)
def test_what_a_locale_without_utf_8_lacks_is_a_question_mark(encoding: str, shape: str) -> None:
    settings = environment("mpich", {"PYTHONIOENCODING": encoding})
    command = [sys.executable, "-m", "weft.runtime.cli", "info", "digits-mlp"]
    result = subprocess.run(command, env=settings, capture_output=True, encoding=encoding, timeout=60)
    assert result.returncode == 0, result.stderr
    assert f"from x ({shape} float32) to dense_2" in result.stdout


def test_a_run_needs_nowhere_to_print_to(tmp_path: Path) -> None:
    """The shell may have closed both: `weft train … >&- 2>&-`."""
    command = [sys.executable, "-m", "weft.runtime.cli", "train", "digits-mlp", "--set", "train.steps=21"]
    closing = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    result = subprocess.run(closing, env=environment("mpich"), cwd=tmp_path, timeout=60)
    assert result.returncode == 0
    assert list(tmp_path.glob("runs/*/checkpoints/*21.safetensors"))


def test_a_working_folder_that_is_gone_is_told_in_a_line(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    code = (
        "import os, sys; from weft.runtime import cli; os.rmdir(sys.argv.pop())\n"
        "sys.argv += ['train', 'digits-mlp']; cli.main()"
    )
    result = run([sys.executable, "-c", code, here], env=environment("mpich"), cwd=here, timeout=60)
    said = "weft: the working folder cannot be found: No such file or directory; cd into another\n"
    assert (result.returncode, result.stdout, result.stderr) == (3, "", said)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_working_folder_that_is_gone_for_one_rank_ends_all(vendor: str, tmp_path: Path) -> None:
    """They waited for it in MPI_Init, for ever."""
    code = (
        "import os, sys; from weft.runtime import cli; from weft.runtime.launcher import launcher_rank\n"
        "if launcher_rank() == 1:\n"
        "    os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "sys.argv[1:] = ['train', 'digits-mlp']; cli.main()"
    )
    result = mpiexec(2, ["-c", code], vendor=vendor, cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr.count("weft: the working folder cannot be found: No such file or directory; cd") == 1
    assert "(rank 1 of 2 on " in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["info", "digits-mlp"], ["--help"], ["train", "--help"], [], ["--version"]],
    ids=["a machine", "a model", "all commands", "a command's options", "nothing was asked", "the version"],
)
def test_what_cannot_be_printed_is_told_in_a_line(arguments: list[str], tmp_path: Path) -> None:
    result = weft_onto_a_full_disk(*arguments, cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr == "weft: the answer cannot be printed: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-mpl"], "weft: no packaged job is called 'digits-mpl'; did you mean digits-mlp?"),
        (["nothing.toml"], "weft: nothing.toml: cannot be read: No such file or directory"),
        (["digits", "--whole"], "weft: --size and --whole are for ONNX files, and digits is none"),
        (["."], "weft: . is not a run"),
    ],
    ids=["a misspelt job", "no such job", "a job without a batch", "a folder that is no run"],
)
def test_info_refuses_what_is_no_model(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = called("info", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(message), result.stderr


WRONG_MODELS = {
    "an operator that Weft lacks": (
        ["Relu", "Det"],
        ["pixels=8"],
        "weft: node 'my_Det': Weft has no kernel for",
    ),
    "an axis that is open": (["Relu"], [], "weft: axis 2 ('pixels') of the input 'image' is open"),
    "a size of an axis that is not there": (["Relu"], ["foo=3"], "weft: no input has an axis 'foo' to give"),
    "a size that is none": (
        ["Relu"],
        ["pixels=big"],
        "weft: --size is 'pixels=big'; give a name and a whole number",
    ),
}


@pytest.mark.parametrize(("operators", "sizes", "message"), WRONG_MODELS.values(), ids=WRONG_MODELS.keys())
def test_info_refuses_a_file(tmp_path: Path, operators: list[str], sizes: list[str], message: str) -> None:
    path = onnx_file(tmp_path / "wrong.onnx", *operators)
    result = called("info", path, *(word for size in sizes for word in ("--size", size)))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr


def test_completion_knows_packaged_jobs_and_files(tmp_path: Path) -> None:
    (tmp_path / "dune.toml").write_text("")
    request = {"_WEFT_COMPLETE": "complete_bash", "COMP_WORDS": "weft train d", "COMP_CWORD": "2"}
    found = run(
        [Path(sys.executable).parent / "weft"], env=environment("mpich", request), cwd=tmp_path, timeout=60
    )
    assert found.stdout.split() == ["digits", "digits-mlp", "dune.toml"]


def test_a_run_is_stored_resumed_and_reported(tmp_path: Path) -> None:
    short = ("--set", "train.epochs=2", "--device", "cpu")
    first = weft("train", "digits-mlp", "--folder", "my runs", *short, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (stored,) = (tmp_path / "my runs").iterdir()
    assert (stored / "checkpoints" / "step-00000040.safetensors").is_file()

    resumed = weft("train", "--resume", stored, "--set", "train.epochs=3", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (stored / "checkpoints" / "step-00000060.safetensors").is_file()
    assert [stored] == list((tmp_path / "my runs").iterdir())

    again = weft("train", "--resume", stored, cwd=tmp_path)  # the run remembers what it was told
    assert again.returncode == 0, again.stderr
    assert "digits-mlp: all steps were done before, nothing is left to train" in again.stdout

    fewer = weft("train", "--resume", stored, "--set", "train.steps=50", cwd=tmp_path)
    assert (fewer.returncode, fewer.stdout) == (2, "")
    assert "step-00000060.safetensors: 60 steps are done, and the job has 50 in all" in fewer.stderr
    assert "Traceback" not in fewer.stderr

    shown = called("info", stored).stdout.splitlines()
    assert shown[-2:] == [
        "gives   x        float32  FP32      [batch, 1, 8, 8]",
        "gets    dense_2  float32  FP32      [batch, 10]",
    ]

    report = called("report", stored)
    assert report.returncode == 0, report.stderr
    assert "digits-mlp: 60 steps" in report.stdout
    assert "no wire: one rank" in report.stdout
    assert "portion" not in report.stdout
    assert (stored / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_garbage_is_looked_for_when_a_command_has_ended() -> None:
    # What is registered first is called last.
    program = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 10_000))\n"
        "import sys; from weft.runtime.cli import main; sys.argv = ['weft', '--version']; main()"
    )
    done = run([sys.executable, "-c", program], env=environment("mpich"), timeout=60)
    assert done.stdout == "weft 0.1.0\nTrue\n"
