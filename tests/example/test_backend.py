"""The backend of examples/chat, by its requests: accounts, what Tidewire asks, and what Tidewire tells."""

from __future__ import annotations

import pytest
from tidewire import AsyncTidewire, SubscriptionEndedError, TidewireError

from tests.example.people import PASSWORD, Chat, Person, message, new_name
from tests.stores.process import until
from tests.support.harness import eventually

pytestmark = [pytest.mark.example]


def client_of(chat: Chat, person: Person) -> AsyncTidewire:
    """Connects to Tidewire with the tokens that the backend gives this person."""

    async def token() -> str:
        return (await person.http.get("/api/token")).raise_for_status().text

    return AsyncTidewire(chat.stack.tidewire_url, token=token)


async def test_sign_up_with_a_wrong_field_names_the_field(chat: Chat) -> None:
    good = {"name": new_name("ann"), "email": f"{new_name('ann')}@example.org", "password": PASSWORD}
    async with chat.visitor() as http:
        for field, wrong in (("name", "A b"), ("email", "nowhere"), ("password", "short")):
            answer = await http.post("/api/accounts", json={**good, field: wrong})
            assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert (await http.get("/api/me")).json() is None
        assert (await http.post("/api/accounts", json=good)).status_code == 201
        assert (await http.get("/api/me")).json()["name"] == good["name"]
        for field, taken in (("name", good["name"]), ("email", good["email"])):
            other = {"name": new_name("ben"), "email": f"{new_name('ben')}@example.org", "password": PASSWORD}
            answer = await http.post("/api/accounts", json={**other, field: taken})
            assert (answer.status_code, answer.json()["field"]) == (409, field)


