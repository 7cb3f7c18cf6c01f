"""Alerts about drains, rollouts and restarts: real nodes before two real Prometheus servers, one of which scrapes every 15 s and
the other every 30 s. Each scene is a release of its own, in a namespace of its own, and they play at the same time (8 min).

Every `for` is the chart's but two of ten minutes, which `prometheusRule.alerts` makes shorter, as a user can.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, time
from typing import TypeVar

import pytest

from tests.e2e.programs import need
from tests.e2e.watching.pods import Cluster, ObjectMetrics, Target, answers, table
from tests.faults.node import Node
from tests.faults.tokens import token
from tests.stores.process import until
from tests.stores.redis_server import RedisServer
from tests.support.harness import Running, serving
from tests.support.wire import Wire, connect

pytestmark = pytest.mark.e2e

INTERVALS = (15, 30)
SHORTENED = {"TidewirePodNotReady": {"for": "2m"}, "TidewireRolloutStuck": {"for": "2m"}}
SETTINGS = {"DEADLINES__SHUTDOWN": "2", "ROLLOUT__DRAIN_RATE": "500"}
DEAF, CLIENTS = 5, 150
OUTAGE = 100.0
"""Seconds that the broker is away: longer than the `for` of its own alert, so that the probes of five minutes are bad."""
WATCHED = 330.0
"""Seconds after the outage: those five minutes, and a scrape."""
LEFT = 20.0
"""Seconds in which a pod ends whose clients leave."""
LATE = 10.0
"""Seconds beyond a scrape interval, on a busy machine."""
FIRING = {
    ("TidewireDrainTimedOut", "cut"),
    ("TidewirePodDown", "down"),
    ("TidewirePodCrashLooping", "crash"),
    ("TidewireBrokerUnavailable", "outage"),
    ("TidewireTaskDied", "unready"),
    ("TidewirePodNotReady", "unready"),
    ("TidewireRolloutStuck", "chat"),
}
"""All that may fire: the same names are silent in every other scene."""
USERS = count()
OF_THE_MACHINE = "TidewireLoopLag"
"""Tells of how busy this machine is, and of nothing that happens here."""
DEPLOYMENT = 'namespace="chat",deployment="rt-tidewire"'


@dataclass
class Stage:
    """The Prometheus servers and the pods before them."""

    clusters: list[Cluster]
    objects: ObjectMetrics
    redis: RedisServer
    unready: Running
    stack: AsyncExitStack
    began: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    """Seconds that each pod took to end."""

    async def pod(
        self, namespace: str, broker: str = "memory://", *, only: Cluster | None = None, **settings: str
    ) -> Pod:
        """A new pod that runs and is listed."""
        node = Node(namespace, broker, {**SETTINGS, **settings})
        self.stack.push_async_callback(node.close)
        await node.start()
        pod = Pod(self, node, Target(namespace, f"{namespace}-{node.ops_port}", node.ops_port), only)
        for cluster in pod.clusters:
            cluster.list_pod(pod.target)
        return pod


@dataclass
class Pod:
    """A node as a pod of a release."""

    stage: Stage
    node: Node
    target: Target
    only: Cluster | None
    wires: list[Wire] = field(default_factory=list)

    @property
    def clusters(self) -> list[Cluster]:
        """Who scrapes it."""
        return [self.only] if self.only is not None else self.stage.clusters

    async def scraped(self, times: int = 2) -> None:
        """Waits until everyone who scrapes it has done so."""
        for cluster in self.clusters:
            expr = (
                f'count_over_time(tidewire_ready{{namespace="{self.target.namespace}",pod="{self.target.pod}"}}[10m])'
            )

            async def enough(cluster: Cluster = cluster, expr: str = expr) -> bool:
                return await cluster.value(expr) >= times

            await until(enough, f"{self.target} is scraped", within=times * cluster.interval + LATE + 30)

    async def scraped_anew(self) -> None:
        """Waits for the next scrape, so that the one after it is an interval away."""
        [cluster] = self.clusters
        expr = f'timestamp(up{{namespace="{self.target.namespace}",pod="{self.target.pod}"}})'
        last = await cluster.value(expr)

        async def anew() -> bool:
            return await cluster.value(expr) > last

        await until(anew, f"{self.target} is scraped", within=cluster.interval + LATE)

    async def clients(self, number: int, *, deaf: bool = False) -> None:
        """So many connect; deaf ones never read again."""
        for _ in range(number):
            user = f"user-{next(USERS)}"  # each its own: one user may have some connections only
            wire = await connect(self.node.port, lambda text: None, bearer=token(user, "red"))
            wire.send({"type": "ready"})
            if deaf:
                wire.read(on=False)
            self.stage.stack.callback(wire.abort)
            self.wires.append(wire)

    async def terminated(self, within: float) -> float:
        """SIGTERM, the end, and the deletion: as a kubelet does it. Seconds until the process had ended."""
        began = monotonic()
        self.node.signal(signal.SIGTERM)
        assert await self.node.wait(within) == 0
        took = monotonic() - began
        for cluster in self.clusters:
            cluster.delete_pod(self.target)
        return took


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    """Everybody, before anything happens."""
    async with AsyncExitStack() as stack:
        objects = ObjectMetrics()
        stack.push_async_callback(objects.close)
        port = await objects.start()
        redis = await stack.enter_async_context(RedisServer())
        unready = await stack.enter_async_context(serving())
        clusters = [await stack.enter_async_context(Cluster(interval, port, SHORTENED)) for interval in INTERVALS]
        yield Stage(clusters, objects, redis, unready, stack)


# --- scenes: each begins when all pods have been scraped --------------------------------------------------------------

Scene = Callable[[], Awaitable[None]]
T = TypeVar("T")


async def together(parts: Iterable[Awaitable[T]]) -> list[T]:
    """All at the same time, and none left behind if one fails."""

    async def one(part: Awaitable[T]) -> T:
        return await part

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(part)) for part in parts]
    return [task.result() for task in tasks]


async def cut(stage: Stage, cluster: Cluster) -> Scene:
    """A drain that times out, with clients that do not read."""
    pod = await stage.pod("cut", only=cluster, OUTBOX__CLOSE_GRACE="10")
    await pod.scraped()

    async def play() -> None:
        await pod.scraped_anew()
        await pod.clients(DEAF, deaf=True)  # now: their heartbeat ends them soon
        took = await pod.terminated(2 + cluster.interval + LATE)
        stage.ends[f"cut, scraped every {cluster.interval} s"] = took
        assert took > cluster.interval / 2, "it waits for the next scrape"

    return play


async def left(stage: Stage) -> Scene:
    """A drain that all clients leave in time: the pod ends at once, whoever scrapes it."""
    pod = await stage.pod("left")
    await pod.clients(DEAF)
    await pod.scraped()

    async def play() -> None:
        stage.ends["left"] = await pod.terminated(LEFT)

    return play


async def down(stage: Stage) -> Scene:
    """One pod of two is killed and stays listed."""
    pod = await stage.pod("down")
    await (await stage.pod("down")).scraped()
    await pod.scraped()
    return pod.node.kill


async def rollout(stage: Stage) -> Scene:
    """A pod is replaced, and its clients go to the new one."""
    old = await stage.pod("rollout", DEADLINES__SHUTDOWN="30", ROLLOUT__DRAIN_RATE="20")
    await old.clients(CLIENTS)
    await old.scraped()

    async def play() -> None:
        new = await stage.pod("rollout")
        await new.scraped(1)
        async with asyncio.TaskGroup() as coming:
            for wire in old.wires:
                coming.create_task(back(wire, new))
            stage.ends["rollout"] = await old.terminated(30 + LEFT)

    async def back(wire: Wire, new: Pod) -> None:
        await wire.gone
        await new.clients(1)

    return play


async def crash(stage: Stage) -> Scene:
    """A pod's process is killed and started again, three times."""
    pod = await stage.pod("crash")
    await pod.scraped()

    async def play() -> None:
        for times in range(1, 4):
            await pod.node.kill()
            await pod.node.start()
            for cluster in stage.clusters:
                expr = 'changes(process_start_time_seconds{namespace="crash"}[30m])'

                async def seen(cluster: Cluster = cluster, expr: str = expr, times: int = times) -> bool:
                    return await cluster.value(expr) >= times

                await until(seen, "Prometheus has seen the new process", within=2 * cluster.interval + LATE)

    return play


