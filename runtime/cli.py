"""The command line. What is heavy is imported inside the commands: `weft --help` takes a quarter of a second.

Under mpirun every rank runs this file with the same arguments, and one should say what is wrong with them:

    wrong usage, help      here, by rank 0 of the launcher; the others are silent
    wrong job, data, …     raised in main on every rank; the message layer reports it once
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import typer

from .errors import Mistake, WeftError

if TYPE_CHECKING:
    from .graph import Graph

LAUNCHER_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")

HEAD_START_S = 0.5
"""How long the other ranks wait before they exit with a failure: a launcher kills all ranks as soon as one
fails, and rank 0 may not have written its message by then."""

P = ParamSpec("P")

app = typer.Typer(
    name="weft",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[bold]mpirun -n 4 weft train digits[/bold] trains on four ranks, and without mpirun on one. "
    "Begin with [bold]weft info[/bold].",
)


def launcher_rank() -> int | None:
    """The rank that a launcher announces in the environment, known before MPI starts; None without one."""
    return next((int(os.environ[name]) for name in LAUNCHER_RANKS if name in os.environ), None)


def main() -> None:
    """The program `weft`."""
    if not launcher_rank():
        app()
        return
    # Another rank: its help, usage errors and completions are those of rank 0, which says them.
    sys.stdout, sys.stderr = (open(os.devnull, "w") for _ in range(2))  # noqa: SIM115  until the end
    try:
        app()
    except SystemExit as exit:
        if exit.code:
            time.sleep(HEAD_START_S)
        raise


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command: usage was right, so all ranks may speak again; a WeftError is a message, not a traceback."""

    # Typer keeps a paragraph's line ends, which a terminal of another width breaks in mid-sentence.
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    function.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    @functools.wraps(function)
    def wrapper(*args: P.args, **keys: P.kwargs) -> None:
        silent = sys.stderr
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        try:
            function(*args, **keys)
        except WeftError as error:
            if launcher_rank():
                sys.stderr = silent
            fail(error)

    return wrapper


def fail(error: WeftError) -> NoReturn:
    """End with the error's message and exit status."""
    print(f"weft: {error}", file=sys.stderr)
    raise SystemExit(error.exit_status)


def complete_job(incomplete: str) -> list[str]:
    """Packaged jobs and job files for the shell, without importing what reads them."""
    packaged = [file.stem for file in (Path(__file__).parent / "train" / "jobs").glob("*.toml")]
    files = [str(path) for path in Path(incomplete or ".").parent.glob("*.toml")]
    return [name for name in sorted(packaged) + sorted(files) if name.startswith(incomplete)]


def known_device(kind: str | None) -> str | None:
    """What --device takes."""
    if kind not in (None, "auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{kind!r} must be one of auto, cpu, cuda")
    return kind


def show_version(wanted: bool) -> None:
    """--version"""
    if wanted:
        from importlib.metadata import version

        print(f"weft {version('weft')}")
        raise typer.Exit


