"""Two emulated devices, one four times as fast, with two models: the rig of `bench serve`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from bench._arrivals import CLASSES, Load, jobs
from weft.runtime.serve.policy import POLICIES, Job, Model, Policy, Settings, Triton
from weft.runtime.serve.profile import Profiles
from weft.runtime.serve.virtual import Cost, Device, Outcome, Simulation

FAMILIES = (("vision", 0.5), ("ranking", 0.5))
COSTS = {"vision": Cost(3e-3, 0.5e-3), "ranking": Cost(2e-3, 0.3e-3)}
DEVICES = (
    Device("fast", COSTS),
    Device("slow", {name: Cost(4 * cost.fixed_s, 4 * cost.sample_s) for name, cost in COSTS.items()}),
)
SETTINGS = Settings(CLASSES, {name: (Model(name, 32),) for name in COSTS}, max_queue=2**31)

TUNED = [(delay_s, reserve_s) for delay_s in (0.0, 2e-3) for reserve_s in (0.0, 15e-3, 25e-3, 35e-3)]
"""Triton's settings, tried beforehand as its guide advises (Model Analyzer): queue delay, and how long before
the deadline a request times out."""


class Emulated:
    """The rig: what it can do at most, and what becomes of jobs under a policy."""

    label = "emulated devices, one four times as fast"

    def __init__(self, seconds: float) -> None:
        self.capacity_per_s = self._capacity()
        self.triton = max(TUNED, key=lambda tuned: self._tuned(tuned, seconds))

    def serve(self, policy: str, arriving: Sequence[Job], seed: int) -> list[Outcome]:
        """What becomes of each job."""
        make = self._triton if policy == "triton" else POLICIES[policy]
        return self._simulation(make, seed).run(arriving)

    def _triton(self, settings: Settings, profiles: Profiles) -> Policy:
        return Triton(settings, profiles, *self.triton)

    def _simulation(self, make: Callable[[Settings, Profiles], Policy], seed: int) -> Simulation:
        return Simulation(make(SETTINGS, measured()), DEVICES, seed)

    def _capacity(self) -> float:
        """Samples a second when everything waits from the beginning: full batches, no deadlines."""
        waiting = jobs(Load(3000.0, 8.0, FAMILIES))
        for job in waiting:
            job.arrival_s, job.deadline_s = 0.0, inf
        simulation = self._simulation(POLICIES["first_come"], 0)
        simulation.run(waiting, until_s=4.0)
        return sum(batch.samples for batch, _, _ in simulation.batches) / 4.0

    def _tuned(self, tuned: tuple[float, float], seconds: float) -> int:
        arriving = jobs(Load(1.5 * self.capacity_per_s, seconds, FAMILIES, seed=99))
        simulation = self._simulation(lambda settings, profiles: Triton(settings, profiles, *tuned), 99)
        return sum(outcome.on_time for outcome in simulation.run(arriving))


def measured() -> Profiles:
    """Profiles as a server has them that has been warmed up with a few sizes."""
    profiles = Profiles()
    for device in DEVICES:
        for name, cost in device.costs.items():
            for size in (1, 2, 4, 8, 16, 32) * 4:
                profiles.of(device.name, name, 32).measured(size, cost.seconds(size) + 2 * device.link_s, 0.0)
    return profiles
