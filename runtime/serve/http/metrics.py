"""What Prometheus scrapes at /metrics: text format 0.0.4, under Triton's names where they exist.

Written here and not by prometheus-client: that appends `_total` to a counter's name, and Triton's have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..request import ModelStatistics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE = "counter", "gauge"


@dataclass(slots=True)
class Family:
    """A metric, and its samples: labels and a value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: object) -> None:
        """A sample; None, what is not known yet, is none."""
        if value is not None:
            self.samples.append(({key: str(label) for key, label in labels.items()}, value))


def exposition(models: Mapping[tuple[str, str], ModelStatistics], status: Mapping[str, Any]) -> str:
    """The whole page, from a service's statistics and status."""
    return "".join(_lines([*_of_models(models), *_of_server(status)]))


def _of_models(models: Mapping[tuple[str, str], ModelStatistics]) -> list[Family]:
    success = Family("nv_inference_request_success", COUNTER, "Requests answered")
    failure = Family("nv_inference_request_failure", COUNTER, "Requests that failed or were refused")
    count = Family("nv_inference_count", COUNTER, "Samples computed")
    executions = Family("nv_inference_exec_count", COUNTER, "Batches computed")
    request = Family("nv_inference_request_duration_us", COUNTER, "Time from arrival to answer, in sum")
    queue = Family("nv_inference_queue_duration_us", COUNTER, "Time in the queue, in sum")
    before = Family("nv_inference_compute_input_duration_us", COUNTER, "Part of compute_infer")
    compute = Family("nv_inference_compute_infer_duration_us", COUNTER, "Time of computing, in sum")
    after = Family("nv_inference_compute_output_duration_us", COUNTER, "Part of compute_infer")
    refused = Family("weft_model_refused_total", COUNTER, "Requests refused, by reason")
    for (model, version), of in models.items():
        labels = {"model": model, "version": version}
        success.add(of.success.count, **labels)
        failure.add(of.fail.count + sum(of.refused.values()), **labels)
        count.add(of.inference_count, **labels)
        executions.add(of.execution_count, **labels)
        request.add(of.success.ns // 1000, **labels)
        queue.add(of.queue.ns // 1000, **labels)
        before.add(0, **labels)
        compute.add(of.compute.ns // 1000, **labels)
        after.add(0, **labels)
        for reason, number in of.refused.items():
            refused.add(number, **labels, reason=reason)
    return [success, failure, count, executions, request, queue, before, compute, after, refused]


def _of_server(status: Mapping[str, Any]) -> list[Family]:
    uptime = Family("weft_uptime_seconds", GAUGE, "Since the server started")
    uptime.add(status.get("uptime_s"))
    draining = Family("weft_draining", GAUGE, "1 while the server ends")
    draining.add(int(status.get("draining", False)))
    return [
        uptime,
        draining,
        *_of_classes(status.get("classes", ())),
        *_of_queues(status.get("queues", ())),
        *_of_workers(status.get("workers", ())),
        *_of_profiles(status.get("profiles", ())),
    ]


def _of_classes(rows: Any) -> list[Family]:
    on_time = Family("weft_on_time_total", COUNTER, "Requests answered within their deadline")
    late = Family("weft_late_total", COUNTER, "Requests accepted and answered after their deadline")
    failed = Family("weft_failed_total", COUNTER, "Requests whose computing failed")
    refused = Family("weft_refused_total", COUNTER, "Requests refused, by reason")
    latency = Family("weft_latency_ms", GAUGE, "From arrival to answer, of late")
    for row in rows:
        name = row["class"]
        on_time.add(row["on_time"], **{"class": name})
        late.add(row["late"], **{"class": name})
        failed.add(row["failed"], **{"class": name})
        for reason, number in row["refused"].items():
            refused.add(number, **{"class": name}, reason=reason)
        latency.add(row["p50_ms"], **{"class": name}, quantile="0.5")
        latency.add(row["p99_ms"], **{"class": name}, quantile="0.99")
    return [on_time, late, failed, refused, latency]


def _of_queues(rows: Any) -> list[Family]:
    queued = Family("weft_queued", GAUGE, "Requests waiting")
    oldest = Family("weft_queue_oldest_seconds", GAUGE, "How long the first of them has waited")
    for row in rows:
        queued.add(row["queued"], **{"class": row["class"]})
        oldest.add(row["oldest_s"], **{"class": row["class"]})
    return [queued, oldest]


def _of_workers(rows: Any) -> list[Family]:
    busy = Family("weft_worker_busy_share", GAUGE, "Share of the time in which it computed, of late")
    queued = Family("weft_worker_queued", GAUGE, "Samples given to it and not computed")
    for row in rows:
        busy.add(row["busy_share"], resource=row["resource"], state=row["state"])
        queued.add(row["queued"], resource=row["resource"])
    return [busy, queued]


def _of_profiles(rows: Any) -> list[Family]:
    latency = Family("weft_profile_latency_ms", GAUGE, "What a batch is expected to take")
    error = Family("weft_profile_error", GAUGE, "Predicted against measured latency, as a share")
    available = Family("weft_profile_availability", GAUGE, "Share of batches that did not fail, of late")
    for row in rows:
        labels = {key: row[key] for key in ("resource", "model", "batch")}
        latency.add(row["p50_ms"], **labels, quantile="0.5")
        latency.add(row["p99_ms"], **labels, quantile="0.99")
        error.add(row["error"], **labels)
        available.add(row["availability"], **labels)
    return [latency, error, available]


def _lines(families: list[Family]) -> Iterator[str]:
    for family in families:
        if family.samples:
            yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
        for labels, value in family.samples:
            inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            yield f"{family.name}{{{inner}}} {value}\n" if inner else f"{family.name} {value}\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