async def test_login_after_ten_wrong_passwords_is_refused_for_a_while(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.visitor() as http:
        form = {"name": ann.name.upper(), "password": PASSWORD}
        assert (await http.post("/api/session", json=form)).status_code == 200
        for _ in range(10):
            answer = await http.post("/api/session", json={**form, "password": "a wrong password"})
            assert answer.status_code == 401
        answer = await http.post("/api/session", json=form)
        assert (answer.status_code, answer.json()["message"]) == (
            429,
            "Too many wrong passwords. Try again in 10 minutes.",
        )
        [stored] = await chat.rows("SELECT password_hash FROM users WHERE name = $1", ann.name)
        assert stored.startswith("$argon2id$")


async def test_logout_ends_the_connections_of_the_session(chat: Chat) -> None:
    async with chat.person("ann") as ann, client_of(chat, ann) as client:
        room, _ = await ann.create_room()
        channel = client.channel(f"room:{room}")
        await channel.ready()
        assert (await ann.http.delete("/api/session")).status_code == 204
        assert (await ann.http.get("/api/token")).status_code == 401
        async with chat.tidewire() as backend:

            async def nobody_is_there() -> bool:
                return (await backend.channel_info(f"room:{room}")).subscribers == 0

            await until(nobody_is_there, "the end of the connection")


async def test_requests_without_the_signature_of_tidewire_are_refused(chat: Chat) -> None:
    question = {"hook": "read", "tenant": "default", "user": "ann", "channel": "room:1", "right": "subscribe"}
    assert (await chat.post("/tidewire/hooks", question, secret="hook-secret")).status_code == 200
    async with chat.visitor() as http:
        for path in ("/tidewire/hooks", "/tidewire/webhooks"):
            assert (await http.post(path, json=question)).status_code == 401
    for path, secret in (("/tidewire/hooks", "webhook-secret"), ("/tidewire/webhooks", "hook-secret")):
        assert (await chat.post(path, question, secret=secret)).status_code == 401
    assert (await chat.deliver([], forged=True)).status_code == 401
    assert (await chat.deliver([])).status_code == 204


async def test_request_that_is_too_large_is_refused(chat: Chat) -> None:
    async with chat.visitor() as http:
        answer = await http.post("/api/session", json={"name": "a" * 100_000, "password": "b"})
        assert answer.status_code == 413
        answer = await http.post("/api/session", json={"name": "a" * 10_000, "password": "b"})
        assert (answer.status_code, answer.json()["message"]) == (
            422,
            "Something in this request is missing or too long, or has unusual characters.",
        )


async def test_text_that_postgresql_cannot_store_is_refused(chat: Chat) -> None:
    async with chat.person("ann") as ann, client_of(chat, ann) as client:
        assert (await ann.http.post("/api/rooms", json={"title": "a\0b"})).status_code == 422
        room, _ = await ann.create_room()
        channel = client.channel(f"room:{room}")
        await channel.ready()
        with pytest.raises(TidewireError) as refused:
            await channel.publish("chat.message", {"text": "a\0b"})
        assert refused.value.code == "invalid_data"


async def test_stranger_reads_and_writes_nothing(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.person("eve") as eve, client_of(chat, eve) as client:
        room, _ = await ann.create_room()
        for path in (f"/api/rooms/{room}", f"/api/rooms/{room}/messages"):
            assert (await eve.http.get(path)).status_code == 404
        assert (await eve.http.post(f"/api/rooms/{room}/read", json={"newest": 1})).status_code == 404
        channel = client.channel(f"room:{room}")
        for attempt in (channel.ready, channel.history, client.channel(f"user:{ann.name}").ready):
            with pytest.raises(TidewireError) as refused:
                await attempt()
            assert refused.value.code == "forbidden"


async def test_member_who_leaves_hears_nothing_any_more(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.person("ben") as ben, client_of(chat, ben) as client:
        room, invitation = await ann.create_room()
        await ben.join(invitation)
        channel = client.channel(f"room:{room}")
        await channel.ready()
        assert (await ben.http.delete(f"/api/rooms/{room}/members/me")).status_code == 204
        with pytest.raises(SubscriptionEndedError):
            await channel.next(20)
        assert (await ann.http.get(f"/api/rooms/{room}")).json()["members"] == [ann.name]
        # The last member takes the room along; who repeats the request gets the same answer.
        for _ in range(2):
            assert (await ann.http.delete(f"/api/rooms/{room}/members/me")).status_code == 204
        assert await chat.rows("SELECT id FROM rooms WHERE id = $1", room) == []
        assert (await chat.deliver([message(room, ann.name, "too late")])).status_code == 204


async def test_moderation_refuses_and_masks_words(chat: Chat) -> None:
    async with chat.person("ann") as ann, client_of(chat, ann) as client:
        room, _ = await ann.create_room()
        channel = client.channel(f"room:{room}")
        await channel.ready()
        with pytest.raises(TidewireError) as refused:
            await channel.publish("chat.message", {"text": "Visit our Casino"})
        assert refused.value.details["reason"] == "Advertising is not allowed here (“Casino”)."
        await channel.publish("chat.message", {"text": "Damn, damnation!"})
        assert (await channel.next(20)).data == {"text": "D**n, damnation!"}


async def test_repeated_delivery_is_stored_counted_and_mailed_once(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.person("ben") as ben:
        room, invitation = await ann.create_room("Harbour office")
        await ben.join(invitation)
        first, second = message(room, ann.name, "The ferry is late."), message(room, ann.name, "By an hour.")
        for entries in ([first], [first, second], [second, first]):
            assert (await chat.deliver(entries)).status_code == 204
        stored = await chat.rows("SELECT text FROM messages WHERE room = $1 ORDER BY number", room)
        assert stored == ["The ferry is late.", "By an hour."]
        assert (await ben.unread(), await ann.unread()) == ([2], [0])
        await eventually(lambda: len(chat.mails_to(ben.name)) == 1)
        [(subject, text)] = chat.mails_to(ben.name)
        assert subject == "New message in Harbour office"
        assert f"{ann.name} wrote in Harbour office:\n\nThe ferry is late.\n" in text
        assert chat.mails_to(ann.name) == []

        # One mail is enough until ben has been there again.
        [room_of_ben] = (await ben.http.get("/api/rooms")).json()
        await ben.http.post(f"/api/rooms/{room}/read", json={"newest": room_of_ben["newest"]})
        assert await ben.unread() == [0]
        await chat.deliver([message(room, ann.name, "It is here.")])
        await eventually(lambda: len(chat.mails_to(ben.name)) == 2)
        assert await chat.rows("SELECT count(*) FROM mails WHERE user_name = $1", ben.name) == [2]


async def test_delivery_while_tidewire_is_away_is_repeated_without_harm(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.person("ben") as ben:
        room, invitation = await ann.create_room()
        await ben.join(invitation)
        entry = message(room, ann.name, "hello")
        chat.stack.stop_program("tidewire")
        try:
            assert (await chat.deliver([entry])).status_code == 503
        finally:
            chat.stack.start_tidewire()
        assert (await chat.deliver([entry])).status_code == 204
        assert await chat.rows("SELECT text FROM messages WHERE room = $1", room) == ["hello"]
        async with client_of(chat, ben) as client:
            numbers = await client.channel(f"user:{ben.name}").next(20)
            assert numbers is not None
            assert (numbers.type, numbers.data["unread"]) == ("room.unread", 1)


async def test_mail_that_was_not_sent_is_sent_later(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.person("ben") as ben:
        room, invitation = await ann.create_room()
        await ben.join(invitation)
        chat.stack.stop_program("mail")
        try:
            await chat.deliver([message(room, ann.name, "hello")])
            tries = "SELECT attempts FROM mails WHERE user_name = $1"

            async def has_tried() -> bool:
                return await chat.rows(tries, ben.name) != [0]

            await until(has_tried, "a try to send the mail")
            assert chat.mails_to(ben.name) == []
        finally:
            chat.stack.start_mail_server()
        await eventually(lambda: len(chat.mails_to(ben.name)) == 1)


async def test_older_messages_come_in_pages(chat: Chat) -> None:
    async with chat.person("ann") as ann, chat.person("ben") as ben:
        room, invitation = await ann.create_room()
        await ben.join(invitation)
        entries = [message(room, ann.name, str(number)) for number in range(120)]
        for start in (0, 60):
            assert (await chat.deliver(entries[start : start + 60])).status_code == 204
        assert await ben.unread() == [100]

        texts: list[str] = []
        query: dict[str, str] = {}
        more = True
        while more:
            page = (await ben.http.get(f"/api/rooms/{room}/messages", params=query)).json()
            texts = [one["data"]["text"] for one in page["messages"]] + texts
            query = {"before": page["messages"][0]["id"], "sender": ann.name}
            more = page["more"]
        assert texts == [str(number) for number in range(120)]
