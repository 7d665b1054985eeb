"""Real models through the real dispatcher: goodput of the policies on the same arrivals, what asking adds.

mpirun -n 2 python -m bench live --loads 0.8,1.5 --seconds 5

A small convolutional network (--model FILE for another ONNX file) is served on every rank. Capacity is what
the ranks answer when there is always enough to do, in samples a second. Requests then come in an open loop:
times are drawn beforehand, three classes with deadlines of 50 ms, 200 ms and 2 s, and a request is on time if
its answer is there within its deadline of the time at which it was to be sent. At each load all policies get
the same arrivals, in turn; every answer is compared with the model's first one for that sample, and some of
these with the onnx package's evaluator.

    capacity_per_s
    on_time_08              of what was sent, by Weft's policy at 0.8 of the capacity
    late_share              of what Weft's policy answered, late ones, at all loads
    top_on_time_15, lowest_on_time_15     of what these classes sent
    goodput_NAME_15         requests on time a second, by policy and load
    over_nexus_15, over_triton_15, ...    Weft's goodput over theirs, turn by turn
    added_p50_us, added_p99_us            of a request from the last rank: all that is not computing
    nothing_p50_us, nothing_p99_us        the same of a model that returns its input: 16 numbers
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench._arrivals import Load, jobs
from bench.harness import Figure, amount, check, interleaved, positive, ratio, require, several
from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.serve.client import Client
from weft.runtime.serve.policy import POLICIES
from weft.runtime.serve.request import InferRequest, Qos, Refused
from weft.runtime.serve.server import DEFAULT_POLICY, Server

NAME = "model"
NOTHING, NUMBERS = "nothing", 16
SAMPLES = 64  # different ones, whose answers are known
CHECKED = 4  # of them, by the onnx package's evaluator, which may take seconds for one
WARM_S = 1.0
ASKED = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help="an ONNX file, one input and output (a small network)")
    add("--loads", type=several(amount), default="0.8,1.5", metavar="A,B", help="of the capacity (0.8,1.5)")
    add("--seconds", type=amount, default=5.0, metavar="S", help="of each turn (5)")
    add(
        "--repetitions",
        type=positive,
        default=2,
        metavar="N",
        help="turns of each policy, with other seeds (2)",
    )
    add(
        "--policies",
        type=several(policy),
        default=",".join(POLICIES),
        metavar="A,B",
        help=f"({','.join(POLICIES)})",
    )


def policy(text: str) -> str:
    """A policy's name."""
    if text not in POLICIES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(POLICIES)}")
    return text


def main(args: argparse.Namespace) -> dict[str, Figure]:
    require("live", {"onnx": "weft[onnx]"})
    return run(lambda world: measure(world, args)) or {}


