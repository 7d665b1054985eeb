"""How usage is written: what an argument or an option takes is told by its metavar, and by nothing else.

Typer 0.29 writes Python's names of types beside them (`--profile <bool>`, which asks for a value that a flag
does not take, `JOB <list[str]>`), and braces in the usage line around whatever must be given (`{REPO}`).
"""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

ONE: Final = {
    "run": "one job is trained and served at once; several train together with weft train JOB JOB",
    "serve": "one folder is served; put the models into it, as NAME/VERSION",
    "predict": "samples are one file, or several by a pattern in quotation marks, as 'new-*.npy'",
}
"""By command, what to say where more is named than it takes."""


def untyped(parameters: list[Any]) -> list[Any]:
    """The parameters, whose help tells no type."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
        elif isinstance(parameter, TyperArgument):
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
    return parameters


class Command(TyperCommand):
    """A command of the program."""

    def get_params(self, ctx: Any) -> list[Any]:
        """What it takes, --help included."""
        return untyped(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's, which leaves nothing; of what is too much it tells what to do."""
        ctx.allow_extra_args = self.name in ONE
        left = super().parse_args(ctx, args)
        if left and self.name in ONE and not ctx.resilient_parsing:
            ctx.fail(f"{' '.join(left)}: {ONE[self.name]}")
        return left

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What stands behind the command in the usage line."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]  # {RUN}... of several


class Group(TyperGroup):
    """The program, whose commands these are."""

    def get_params(self, ctx: Any) -> list[Any]:
        """What it takes itself, --help included."""
        return untyped(super().get_params(ctx))