async def outage(stage: Stage) -> Scene:
    """The broker is away for a while and comes back."""
    pod = await stage.pod("outage", stage.redis.url, PROBE__INTERVAL="1")
    await pod.scraped()

    async def play() -> None:
        stage.redis.kill()
        await asyncio.sleep(OUTAGE)  # the time itself is what is wanted
        await stage.redis.restart()

    return play


async def unready(stage: Stage) -> Scene:
    """A pod whose task has died. It runs in this process: nothing kills a task from outside."""
    port = int(stage.unready.ops_url.rpartition(":")[2])
    for cluster in stage.clusters:
        cluster.list_pod(Target("unready", "unready-0", port))
    await until(lambda: answers(port), "the service in this process answers")

    async def dies() -> None:
        raise RuntimeError("a fault for the test")

    async def play() -> None:
        task = stage.unready.service.node.runtime.tasks.spawn("a task of the test", dies(), critical=True)
        await asyncio.wait([task])

    return play


async def stuck(stage: Stage) -> Scene:
    """The Deployment's controller says that a rollout makes no progress, as kube-state-metrics tells it."""
    condition = f'kube_deployment_status_condition{{{DEPLOYMENT},condition="Progressing",status="false"}}'
    stage.objects.samples |= {
        condition: 0,
        f"kube_deployment_status_replicas_unavailable{{{DEPLOYMENT}}}": 0,
        f"kube_deployment_status_replicas_available{{{DEPLOYMENT}}}": 3,
        f"kube_deployment_status_replicas_updated{{{DEPLOYMENT}}}": 3,
    }

    async def play() -> None:
        stage.objects.samples[f"kube_deployment_status_replicas_unavailable{{{DEPLOYMENT}}}"] = 1
        stage.objects.samples[f"kube_deployment_status_replicas_updated{{{DEPLOYMENT}}}"] = 1
        stage.objects.samples[condition] = 1

    return play


