"""Additions to asyncio that know nothing of this service's domain.

tasks = TaskSupervisor(on_death=lambda name: deaths.labels(name).inc())
tasks.spawn("position check", check_forever(), critical=True)
renewal = PeriodicTask(clock, tasks, "quota renewal", renew, interval=10.0)
renewal.start()
...
renewal.close()
await tasks.close()
"""
