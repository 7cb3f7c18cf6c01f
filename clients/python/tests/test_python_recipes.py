"""The recipes of docs/start/python.md, each run as it is printed there, in a process of its own and against a real service."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from service.settings.model import Settings
from tests.support.harness import API_KEY, DEADLINE, SECRET, Running

from tidewire import AsyncTidewire

ROOT = Path(__file__).parents[3]
_FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.DOTALL)

BROWSER = """
    def check(get, post):
        token = get("/token")["token"]
        assert token.count(".") == 2
        for _ in range(2):  # a page that repeats its request
            answer = post("/rooms/1/messages", {"id": "m-1", "text": "hi"})
            assert answer["id"] == "m-1", answer
"""
DRIVERS = {
    "flask": BROWSER
    + """
    import flask_app
    browser = flask_app.app.test_client()
    user = {"X-User": "ann"}
    check(lambda path: browser.get(path, headers=user).json, lambda path, body: browser.post(path, json=body, headers=user).json)
    refused = browser.post("/rooms/1/messages", json={"id": "m-2", "text": ""}, headers=user)
    assert (refused.status_code, refused.json["code"]) == (500, "invalid_data")

    from tidewire.testing import FakeTidewire  # as the page says
    fake = FakeTidewire()
    flask_app.tidewire = fake.client()
    browser.post("/rooms/1/messages", json={"id": "m-1", "text": "hi"}, headers=user)
    assert [event.data for event in fake.events("room:1")] == [{"text": "hi"}]
""",
    "fastapi": """
    import asyncio
    import httpx
    import fastapi_app

    async def main():
        app = fastapi_app.app
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://app", headers={"X-User": "ann"}) as browser:
                token = (await browser.get("/token")).json()["token"]
                for _ in range(2):
                    answer = await browser.post("/rooms/1/messages", json={"id": "m-1", "text": "hi"})
                    assert answer.json() == {"id": "m-1", "offset": 1}, answer.text
                refused = await browser.post("/rooms/1/messages", json={"id": "m-2", "text": ""})
                assert (refused.status_code, refused.json()["code"]) == (500, "invalid_data")

    asyncio.run(main())
""",
    "django": BROWSER
    + """
    import django
    from django.conf import settings

    settings.configure(
        ROOT_URLCONF="django_views",
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="only for this test",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
        MIDDLEWARE=["django.contrib.auth.middleware.RemoteUserMiddleware"],
    )
    django.setup()
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import RequestFactory
    from django.urls import resolve
    import json

    def respond(request):
        request.user = User(username="ann")
        view = resolve(request.path)
        return json.loads(view.func(request, **view.kwargs).content)

    factory = RequestFactory()
    check(lambda path: respond(factory.get(path)),
          lambda path, body: respond(factory.post(path, body, content_type="application/json")))
""",
    "celery": """
    import os
    import celery_tasks
    from celery.contrib.testing.worker import start_worker

    celery_tasks.app.conf.update(result_backend="cache+memory://", broker_transport_options={"polling_interval": 0.02})
    with start_worker(celery_tasks.app, perform_ping_check=False, pool="solo", loglevel="ERROR"):
        results = [celery_tasks.notify.delay("auth0|ann", {"order": 7}, event_id="m-1") for _ in range(2)]
        for result in results:
            result.get(timeout=20)
        os._exit(0)  # the worker takes five seconds to stop
""",
}
CHANNELS = {"celery": ("inbox:auth0%7Cann", {"order": 7}, None)}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
async def test_recipe_publishes_each_message_once(name: str, server: Running, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "start" / "python.md").read_text(encoding="utf-8")
    for file, text in _FILE.findall(page):
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVERS[name]), encoding="utf-8")
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        "TIDEWIRE_URL": server.url,
        "TIDEWIRE_API_KEY": API_KEY,
        "TIDEWIRE_SECRET": SECRET,
        "CELERY_BROKER": "memory://",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "driver.py",
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), DEADLINE * 3)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed.decode()
    channel, data, sender = CHANNELS.get(name, ("room:1", {"text": "hi"}, "ann"))
    async with AsyncTidewire(server.url, api_key=API_KEY) as client:
        history = await client.history(channel)
    assert [(event.id, event.data, event.sender) for event in history.events] == [("m-1", data, sender)]


def test_recipes_name_the_window_of_the_service() -> None:
    page = (ROOT / "docs" / "start" / "python.md").read_text(encoding="utf-8")
    minutes = Settings().broker.idempotency_window / 60
    assert f"`broker.idempotency_window` ({minutes:g} minutes)" in page
