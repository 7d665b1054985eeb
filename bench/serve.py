"""Goodput of five policies under a mix of deadlines, at half to twice the capacity, on emulated devices.

python -m bench serve
python -m bench serve --loads 0.8,1.5 --seeds 1 --picture serve.png

on_time_08            Weft at 0.8 of the capacity: answered on time, of the requests that could be
goodput_over_peak_15  Weft at 1.5: goodput over the best at any load
over_PEER_15          Weft's goodput at 1.5 over the peer's, on the same arrivals
late_share            Weft: accepted, but answered late, of all requests; the worst of all loads
top_class             Weft: the 50 ms class on time, the worst of the loads at which its demand fits
lowest_class          Weft: the 2 s class on time, the worst of all loads
…_bursty              the same where the rate changes between twice and two thirds of the mean

Open loop: 60% of the requests have 50 ms, 30% 200 ms, 10% 2 s, counted from when they are sent. All policies
see the same arrivals. Emulated: devices and time are simulated, the policies are those that serve.

The demand of the 50 ms class fits where it would take at most 90% of the fast device: at its deadline the
slow one can't form batches worth their time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bench._arrivals import CLASSES, MIX, Load, jobs
from bench._emulated import FAMILIES, Emulated
from bench._score import LOWEST, TOP, Score, score
from bench.harness import Figure, amount, positive, ratio, several
from weft.runtime.serve.policy import POLICIES

FAST_SHARE, FITS = 0.8, 0.9

Scores = dict[tuple[bool, float, str], list[Score]]
"""By arrivals (bursty or not), load and policy: one for each seed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--loads",
        type=several(amount),
        default="0.5,0.8,1,1.25,1.5,2",
        metavar="L[,L...]",
        help="over capacity",
    )
    add("--seconds", type=amount, default=4.0, metavar="S", help="of arrivals (4)")
    add("--seeds", type=positive, default=3, metavar="N", help="repetitions (3)")
    add("--picture", type=Path, metavar="FILE", help="goodput over load, as a PNG")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    loads = args.loads
    rig = Emulated(args.seconds)
    scores: Scores = {}
    for bursty, load, seed in product((False, True), loads, range(1, args.seeds + 1)):
        arriving = jobs(Load(load * rig.capacity_per_s, args.seconds, FAMILIES, bursty, seed))
        for policy in POLICIES:
            outcomes = rig.serve(policy, arriving, seed)
            scored = score(arriving, outcomes, args.seconds, rig.capacity_per_s)
            scores.setdefault((bursty, load, policy), []).append(scored)
    table(scores, rig.capacity_per_s)
    if args.picture is not None:
        from bench._serve_picture import draw

        draw(args.picture, scores, rig.capacity_per_s, rig.label)
    found = {"capacity_per_s": Figure.of([rig.capacity_per_s], "/s")}
    return found | figures(scores, False) | figures(scores, True)


def figures(scores: Scores, bursty: bool) -> dict[str, Figure]:
    """The figures of one kind of arrivals; those at 0.8 and 1.5 if they were among the loads."""
    end = "_bursty" if bursty else ""
    weft = {load: own for (kind, load, policy), own in scores.items() if kind == bursty and policy == "weft"}
    fits = [load for load in weft if load * MIX[0] <= FITS * FAST_SHARE]
    found: dict[str, Figure] = {}
    if 0.8 in weft:
        found[f"on_time_08{end}"] = Figure.of([each.on_time_share for each in weft[0.8]], "")
    if 1.5 in weft:
        peak = max((goodput(own) for own in weft.values()), key=sum)
        found[f"goodput_over_peak_15{end}"] = ratio(goodput(weft[1.5]), peak)
        for peer in POLICIES:
            if peer != "weft":
                found[f"over_{peer}_15{end}"] = ratio(goodput(weft[1.5]), goodput(scores[bursty, 1.5, peer]))
    found[f"late_share{end}"] = worst([[each.late_share for each in own] for own in weft.values()], most=True)
    if fits:
        found[f"top_class{end}"] = worst([[each.of_class(TOP) for each in weft[load]] for load in fits])
    found[f"lowest_class{end}"] = worst([[s.of_class(LOWEST) for s in own] for own in weft.values()])
    return found


def goodput(scores: Sequence[Score]) -> list[float]:
    return [each.goodput_per_s for each in scores]


def worst(by_load: Sequence[Sequence[float]], *, most: bool = False) -> Figure:
    return Figure.of(sorted(by_load, key=sum)[-1 if most else 0], "")


def table(scores: Scores, capacity_per_s: float) -> None:
    """Every policy at every load, on stderr."""
    from rich.console import Console
    from rich.table import Table

    title = "emulated devices: goodput over capacity; on time by deadline"
    shown = Table(title=title, pad_edge=False)  # with 80 columns the longest name has room
    for heading in ("arrivals", "load", "policy", "goodput", "late"):
        shown.add_column(heading, justify="left" if heading in ("arrivals", "policy") else "right")
    for each in CLASSES:
        shown.add_column(f"{each.deadline_s:g} s", justify="right")
    for (bursty, load, policy), own in scores.items():
        late = sum(each.late_share for each in own) / len(own)
        shown.add_row(
            "bursty" if bursty else "Poisson",
            f"{load:g}",
            policy,
            f"{sum(goodput(own)) / len(own) / capacity_per_s:.3f}",
            f"{late:.2%}",
            *(f"{sum(each.of_class(c.name) for each in own) / len(own):.2%}" for c in CLASSES),
        )
    Console(file=sys.stderr).print(shown)
