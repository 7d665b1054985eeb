"""Array mathematics: no MPI, no asyncio, no files."""
