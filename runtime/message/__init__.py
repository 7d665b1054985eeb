"""HOW ranks talk: asyncio on MPI. The only package that imports mpi4py.

from weft.runtime.message import World, run

async def main(world: World) -> None: ...

run(main)
"""

from ..errors import RequestError
from . import mpi  # first: it keeps mpi4py from starting MPI, and says what to do where there is none
from .board import Board
from .channel import Channel, Message
from .communicator import Communicator
from .launch import run
from .receive import ANY, Status
from .window import Window
from .world import World

__all__ = [
    "ANY",
    "Board",
    "Channel",
    "Communicator",
    "Message",
    "RequestError",
    "Status",
    "Window",
    "World",
    "mpi",
    "run",
]
