"""Array mathematics: no MPI, no asyncio, no files."""

from . import blas as blas  # first: it chooses OpenBLAS's core before NumPy loads
