"""Microbenchmarks of Weft beside its peers; `python -m bench` lists them.

A bench is a module of this package with a docstring, `add_arguments(parser)` and
`main(arguments) -> dict[str, Figure]`; `bench/harness.py` measures, describes the machine and reports.
"""
