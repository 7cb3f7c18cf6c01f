"""The metrics: names that hold, labels that stay few, registries that stay apart."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import CONTENT_TYPE, Metrics
from service.telemetry.metrics.traffic import OTHER


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"chat.message", "subscribe"})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def test_every_metric_has_the_prefix_a_help_text_and_a_name_that_fits_its_type(metrics: Metrics) -> None:
    everything = list(text_string_to_metric_families(metrics.render().decode()))
    families = [family for family in everything if not family.name.startswith("process_")]  # prometheus_client's own
    assert len(families) == 125
    assert "process_resident_memory_bytes" in {family.name for family in everything}
    for family in families:
        assert re.fullmatch(r"tidewire_[a-z0-9]+(_[a-z0-9]+)*", family.name)
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_total")), family.name
    assert CONTENT_TYPE.startswith("text/plain")


def test_no_label_can_hold_a_channel_user_or_tenant(metrics: Metrics) -> None:
    labels = {
        name for collector in metrics.registry.collect() for sample in collector.samples for name in sample.labels
    } | {
        label
        for collector in vars(metrics).values()
        for label in (*getattr(collector, "_labelnames", ()), *getattr(collector, "label_names", ()))
    }
    assert labels <= {
        "credentials", "reason", "code", "type", "delivery", "outcome", "scope", "limit", "kind",
        "route", "method", "status", "task", "generation", "le", "version", "python", "cause", "line", "reply", "quantile",
        "metric", "door", "contract", "client",
    }  # fmt: skip


def test_registries_are_apart(metrics: Metrics) -> None:
    other = Metrics()
    metrics.outbox.outbox_replaced.inc(3)
    assert value(metrics, "tidewire_outbox_replaced_total") == 3
    assert value(other, "tidewire_outbox_replaced_total") == 0


def test_counters_with_known_labels_start_at_zero(metrics: Metrics) -> None:
    assert value(metrics, "tidewire_limit_hits_total", limit="stall") == 0
    assert value(metrics, "tidewire_publishes_total", delivery="latest", outcome="duplicate") == 0
    assert value(metrics, "tidewire_connects_total", credentials="ticket") == 0


def test_there_are_no_created_samples(metrics: Metrics) -> None:
    metrics.delivery.publish_seconds.observe(0.1)
    assert b"_created" not in metrics.render()


def test_traffic_of_a_declared_type_has_its_own_label(metrics: Metrics) -> None:
    metrics.messages.count_out("chat.message", 60, times=2)
    metrics.messages.count_in("chat.message", 7)
    for direction, messages, size in (("out", 2, 120), ("in", 1, 7)):
        assert value(metrics, f"tidewire_messages_{direction}_total", type="chat.message") == messages
        assert value(metrics, f"tidewire_bytes_{direction}_total", type="chat.message") == size


def test_types_that_clients_make_up_share_one_label(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.messages.count_in(f"made.up.{number}", 1)
    assert metrics.messages.event_type("made.up") == OTHER
    assert value(metrics, "tidewire_messages_in_total", type=OTHER) == 1000
    assert metrics.render().count(b"tidewire_messages_in_total{") == 1


def test_process_figures_are_read_when_asked(metrics: Metrics) -> None:
    before = value(metrics, "tidewire_open_fds")
    with open("/dev/null", "rb"), open("/dev/null", "rb"):  # noqa: PTH123  # two descriptors, nothing else
        assert value(metrics, "tidewire_open_fds") == before + 2
    assert value(metrics, "tidewire_max_fds") >= before


def test_build_info_names_version_and_python(metrics: Metrics) -> None:
    (labels,) = (dict(labels) for name, labels in samples(metrics) if name == "tidewire_build_info")
    assert labels.keys() == {"version", "python"}
    assert labels["python"].startswith("3.")


def test_collector_that_fails_is_left_out_and_counted(metrics: Metrics) -> None:
    def broken() -> float:
        raise RuntimeError("a broken collector")

    metrics.memory_broker.broker_bytes.set_function(broken)
    metrics.outbox.outbox_replaced.inc(3)
    assert value(metrics, "tidewire_outbox_replaced_total") == 3
    assert value(metrics, "tidewire_metric_errors_total", metric="tidewire_broker_bytes") == 2
    assert ("tidewire_broker_bytes", ()) not in samples(metrics)


def test_dropped_log_records_start_at_zero(metrics: Metrics) -> None:
    for reason in ("queue_full", "write", "render"):
        assert ("tidewire_log_records_dropped_total", (("reason", reason),)) in samples(metrics)
