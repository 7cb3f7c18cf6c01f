"""What k8s/controllers says is what the proxies take, and what the chart counts on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chart.cases import ingress
from tests.chart.tools import Refused
from tests.e2e.controllers import CONTROLLERS, haproxytech, read, traefik
from tests.e2e.front import seconds
from tests.e2e.programs import helm, need, program

pytestmark = pytest.mark.e2e

CHECK = 30.0


@pytest.mark.parametrize("name", ["ingress-nginx", "f5-nginx"])
def test_nginx_takes_the_workers_time(name: str, tmp_path: Path) -> None:
    need("nginx")
    [time] = [value for key, value in read(name)["data"].items() if key == "worker-shutdown-timeout"]
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid;\nworker_shutdown_timeout {time};\nevents {{}}\n")
    command = [str(program("nginx")), "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(config)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=CHECK)
    assert said.returncode == 0, said.stderr


def test_haproxy_takes_its_times(tmp_path: Path) -> None:
    need("haproxy")
    told = haproxytech()
    timeouts = "".join(
        f"  timeout {key.removeprefix('timeout-')} {value}\n"
        for key, value in told.items()
        if key.startswith("timeout-")
    )
    stops = [told["hard-stop-after"], read("jcmoraisjr")["data"]["timeout-stop"]]
    for stop in stops:
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            f"global\n  hard-stop-after {stop}\ndefaults\n  mode http\n  timeout connect 5s\n{timeouts}"
            "frontend f\n  bind 127.0.0.1:1\n"
        )
        said = subprocess.run([program("haproxy"), "-c", "-f", config], capture_output=True, text=True, timeout=CHECK)
        assert said.returncode == 0, said.stderr
    # The names are those of the controller's documentation; HAProxy knows of no others.
    assert set(told) == {"timeout-tunnel", "timeout-client", "timeout-server", "hard-stop-after"}


def test_ping_interval_is_below_the_tunnel_timeout() -> None:
    need()
    idle = int(seconds(haproxytech()["timeout-tunnel"]))
    values = {**ingress("haproxytech"), "settings": {"deadlines": {"heartbeat": idle / 2 - 1}}}
    assert helm().template(values)
    with pytest.raises(Refused, match=f"idle timeout at ingress.preset haproxytech .{idle} s."):
        helm().template({**values, "settings": {"deadlines": {"heartbeat": idle / 2}}})


def test_pods_of_proxies_live_as_long_as_they_say() -> None:
    cycle = traefik()["transport"]["lifeCycle"]
    whole = seconds(cycle["requestAcceptGraceTimeout"]) + seconds(cycle["graceTimeOut"])
    assert whole < read("traefik")["deployment"]["terminationGracePeriodSeconds"]
    drain = read("istio-gateway")["podAnnotations"]["proxy.istio.io/config"]
    assert '"terminationDrainDuration": "120s"' in drain
    assert read("istio-gateway")["terminationGracePeriodSeconds"] > 120


def test_every_file_has_its_line() -> None:
    told = (CONTROLLERS.parent / "README.md").read_text(encoding="utf-8")
    for file in CONTROLLERS.glob("*.yaml"):
        assert f"`{file.name}`" in told
