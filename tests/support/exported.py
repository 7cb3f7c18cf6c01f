"""Reads the metrics that a node exports, as Prometheus does."""

from __future__ import annotations

from service.telemetry.metrics import Metrics


def exported(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of a sample, by its name without the prefix `tidewire_`; 0 if there is none."""
    return metrics.registry.get_sample_value(f"tidewire_{name}", labels) or 0.0
