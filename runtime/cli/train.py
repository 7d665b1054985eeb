"""weft train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import Mistake
from ..launcher import launcher_rank
from .app import command, complete_job, known_device, show

TRAIN_EXAMPLES = """
[bold]Examples[/bold]

mpirun -n 4 weft train digits

weft train my.toml --set train.epochs=3 --set train.optimizer.rate=0.01

mpirun -n 2 weft train --resume runs/digits-20260314-150926

mpirun -n 2 weft train a.toml b.toml --set b:run.share=2   [dim]two models, interleaved[/dim]

mpirun -n 4 weft train my.toml --vary train.optimizer.rate=0.1,0.01,0.001   [dim]a sweep, the best told[/dim]

mpirun -n 4 weft train my.toml --vary train.batch=16,32,64,128 --halve   [dim]only the best to the end[/dim]

srun weft train digits --folder $SCRATCH/runs

The keys of a job file are in docs/training.md; packaged jobs are digits, digits-mlp and stdlib-gpt.

Ctrl-C, SIGTERM and Slurm's warning write a checkpoint and end the run; --resume goes on from there: on \
other ranks too, and on as many bit for bit with train.deterministic.
"""


@command(epilog=TRAIN_EXAMPLES)
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
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help="Train a model of the job for each value of a key; repeated, for every combination. They "
            "train together, and a table tells at the end which is best.",
        ),
    ] = None,
    halve: Annotated[
        bool,
        typer.Option(
            "--halve",
            help="Stop the worse half of the models behind 1/8, 1/4 and 1/2 of their steps (of 8 models; of "
            "4 behind 1/4 and 1/2), so that the best alone goes on to the end.",
        ),
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Store the run in DIR instead of \\[run] folder.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cpu|cuda",
            callback=known_device,
            help="Compute on it, instead of the job's device; auto: a GPU for each rank, if there are.",
        ),
    ] = None,
) -> None:
    """Train the model that a job file describes, and store the run in a folder of its own.

    Several jobs train together: while the gradients of one travel, the other computes.
    A run leaves its job, metrics, checkpoints and a trace of all ranks; weft report draws pictures of them.
    """
    from ..train.job import Job, load_jobs
    from ..train.toml import to_toml_value

    overrides = list(set_ or [])
    if folder is not None:
        overrides.append(f"run.folder={to_toml_value(str(folder))}")
    if device is not None:
        overrides.append(f"device={device}")
    if halve:
        overrides.append("run.halve=true")
    names, runs, variations = list(jobs or []), list(resume or []), list(vary or [])

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
        if variations and runs:
            raise Mistake(f"--vary {variations[0]} is for new runs: {runs[0]} goes on as the job it is of")
        if folder is not None and runs:
            raise Mistake(f"--folder {folder} is for new runs: {runs[0]} goes on where it is stored")
        if len({run.resolve() for run in runs}) < len(runs):
            raise Mistake("--resume names a run twice: it can go on once")
        if names:
            return load_jobs(names, overrides, variations)
        from ..observe import RunFolder

        return load_jobs([RunFolder.open(run).require_job() for run in runs], overrides)

    if launcher_rank() is None:
        load()  # says what is wrong with a job where there is no MPI to run it

    from ..message import World, run
    from ..message.signals import leave_last
    from ..observe.standings import standings
    from ..train import fleet

    async def main(world: World) -> list[int]:
        results = await fleet.train(world, load(), resume=runs)
        if world.rank == 0 and (variations or len(results) > 2):
            show(standings([result.folder for result in results]))
        return world.node_pids if world.rank == 0 and any(result.failure for result in results) else []

    if pids := run(main):
        leave_last(pids)  # a launcher ends what still runs as soon as a rank leaves with a status
        raise SystemExit(1)