async def measure(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    """One rank's part."""
    with tempfile.TemporaryDirectory() as folder:
        root = await shared(world, folder, args.model)
        async with await Server.open(world, root, device="cpu") as server:
            client = await Client.open(world)
            figures: dict[str, Figure] = {}
            sample = await zeros(world, server)
            if server.service is not None:
                figures = await Bench(server, root, args).run()
            await world.barrier(what="the requests, which rank 0 sends", patience_s=1800)
            added = np.zeros((2, 2))
            if world.rank == world.size - 1:
                added[0] = await asking(client, NAME, sample)
                added[1] = await asking(client, NOTHING, np.arange(NUMBERS, dtype=np.float32)[None])
            await world.broadcast(added, world.size - 1)
            await world.barrier()
        return figures | {
            f"{name}_p{share}_us": Figure.of([float(value)], "us")
            for name, row in zip(("added", "nothing"), added, strict=True)
            for share, value in zip((50, 99), row, strict=True)
        }


def label(load: float) -> str:
    """As figures are called: 08 for 0.8, 125 for 1.25. Rounded to tenths, 0.84 was told of as 08."""
    return str(load).replace(".", "")


async def shared(world: World, folder: str, model: Path | None) -> Path:
    """Rank 0's repository, as all ranks know it."""
    told = np.zeros(4096, np.uint8)
    if world.rank == 0:
        version, other = (Path(folder) / "models" / name / "1" for name in (NAME, NOTHING))
        version.mkdir(parents=True)
        other.mkdir(parents=True)
        (other / "model.onnx").write_bytes(nothing())
        if model is None:
            (version / "model.onnx").write_bytes(network())
        else:
            shutil.copy(model, version / "model.onnx")
        data = str(version.parent.parent).encode()
        told[: len(data)] = np.frombuffer(data, np.uint8)
    await world.broadcast(told, 0)
    return Path(told.tobytes().rstrip(b"\0").decode())


async def check_answers(root: Path, samples: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> None:
    """WrongResultError unless the served model answers as the onnx package's evaluator does."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(root / NAME / "1" / "model.onnx"))
    weights = {each.name for each in evaluator.proto_.graph.initializer}
    (entry,) = (name for name in evaluator.input_names if name not in weights)  # old files list both
    for number, (sample, answer) in enumerate(zip(samples[:CHECKED], answers[:CHECKED], strict=True)):
        (right,) = await asyncio.to_thread(evaluator.run, None, {entry: sample})
        check(
            close(answer, np.asarray(right)),
            f"the model's answer for sample {number} is not the onnx evaluator's",
        )


def close(answer: np.ndarray, known: np.ndarray) -> bool:
    """Whether these are the same but for the order of float32 sums: large terms may add up to little."""
    atol = 1e-4 * max(1.0, float(np.abs(known).max()))
    return answer.shape == known.shape and bool(np.allclose(answer, known, rtol=1e-3, atol=atol))


async def zeros(world: World, server: Server) -> np.ndarray:
    """A sample of the model that is served, known to all ranks; a Mistake where it is not one array."""
    shape = np.zeros(16, np.int64)
    if server.service is not None:
        model = server.service.model(NAME)
        info = model.inputs[0]
        if len(model.inputs) + len(model.outputs) != 2 or info.datatype != "FP32" or -1 in info.shape[1:]:
            raise Mistake(
                f"the model has inputs {model.inputs} and {len(model.outputs)} outputs: "
                "give one with a single input of float32, of which only the batch is open, and one output"
            )
        shape[: len(info.shape) - 1] = info.shape[1:]
    await world.broadcast(shape, 0)
    return np.zeros((1, *shape[shape > 0]), np.float32)


def network() -> bytes:
    """Three convolutions over 32 x 32 pixels and a dense layer: 84 million multiplications a sample."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    shapes = {"w1": (64, 3, 3, 3), "w2": (64, 64, 3, 3), "w3": (128, 64, 3, 3), "w4": (128, 10)}
    weights = [
        numpy_helper.from_array(
            (random.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32), name
        )
        for name, s in shapes.items()
    ]
    layers, value = [], "pixels"
    for number, stride in ((1, 1), (2, 1), (3, 2)):
        layers.append(
            helper.make_node(
                "Conv",
                [value, f"w{number}"],
                [f"c{number}"],
                pads=[1] * 4,
                strides=[stride] * 2,
                kernel_shape=[3, 3],
            )
        )
        layers.append(helper.make_node("Relu", [f"c{number}"], [value := f"r{number}"]))
    layers.append(helper.make_node("GlobalAveragePool", [value], ["mean"]))
    layers.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    layers.append(helper.make_node("MatMul", ["flat", "w4"], ["scores"]))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(layers, "small", [pixels], [scores], weights)
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return made


def nothing() -> bytes:
    """A model that returns its input."""
    from onnx import TensorProto, helper

    given, back = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", NUMBERS]) for name in ("x", "y")
    )
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], NOTHING, [given], [back])
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return made


@dataclass(slots=True)
class Turn:
    """What became of a turn's requests, by class: sent, on time, late."""

    seconds: float
    sent: dict[str, int]
    on_time: dict[str, int]
    late: int = 0

    @property
    def goodput(self) -> float:
        return sum(self.on_time.values()) / self.seconds

    def share(self, *classes: str) -> float:
        names = classes or tuple(self.sent)
        return sum(self.on_time[name] for name in names) / max(1, sum(self.sent[name] for name in names))