@app.callback()
def weft(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train neural networks on an MPI allocation, and ask them.

    Every core it has is used, and any number of ranks gives the same answer.
    """


TRAIN_EXAMPLES = """
[bold]Examples[/bold]

mpirun -n 4 weft train digits

weft train my.toml --set train.epochs=3 --set train.optimizer.rate=0.01

mpirun -n 2 weft train --resume runs/digits-20260314-150926

mpirun -n 2 weft train a.toml b.toml --set b:run.share=2   [dim]two models, interleaved[/dim]

srun weft train digits --folder $SCRATCH/runs

Packaged jobs are digits, digits-mlp and stdlib-gpt. Ctrl-C, SIGTERM and Slurm's warning write a checkpoint \
and end the run; --resume goes on from there: on other ranks too, and on as many bit for bit with \
train.deterministic, if gradients travel as float32.
"""


@app.command(epilog=TRAIN_EXAMPLES)
@command
def train(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB",
            help="A packaged job's name or a .toml file; several train together. Not needed with --resume: "
            "the run has its job.",
            autocompletion=complete_job,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the run in this folder, from its newest checkpoint. May be repeated.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of the job, as section.key=value; of one among several jobs, as "
            "name:section.key=value. May be repeated.",
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Store the run in DIR instead of \\[run] folder.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cpu|cuda",
            callback=known_device,
            help="Compute there instead of on the job's device.",
        ),
    ] = None,
) -> None:
    """Train the model that a job file describes, and store the run in a folder of its own.

    Several jobs train together: while the gradients of one travel, the other computes.
    A run leaves its job, metrics, checkpoints and a trace of all ranks; weft report draws pictures of them.
    """
    from .train.job import Job, load_jobs
    from .train.toml import to_toml_value

    overrides = list(set_ or [])
    if folder is not None:
        overrides.append(f"run.folder={to_toml_value(str(folder))}")
    if device is not None:
        overrides.append(f"device={device}")
    names, runs = list(jobs or []), list(resume or [])

    def load() -> list[Job]:
        if not names and not runs:
            raise Mistake(
                "no job was named: give a .toml file or a packaged job (weft train digits), or --resume RUN"
            )
        if names and runs and len(names) != len(runs):
            raise Mistake(
                f"{len(names)} jobs and {len(runs)} runs were named: a run has its job, so name only runs, "
                "or a run for each job, in the same order"
            )
        if folder is not None and runs:
            raise Mistake(f"--folder {folder} is for new runs: {runs[0]} goes on where it is stored")
        if len({run.resolve() for run in runs}) < len(runs):
            raise Mistake("--resume names a run twice: it can go on once")
        if names:
            return load_jobs(names, overrides)
        from .observe import RunFolder

        return load_jobs([str(RunFolder.open(run).job) for run in runs], overrides)

    if launcher_rank() is None:
        load()  # says what is wrong with a job where there is no MPI to run it

    from .message import World, run
    from .message.signals import leave_last
    from .train import fleet

    async def main(world: World) -> list[int]:
        results = await fleet.train(world, load(), resume=runs)
        return world.node_pids if world.rank == 0 and any(result.failure for result in results) else []

    if pids := run(main):
        leave_last(pids)  # a launcher ends what still runs as soon as a rank leaves with a status
        raise SystemExit(1)


SERVE_EXAMPLES = """
[bold]Examples[/bold]

mpirun -n 4 weft serve models/

weft serve models/ --port 9000 --profile

weft serve runs/digits-20260314-150926

WEFT_TOKEN=secret mpirun -n 2 weft serve models/ --host 0.0.0.0

A repository holds NAME/VERSION/model.onnx, or a run of weft train as NAME/VERSION; weft.toml in it says \
which classes of requests there are. Ctrl-C and SIGTERM answer what has been accepted, then end with status 0.
"""


@app.command(epilog=SERVE_EXAMPLES)
@command
def serve(
    repository: Annotated[
        Path, typer.Argument(metavar="REPO", help="A folder of models, or of one run.", show_default=False)
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any that is free.")] = 8000,
    token: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            envvar="WEFT_TOKEN",
            help="Answer only who sends it, as Authorization: Bearer TEXT.",
            show_default=False,
        ),
    ] = "",
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Decide so what is computed when: weft (which is taken), clockwork, first_come, nexus or "
            "triton.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", callback=known_device, help="Compute there.")
    ] = "auto",
    profile: Annotated[
        bool, typer.Option("--profile", help="First measure how long each model takes, for all batch sizes.")
    ] = False,
    profiles: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep profiles there instead of in REPO/profiles.json."),
    ] = None,
) -> None:
    """Answer inference requests on all ranks, over HTTP on rank 0.

    Any client of the Open Inference Protocol v2 can ask, such as tritonclient. What a
    request asks for (its class, its deadline) decides when it is computed and where;
    what cannot be met is refused at once.
    """
    from .message import run
    from .serve.program import Options
    from .serve.program import serve as serve_all

    options = Options(repository, host, port, token, policy, device, profiles, profile)
    run(lambda world: serve_all(world, options))


@app.command(
    epilog="[bold]Examples[/bold]\n\nmpirun -n 4 weft predict runs/digits-20260314-150926 images.npy\n\n"
    "weft predict model.onnx x.npy y.npy --output probabilities --batch 256"
)
@command
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run's folder, or an .onnx file.", show_default=False)
    ],
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES", help="An .npy file; its first axis counts the samples.", show_default=False
        ),
    ],
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="PREDICTIONS",
            help="The .npy file to write. [SAMPLES-predictions.npy]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str, typer.Option(metavar="NAME", help="Which output, where there are several.", show_default=False)
    ] = "",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples that are computed together.")] = 32,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", callback=known_device, help="Compute there.")
    ] = "auto",
) -> None:
    """Compute a model's predictions for a file of samples, on all ranks.

    Samples are taken as the run's data had them: what the run did to them first is done to them, too.
    """
    from .message import run
    from .serve.predict import Options
    from .serve.predict import predict as predict_all

    into = predictions or samples.with_name(f"{samples.stem}-predictions.npy")
    options = Options(model, samples, into, output, batch, device)
    run(lambda world: predict_all(world, options))


@app.command(
    name="run",
    epilog="[bold]Examples[/bold]\n\nmpirun -n 4 weft run job.toml\n\n"
    "WEFT_TOKEN=secret mpirun -n 4 weft run job.toml --set serve.port=9000",
)
@command
def train_and_serve(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB",
            help="A job file, perhaps with a \\[serve] table, or a packaged job's name. Not needed with "
            "--resume: the run has its job.",
            autocompletion=complete_job,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the job. May be repeated."),
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            metavar="TEXT", envvar="WEFT_TOKEN", help="Answer only who sends it.", show_default=False
        ),
    ] = "",
) -> None:
    """Train a model and answer requests meanwhile, on the same ranks.

    Inference goes before training on every rank's lane. Served are the model's newest checkpoint, under the
    job's name with the step as its version, and the models of \\[serve] repository.
    """
    from .train.job import Job, load_job

    def load() -> Job:
        if job is not None:
            return load_job(job, list(set_ or []))
        if resume is None:
            raise Mistake("no job was named: give a .toml file or a packaged job, or --resume RUN")
        from .observe import RunFolder

        return load_job(str(RunFolder.open(resume).job), list(set_ or []))

    if launcher_rank() is None:
        load()  # says what is wrong with a job where there is no MPI to run it

    from .message import World, run
    from .serve.program import run as run_both

    async def main(world: World) -> None:
        await run_both(world, load(), [resume] if resume else [], token)

    run(main)


@app.command(
    epilog="[bold]Examples[/bold]\n\nweft info\n\n"
    "mpirun -n 4 weft info   [dim]how the ranks are placed, too[/dim]\n\n"
    "weft info model.onnx --batch 8   [dim]what a model consists of[/dim]\n\n"
    "weft info digits-mlp"
)
@command
def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="An .onnx file, a job or a run: show the model's nodes instead of this machine.",
            autocompletion=complete_job,
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples that costs are given for.")] = 1,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="Fix an axis that the file leaves open, as sequence=128. May be repeated.",
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="The file has no batch: its inputs are one sample.")
    ] = False,
) -> None:
    """Show what Weft finds: MPI, ranks, cores, BLAS, GPUs, shared memory.

    Works without MPI too, and says how to get one.

    With MODEL show its nodes: kernels, shapes, parameters, costs, splits and tags.
    """
    if model is not None:
        show_model(model, batch, size or [], whole)
        return
    from .observe.machine import describe

    nodes: list[tuple[str, int]] = []
    if launcher_rank() is not None:
        from .message import World, run

        async def main(world: World) -> int:
            nodes.extend((world.hosts[ranks[0]], len(ranks)) for ranks in world.nodes)
            return world.rank

        if run(main):
            return
    for name, value in describe(nodes):
        print(f"{name:<14} {value}")


def show_model(name: str, batch: int, sizes: list[str], whole: bool) -> None:
    """weft info MODEL"""
    if launcher_rank():
        return  # one rank is enough to read
    from .observe.model import model_table

    if Path(name).suffix == ".onnx":
        graph = onnx_graph(Path(name), sizes, whole)
    elif sizes or whole:
        raise Mistake(f"--size and --whole are for ONNX files, and {name} is none: its name ends otherwise")
    else:
        from .train.inference import predicting

        graph = predicting(name)
    print(model_table(graph, batch))


def onnx_graph(path: Path, sizes: list[str], whole: bool) -> Graph:
    """The graph of an ONNX file, its open axes fixed by texts like `sequence=128`."""
    from .graph.onnx import read

    named = {}
    for text in sizes:
        name, _, number = text.partition("=")
        if not (name and number.isdecimal() and int(number)):
            raise Mistake(f"--size is {text!r}; give a name and a whole number, as sequence=128")
        named[name] = int(number)
    return read(path, sizes=named, batched=not whole).graph


@app.command(
    epilog="[bold]Examples[/bold]\n\nweft export runs/digits-20260314-150926\n\n"
    "weft export runs/digits-20260314-150926 models/digits/1/model.onnx   [dim]a model repository[/dim]"
)
@command
def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or a checkpoint in it.", show_default=False)
    ],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The file to write. [RUN/model.onnx]", show_default=False),
    ] = None,
) -> None:
    """Write a trained model as an ONNX file.

    It holds the weights of the newest checkpoint, and takes samples as the run's data had them: what the
    run did to them first (a scale, a mean) is in the file.
    """
    if launcher_rank():
        return  # one rank is enough to write
    from .train.export import export as write

    print(write(run, file))


@app.command(
    epilog="[bold]Examples[/bold]\n\nweft report runs/digits-20260314-150926\n\n"
    "weft report runs/digits-20260314-150926 runs/digits-20260314-153012   [dim]what a change changed[/dim]"
)
@command
def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, or a pool's trace file.", show_default=False),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="Another run, to lay beside it.", show_default=False),
    ] = None,
) -> None:
    """Show where a run's time went: tables of its ranks and of its gradient's portions, and pictures.

    Into the run's folder come loss and accuracy (loss.png), what every rank did
    when (timeline.png), and when each portion was ready, posted, done and used
    in every step (portions.csv).

    With OTHER the two runs are laid side by side: a table, and a typical step of
    each (compare.png in RUN).

    Of a trace file that a pool of tasks has left (docs/tasks.md): who ran what,
    for whom, and took it from where; the picture comes beside the file.
    """
    if launcher_rank():
        return  # one rank is enough to draw
    if run.is_file() and other is None:
        from .observe.tasks import report_tasks

        print(report_tasks(run))
        return
    from .observe import report as reports

    print(reports.report(run) if other is None else reports.compare(run, other))


if __name__ == "__main__":
    main()
