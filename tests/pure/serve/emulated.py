"""Small emulated devices and settings for the tests of policies."""

from __future__ import annotations

from math import inf

from weft.runtime.serve.policy import Guarantee, Job, Model, Policy, ServiceClass, Settings
from weft.runtime.serve.policy.group import Way
from weft.runtime.serve.policy.resource import Resource
from weft.runtime.serve.profile import Profiles
from weft.runtime.serve.virtual import Cost, Device

CLASSES = (
    ServiceClass("interactive", priority=1, deadline_s=0.050),
    ServiceClass("batch", priority=2, deadline_s=2.0),
)
FAST = Device("fast", {"a": Cost(3e-3, 0.5e-3), "b": Cost(2e-3, 0.3e-3)})
SLOW = Device("slow", {"a": Cost(12e-3, 2e-3), "b": Cost(8e-3, 1.2e-3)})


def settings(*guarantees: Guarantee, max_queue: int = 10_000, **families: tuple[Model, ...]) -> Settings:
    known = families or {name: (Model(name, 32),) for name in ("a", "b")}
    return Settings(CLASSES, known, guarantees, max_queue)


def profiles(*devices: Device) -> Profiles:
    """As after a warm-up."""
    found = Profiles()
    for device in devices:
        for model, cost in device.costs.items():
            for size in (1, 2, 4, 8, 16, 32) * 4:
                found.of(device.name, model, 32).measured(size, cost.seconds(size) + 2 * device.link_s, 0.0)
    return found


def started(policy: type[Policy], *devices: Device, with_settings: Settings | None = None) -> Policy:
    """A policy whose devices are up."""
    made = policy(with_settings or settings(), profiles(*devices))
    for device in devices:
        made.up(device.name, device.kind, device.costs, 0.0)
    return made


def job(
    number: int, at_s: float = 0.0, deadline_s: float = 0.050, each: str = "interactive", **more: object
) -> Job:
    """A job for model a, with a deadline from its arrival on."""
    family = str(more.pop("family", "a"))
    due_s = at_s + deadline_s if deadline_s < inf else inf
    return Job(number, family, at_s, due_s, each, **more)  # type: ignore[arg-type]


def fast_way() -> Way:
    """The faster device's, to the model `a`."""
    return Way(Resource("fast", "cpu", ["a"]), Model("a", 32), profiles(FAST).of("fast", "a"))