class Bench:
    """Rank 0's part: all requests are made here."""

    def __init__(self, server: Server, root: Path, args: argparse.Namespace) -> None:
        assert server.service is not None
        self._server, self._service, self._args = server, server.service, args
        self._root = root
        (info,) = self._service.model(NAME).inputs
        self._largest = self._service.model(NAME).max_batch
        self._input = info.name
        random = np.random.default_rng(2)
        self._samples = random.standard_normal((SAMPLES, *info.shape[1:]), np.float32)
        self._answers: list[np.ndarray] = []
        self._policies: Sequence[str] = args.policies

    async def run(self) -> dict[str, Figure]:
        """All turns."""
        for number in range(SAMPLES):
            self._answers.append(await self._ask(number, Qos(best_effort=True)))
        await check_answers(self._root, [sample[None] for sample in self._samples], self._answers)
        capacity = await self._capacity()
        print(f"live: {capacity:.0f} samples a second", file=sys.stderr)
        loads = self._args.loads
        turns: dict[tuple[str, float], list[Turn]] = defaultdict(list)
        for load in loads:
            order = interleaved(self._policies, self._args.repetitions, warmup=0)
            for number, (policy, _) in enumerate(order):
                turn = await self._turn(policy, load * capacity, number // len(self._policies))
                turns[policy, load].append(turn)
        return {"capacity_per_s": Figure.of([capacity], "/s"), **self._figures(turns)}

    def _figures(self, turns: dict[tuple[str, float], list[Turn]]) -> dict[str, Figure]:
        found = {}
        own = DEFAULT_POLICY
        for (policy, load), some in turns.items():
            name = label(load)
            found[f"goodput_{policy}_{name}"] = Figure.of([turn.goodput for turn in some], "/s")
            mine = turns.get((own, load), [])
            if policy != own and mine:
                pair = [t.goodput for t in mine], [max(t.goodput, 1e-9) for t in some]
                found[f"over_{policy}_{name}"] = ratio(*pair)
            if policy == own:
                found[f"on_time_{name}"] = Figure.of([turn.share() for turn in some], "")
                found[f"top_on_time_{name}"] = Figure.of([turn.share("interactive") for turn in some], "")
                found[f"lowest_on_time_{name}"] = Figure.of([turn.share("batch") for turn in some], "")
        ours = [turn for (policy, _), some in turns.items() if policy == own for turn in some]
        if ours:
            shares = [turn.late / max(1, turn.late + sum(turn.on_time.values())) for turn in ours]
            found["late_share"] = Figure.of(shares, "")
        return found

    async def _ask(self, number: int, qos: Qos) -> np.ndarray:
        sample = self._samples[number % SAMPLES][None]
        result = await self._service.infer(InferRequest(NAME, {self._input: sample}, qos=qos))
        (output,) = result.outputs.values()
        return output

    async def _capacity(self) -> float:
        """Samples a second while there is always enough to do."""
        answered = 0
        begin_s = time.monotonic() + WARM_S
        end_s = begin_s + self._args.seconds

        async def keep_asking(number: int) -> None:
            nonlocal answered, end_s
            while time.monotonic() < end_s:
                await self._ask(number, Qos(best_effort=True, service_class="batch"))
                now_s = time.monotonic()
                if begin_s <= now_s and (now_s < end_s or not answered):
                    answered += 1
                    end_s = max(end_s, now_s)  # where one batch takes longer than all of it

        workers = len(self._server.service.status()["workers"]) if self._server.service else 1
        await asyncio.gather(*(keep_asking(number) for number in range(4 * self._largest * workers)))
        return float(answered / (end_s - begin_s))

    async def _turn(self, policy: str, per_s: float, seed: int) -> Turn:
        """One policy's requests, all to their ends."""
        await self._server.use(policy)
        drawn = jobs(Load(per_s, self._args.seconds, ((NAME, 1.0),), seed=1 + seed))
        turn = Turn(self._args.seconds, defaultdict(int), defaultdict(int))
        start_s = time.monotonic() + 0.1

        async def one(number: int, arrival_s: float, deadline_s: float, name: str) -> None:
            turn.sent[name] += 1
            # What is left of the deadline when the loop comes to it: lateness of the sender counts.
            left_s = start_s + deadline_s - time.monotonic()
            try:
                if left_s <= 0:
                    return
                output = await self._ask(number, Qos(name, left_s))
            except Refused:
                return
            if time.monotonic() <= start_s + deadline_s:
                turn.on_time[name] += 1
            else:
                turn.late += 1
            check(
                close(output, self._answers[number % SAMPLES]),
                f"request {number} got another's answer under {policy}",
            )

        tasks = []
        for job in drawn:
            await asyncio.sleep(max(0.0, start_s + job.arrival_s - time.monotonic()))
            tasks.append(
                asyncio.create_task(one(job.number, job.arrival_s, job.deadline_s, job.service_class))
            )
        await asyncio.gather(*tasks)
        return turn


async def asking(client: Client, name: str, sample: np.ndarray) -> tuple[float, float]:
    """Median and 99th percentile, in us, of what a request takes beside its computing."""
    added = []
    for number in range(ASKED + 50):
        begin_s = time.perf_counter()
        result = await client.infer(name, sample, best_effort=True)
        if number >= 50:
            added.append(time.perf_counter() - begin_s - result.compute_s)
        if name == NOTHING:
            (output,) = result.outputs.values()
            check(np.array_equal(output, sample), f"request {number} did not get its own numbers back")
    return tuple(1e6 * float(value) for value in np.percentile(added, (50, 99)))  # type: ignore[return-value]
