"""HOW ranks talk: asyncio on MPI. The only package that imports mpi4py."""
