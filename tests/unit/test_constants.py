"""Constants of the service that must agree with the chart or the image."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from service.cli import health
from service.realtime.lifecycle import broker_health

ROOT = Path(__file__).resolve().parents[2]


def test_broker_check_ends_before_the_readiness_probe_times_out() -> None:
    probes = yaml.safe_load((ROOT / "helm/tidewire/values.yaml").read_text())["probes"]
    assert probes["readiness"]["timeoutSeconds"] > broker_health.CHECK_TIMEOUT


def test_health_command_ends_before_the_image_s_health_check_times_out() -> None:
    [timeout] = re.findall(r"^HEALTHCHECK .*--timeout=(\d+)s", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert int(timeout) > health.TIMEOUT
