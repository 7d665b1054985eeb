"""Weft's tests: pure/ (no MPI), mpi/ (run by every rank), system/ (processes), gpu/."""
