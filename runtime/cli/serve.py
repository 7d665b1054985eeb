"""weft serve, run and predict: whatever answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import Mistake
from ..launcher import launcher_rank
from .app import command, complete_job, known_device

SERVE_EXAMPLES = """
[bold]Examples[/bold]

mpirun -n 4 weft serve models/

weft serve models/ --port 9000 --profile

weft serve runs/digits-20260314-150926

WEFT_TOKEN=secret mpirun -n 2 weft serve models/ --host 0.0.0.0

A repository holds NAME/VERSION/model.onnx, or a run of weft train as NAME/VERSION; weft.toml in it says \
which classes of requests there are. All of that is in docs/serving.md, and how to ask in docs/http.md.

Ctrl-C and SIGTERM answer what has been accepted, then end with status 0.
"""


def host_names(names: list[str] | None) -> list[str] | None:
    """What --allowed-host may be."""
    from pydantic_core import PydanticCustomError

    from ..train.serving import host_name

    for name in names or ():
        try:
            host_name(name)
        except PydanticCustomError as error:
            raise typer.BadParameter(error.message()) from None
    return names


@command(epilog=SERVE_EXAMPLES)
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
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Let browsers ask under this name, too, as behind a proxy. May be repeated; *: under any.",
            callback=host_names,
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Who decides what is computed when: weft (the default), clockwork, first_come, nexus or "
            "triton.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda", callback=known_device, help="auto: a GPU for each rank, if there are."
        ),
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
    from ..message import run
    from ..serve.program import Options
    from ..serve.program import serve as serve_all

    names = allowed_host or []
    options = Options(repository, host, port, token, names, policy, device, profiles, profile)
    run(lambda world: serve_all(world, options))


@command(
    "run",
    epilog="[bold]Examples[/bold]\n\nmpirun -n 4 weft run job.toml\n\n"
    "WEFT_TOKEN=secret mpirun -n 4 weft run job.toml --set serve.port=9000",
)
def train_and_serve(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB",
            help="One job file, perhaps with a \\[serve] table, or a packaged job's name. Not needed with "
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

    Inference goes before training on every rank's lane. Served are the model's newest checkpoint (the best
    where \\[train] best keeps it), under the job's name with the step as its version, and the models of
    \\[serve] repository.
    """
    from ..train.job import Job, load_job

    def load() -> Job:
        if job is not None:
            return load_job(job, list(set_ or []))
        if resume is None:
            raise Mistake("no job was named: give a .toml file or a packaged job, or --resume RUN")
        from ..observe import RunFolder

        return load_job(RunFolder.open(resume).require_job(), list(set_ or []))

    if launcher_rank() is None:
        load()  # says what is wrong with a job where there is no MPI to run it

    from ..message import World, run
    from ..serve.program import run as run_both

    async def main(world: World) -> None:
        await run_both(world, load(), [resume] if resume else [], token)

    run(main)


@command(
    epilog="[bold]Examples[/bold]\n\nmpirun -n 4 weft predict runs/digits-20260314-150926 images.npy\n\n"
    "weft predict runs/trees-20260314-150926 new.npy answers.csv   [dim]class and probability[/dim]\n\n"
    "weft predict model.onnx x.npy y.npy --output probabilities --batch 256"
)
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run's folder, or an .onnx file.", show_default=False)
    ],
    samples: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES",
            help="An .npy or IDX file, FILE.npz:NAME or FILE.h5:NAME, a folder or a pattern of such; the "
            "first axis counts the samples.",
            show_default=False,
        ),
    ],
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="PREDICTIONS",
            help="The file to write: .npy, or .csv with a line for each sample. [SAMPLES-predictions.npy]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Which output, where there are several. \\[of .csv: all]", show_default=False
        ),
    ] = "",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples that are computed together.")] = 32,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda", callback=known_device, help="auto: a GPU for each rank, if there are."
        ),
    ] = "auto",
) -> None:
    """Compute a model's predictions for a file of samples, on all ranks.

    Samples are taken as the run's data had them: what the run did to them first is done to them, too.
    """
    from ..message import run
    from ..serve.predict import Options, samples_for
    from ..serve.predict import predict as predict_all

    options = Options(model, samples, predictions, output, batch, device)
    if launcher_rank() is None:
        samples_for(options)  # says what is wrong with them where there is no MPI to start
    run(lambda world: predict_all(world, options))
