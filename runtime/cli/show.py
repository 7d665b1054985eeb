"""weft info, export and report: one rank is enough to look at things."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Mistake
from ..launcher import launcher_rank
from .app import command, complete_job, show

if TYPE_CHECKING:
    from ..graph.onnx import Model
    from ..observe.model import Tensor


@command(
    epilog="[bold]Examples[/bold]\n\nweft info\n\n"
    "mpirun -n 4 weft info   [dim]how the ranks are placed, too[/dim]\n\n"
    "weft info model.onnx --batch 8   [dim]what a model consists of[/dim]\n\n"
    "weft info digits-mlp"
)
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
    """Show what Weft finds (MPI, ranks, cores, BLAS, GPUs, shared memory), or what a model consists of.

    Works without MPI too, and says how to get one.

    With MODEL show its nodes: kernels, shapes, parameters, costs, splits and tags. Of an ONNX file and of a
    run also what a client of it gives and gets: names, dtypes and shapes.
    """
    if model is not None:
        show_model(model, batch, size or [], whole)
        return
    from ..observe.machine import describe

    nodes: list[tuple[str, int]] = []
    if launcher_rank() is not None:
        from ..message import World, run

        async def main(world: World) -> int:
            nodes.extend((world.hosts[ranks[0]], len(ranks)) for ranks in world.nodes)
            return world.rank

        if run(main):
            return
    show("\n".join(f"{name:<14} {value}" for name, value in describe(nodes)))


def show_model(name: str, batch: int, sizes: list[str], whole: bool) -> None:
    """weft info MODEL"""
    if launcher_rank():
        return  # one rank is enough to read
    from ..observe.model import client_table, model_table

    given: list[Tensor] = []
    got: list[Tensor] = []
    if Path(name).suffix == ".onnx":
        found = onnx_model(Path(name), sizes, whole)
        graph, specs, first = found.graph, found.graph.specs(1), [] if whole else ["batch"]
        for tensors, names in ((given, found.inputs), (got, found.outputs)):
            for client, own in names.items():
                tensors.append(_tensor(client, specs[own].dtype, [*first, *specs[own].shape[1:]]))
        for client, array in found.constants.items():
            got.append(_tensor(client, str(array.dtype), array.shape))
    elif sizes or whole:
        raise Mistake(f"--size and --whole are for ONNX files, and {name} is none: its name ends otherwise")
    elif Path(name).suffix == ".safetensors" or os.path.isdir(name):
        from ..train.inference import trained

        run = trained(Path(name))
        graph, specs = run.graph, run.graph.specs(1)
        # Samples are given as the data had them, before the run normalised them; tokens it left alone.
        dtype = run.affine.takes if specs["x"].dtype == "float32" else specs["x"].dtype
        given.append(_tensor("x", dtype, ["batch", *specs["x"].shape[1:]]))
        got.extend(_tensor(own, specs[own].dtype, ["batch", *specs[own].shape[1:]]) for own in graph.outputs)
    else:
        from ..train.inference import predicting

        graph = predicting(name)
    show("\n\n".join([model_table(graph, batch), *([client_table(given, got)] if got else [])]))


def _tensor(name: str, dtype: str, shape: Iterable[object]) -> Tensor:
    from ..observe.model import Tensor
    from ..serve.source import DATATYPES

    return Tensor(name, dtype, DATATYPES.get(dtype, ""), [str(extent) for extent in shape])


def onnx_model(path: Path, sizes: list[str], whole: bool) -> Model:
    """An ONNX file, its open axes fixed by texts like `sequence=128`."""
    from ..graph.onnx import read

    named = {}
    for text in sizes:
        name, _, number = text.partition("=")
        if not (name and number.isdecimal() and int(number)):
            raise Mistake(f"--size is {text!r}; give a name and a whole number, as sequence=128")
        named[name] = int(number)
    return read(path, sizes=named, batched=not whole)


@command(
    epilog="[bold]Examples[/bold]\n\nweft export runs/digits-20260314-150926\n\n"
    "weft export runs/digits-20260314-150926 models/digits/1/model.onnx   [dim]a model repository[/dim]\n\n"
    "weft export runs/digits-seed-* ensemble.onnx   [dim]several, as one model[/dim]"
)
def export(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="A run's folder, or a checkpoint in it; several become one model. Behind them comes the "
            ".onnx file to write. [RUN/model.onnx]",
            show_default=False,
        ),
    ],
) -> None:
    """Write a trained model as an ONNX file, or several as one: the mean of what they predict.

    It holds the weights of the newest checkpoint (the best where \\[train] best keeps it), and takes samples
    as the run's data had them: what the run did to them first (a scale, a mean) is in the file.

    Of several runs it holds all models, and has a second output: their deviation from the mean.
    """
    if launcher_rank():
        return  # one rank is enough to write
    from ..train.export import export as write

    file = runs.pop() if len(runs) > 1 and runs[-1].suffix == ".onnx" else None
    show(write(runs, file))


@command(
    epilog="[bold]Examples[/bold]\n\nweft report runs/digits-20260314-150926\n\n"
    "weft report runs/digits-20260314-150926 runs/digits-20260314-153012   [dim]side by side[/dim]\n\n"
    "weft report runs/digits-rate-*   [dim]which of them is best[/dim]"
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs, or a pool's trace file.", show_default=False),
    ],
) -> None:
    """Show where a run's time went: tables of its ranks and of its gradient's portions, and pictures.

    Into the run's folder come loss and accuracy (loss.png), what every rank did
    when (timeline.png), and when each portion was ready, posted, done and used
    in every step (portions.csv).

    Two runs are laid side by side: a table, and a typical step of each
    (compare.png in the first). Three and more are lines of a table, the best
    first, with what sets their jobs apart, and of a picture (losses.png).

    Of a trace file that a pool of tasks has left (docs/tasks.md): who ran what,
    for whom, and took it from where; the picture comes beside the file.
    """
    if launcher_rank():
        return  # one rank is enough to draw
    if len(runs) == 1 and os.path.isfile(runs[0]):  # Path's own raises where it may not look
        from ..observe.tasks import report_tasks

        show(report_tasks(runs[0]))
        return
    from ..observe import report as reports

    if len(runs) > 2:
        show(reports.rank(runs))
    else:
        show(reports.compare(*runs) if len(runs) == 2 else reports.report(*runs))
