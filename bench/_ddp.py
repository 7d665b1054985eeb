"""The peer of bench overlap: PyTorch's DistributedDataParallel over gloo, in processes beside the ranks.

    rank i  ── {"what": "ddp", "bucket_mb": 4, "steps": 6} ──>  process i     a line of JSON each way
            <── {"seconds": ..., "losses": [...], ...} ──       the same core and the same host as rank i

So both sides take turns within seconds, and whoever's turn it is not sleeps in a read and uses no core: here
an MPI rank waits without MPI's polling, there gloo's threads wait in epoll.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from bench._steps import RATE, Sizes, Turn
from bench._sums import Sums
from bench.harness import unlaunched

DEFAULT_MB = 25
TIMEOUT_S = 300.0  # a step at 100 Mbit/s takes 3 s


class Peer:
    """A rank's side: starts the process and asks it for turns. Use as a context manager."""

    def __init__(self, sizes: Sizes, rank: int, host: str, port: int, interface: str | None) -> None:
        environment = {**unlaunched(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if interface is not None:
            environment["GLOO_SOCKET_IFNAME"] = interface
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench._ddp"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.pid = self._process.pid
        self._tell({**asdict(sizes), "rank": rank, "address": f"tcp://{host}:{port}"})

    def ready(self) -> str:
        """Wait until it can take turns; returns PyTorch's version."""
        return str(self._answer()["torch"])

    def turn(self, what: str, steps: int, warm: int, bucket_mb: int = DEFAULT_MB) -> Turn:
        """Take `steps` steps of "ddp", "compute" or "wire", `warm` of them untimed; all ranks ask alike.

        Losses are this rank's part of them. Blocks, and uses no core meanwhile.
        """
        self._tell({"what": what, "steps": steps, "warm": warm, "bucket_mb": bucket_mb})
        return Turn(**self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"PyTorch's process ended with status {self._process.wait()}; see its message above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


class Trainer:
    """The process's side: one network for each bucket size, and one that is alone."""

    def __init__(self, order: dict[str, Any]) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        self._torch, self._dist = torch, dist
        self.version = torch.__version__
        self._sizes = Sizes(tuple(order["widths"]), order["batch"], order["ranks"])
        dist.init_process_group(
            "gloo",
            init_method=order["address"],
            rank=order["rank"],
            world_size=self._sizes.ranks,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        self._weights = [torch.from_numpy(w) for w in self._sizes.weights()]
        inputs, targets = (torch.from_numpy(a) for a in self._sizes.samples())
        self._samples = (inputs, targets)
        first = order["rank"] * self._sizes.batch
        self._mine = torch.arange(first, first + self._sizes.batch)
        self._networks: dict[int, tuple[Any, Any]] = {}
        self.turns: dict[str, Callable[[dict[str, Any]], Turn]] = {
            "ddp": lambda order: self._train(order, order["bucket_mb"]),
            "compute": lambda order: self._train(order, 0),
            "wire": self._wire,
        }

    def _network(self, bucket_mb: int) -> tuple[Any, Any]:
        """The module and its optimizer, with the first weights; bucket 0 stands for no communication."""
        torch = self._torch
        if bucket_mb not in self._networks:
            layers: list[Any] = []
            for weight in self._weights:
                layers += [torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False), torch.nn.ReLU()]
            module = torch.nn.Sequential(*layers[:-1])
            if bucket_mb:
                module = torch.nn.parallel.DistributedDataParallel(module, bucket_cap_mb=bucket_mb)
            optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
            self._networks[bucket_mb] = (module, optimizer)
        module, optimizer = self._networks[bucket_mb]
        with torch.no_grad():
            for parameter, weight in zip(module.parameters(), self._weights, strict=True):
                parameter.copy_(weight)
        return module, optimizer

    def _train(self, order: dict[str, Any], bucket_mb: int) -> Turn:
        torch = self._torch
        module, optimizer = self._network(bucket_mb)
        losses: list[Any] = []
        self._dist.barrier()
        start = time.perf_counter()
        for step in range(order["steps"]):
            if step == order["warm"]:
                start = time.perf_counter()
            inputs, targets = (a.index_select(0, self._mine) for a in self._samples)  # Weft gathers them too
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(module(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        seconds = (time.perf_counter() - start) / (order["steps"] - order["warm"])
        digest = hashlib.blake2b(digest_size=16)
        for parameter in module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        return Turn(seconds, [float(loss) / self._sizes.ranks for loss in losses], digest.hexdigest())

    def _wire(self, order: dict[str, Any]) -> Turn:
        """All-reduce of as many bytes, blocking, in one piece."""
        gradient = self._torch.zeros(self._sizes.parameters)
        sums = Sums(self._dist.get_rank(), self._sizes.ranks, [gradient.numpy()])
        seconds = 0.0
        for step in range(order["steps"]):
            sums.fill()
            self._dist.barrier()
            start = time.perf_counter()
            self._dist.all_reduce(gradient)
            if step >= order["warm"]:
                seconds += time.perf_counter() - start
        sums.check("an all-reduce of gloo")
        return Turn(seconds / (order["steps"] - order["warm"]))


def main() -> None:
    """Serve turns until the input ends; its end, or that of whoever reads, is the end of the rank."""
    trainer = Trainer(json.loads(sys.stdin.readline()))
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"torch": trainer.version}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(asdict(trainer.turns[order["what"]](order))), flush=True)


if __name__ == "__main__":
    main()