# --- the test ---------------------------------------------------------------------------------------------------------


async def test_alerts_about_drains_rollouts_and_restarts_at_both_scrape_intervals() -> None:
    need("prometheus", "redis-server")
    async with staged() as stage:
        prepared = [scene(stage) for scene in (left, down, rollout, crash, outage, unready, stuck)]
        prepared += [cut(stage, cluster) for cluster in stage.clusters]
        scenes = await together(prepared)
        for cluster in stage.clusters:
            fired = await cluster.firings(time() - 120, time())
            assert all(alert == OF_THE_MACHINE for alert, _ in fired), "nothing has happened yet"
        stage.began = time()
        await together([play() for play in scenes])
        await asyncio.sleep(max(0.0, stage.began + OUTAGE + WATCHED - time()))  # the time itself is what is wanted
        for pod, seconds in stage.ends.items():
            print(f"\n  the pod of {pod!r} ended after {seconds:.1f} s", end="")
        for cluster in stage.clusters:
            await judge(stage, cluster)


async def judge(stage: Stage, cluster: Cluster) -> None:
    """What fired, when, and what would have without the parts of the expressions that this is about."""
    end = time()
    found = {key: when for key, when in (await cluster.firings(stage.began, end)).items() if key[0] != OF_THE_MACHINE}
    print(
        f"\nscraped every {cluster.interval} s:\n{table(found, sorted({scene for _, scene in FIRING} | {'left', 'rollout'}))}"
    )
    assert set(found) == FIRING
    since = {alert: first for (alert, _), (first, _) in found.items()}
    # At once: the drain, the scrape that is waited for, and an evaluation.
    assert since["TidewireDrainTimedOut"] <= 2 + 3 * cluster.interval + LATE
    assert 300 <= since["TidewirePodDown"] <= 300 + 3 * cluster.interval + LATE
    first, last = found["TidewireBrokerUnavailable", "outage"]
    assert first <= 60 + 3 * cluster.interval + LATE
    assert last <= OUTAGE + 2 * cluster.interval + LATE, "it ends with the outage"
    # The probes of five minutes and of an hour are bad for longer than the two minutes of TidewireProbeBurnsFast, and after the
    # outage: that it does not fire is because one outage has been told of.
    bad = await cluster.over(
        '(namespace_job:tidewire_probe_bad:ratio_5m{namespace="outage"} > 0.0144) and '
        '(namespace_job:tidewire_probe_bad:ratio_1h{namespace="outage"} > 0.0144)',
        stage.began,
        end,
    )
    assert len(bad[0].points) >= 120 + 2 * cluster.interval
    assert bad[0].points[-1][0] >= stage.began + OUTAGE + 120
    # So many clients came to the new pod within a minute that a storm would have been told of if they had not been asked to come.
    storm = await cluster.over(
        '60 * sum(rate(tidewire_connects_total{namespace="rollout"}[2m])) / 150', stage.began, end
    )
    assert max(value for _, value in storm[0].points) > 0.2
    assert stage.ends["left"] < 5, "a pod whose clients have left does not wait for a scrape"
