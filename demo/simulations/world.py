"""A simulation of a support team: customers write, colleagues answer, metrics change. It does no I/O."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

TEAM = "support"
BOT = "support-bot"
ACTIVE = 9
"""Target number of waiting and claimed chats; new chats open while there are fewer."""
KEPT_CLOSED = 4
"""Closed chats that stay in the queue. The oldest is removed first, so the subscribed rooms stay far below 128."""
BY_HAND = "1"
"""The chat without a simulation: it shows what is published to its room from a shell."""
PATIENCE = 300.0
"""Seconds after which a simulated colleague replaces a real agent who does not answer."""
RECENT = 30
"""Recent values that a metric event carries for its sparkline."""
SCRIPT = json.loads((Path(__file__).parent / "dialogues.json").read_text(encoding="utf-8"))


class Publisher(Protocol):
    """Publishes the events of the simulation."""

    def publish(self, channel: str, kind: str, data: dict[str, Any], sender: str | None = None) -> None:
        """Publishes events in call order."""


class Listener(Protocol):
    """Listens to rooms."""

    async def join(self, room: str) -> None:
        """Listens to a room from now on."""

    async def leave(self, room: str) -> None:
        """Stops listening to a room."""


def slug(name: str) -> str:
    """Converts a name to a user id."""
    return "-".join(name.lower().split())


@dataclass
class Chat:
    """One conversation. Times are seconds of the simulation."""

    id: str
    customer: str
    topic: str
    turns: deque[list[str]]
    status: str = "waiting"
    agent: str | None = None
    preview: str = ""
    messages: int = 0
    waiting_since: int | None = None
    """Milliseconds since the Unix epoch."""
    asked_at: float = 0.0
    spoken_at: float = 0.0
    answered: bool = False
    nudges: int = 0
    closed_at: float = 0.0
    plan: deque[tuple[float, str, str, dict[str, Any]]] = field(default_factory=deque)
    """Scheduled events, in order: (time, sender, type, data)."""
    played: bool = True
    """Whether the simulation drives this chat."""

    @property
    def room(self) -> str:
        """The channel of this chat."""
        return f"room:{self.id}"

    @property
    def customer_id(self) -> str:
        """The customer as a user."""
        return slug(self.customer)

    def facts(self) -> dict[str, Any]:
        """The event data for the queue."""
        facts = {
            "chat": self.id,
            "customer": self.customer,
            "customer_id": self.customer_id,
            "topic": self.topic,
            "preview": self.preview[:200],
            "status": self.status,
            "waiting_since": self.waiting_since,
            "messages": self.messages,
        }
        return facts if self.agent is None else {**facts, "agent": self.agent}


class Board:
    """The metrics of the board."""

    def __init__(self, chance: random.Random) -> None:
        self.first_responses: deque[float] = deque((chance.uniform(18, 55) for _ in range(15)), maxlen=15)
        self.ratings: deque[int] = deque((chance.choice((3, 4, 4, 5, 5, 5, 5)) for _ in range(60)), maxlen=60)
        self.said: deque[float] = deque(sorted(-chance.uniform(0, 60) for _ in range(26)), maxlen=1_000)
        """Times of the messages of the last minute, with some from before the start of the demo."""
        self.waits: list[float] = []
        """Seconds that customers have waited for their first answer so far."""
        self._recent: dict[str, deque[float]] = {}

    def metrics(self, chats: list[Chat], now: float) -> Iterator[dict[str, Any]]:
        """Every metric with its recent values."""
        while self.said and self.said[0] < now - 60:
            self.said.popleft()
        responses = [*self.first_responses, *(wait for wait in self.waits if wait > 20)]
        values = {
            "waiting": sum(chat.status == "waiting" for chat in chats),
            "open": sum(chat.status == "claimed" for chat in chats),
            "first_response": round(statistics.median(responses), 1),
            "rate": len(self.said),
            "csat": round(100 * sum(rating >= 4 for rating in self.ratings) / len(self.ratings), 1),
        }
        for metric, value in values.items():
            recent = self._recent.setdefault(metric, deque(maxlen=RECENT))
            recent.append(value)
            yield {"metric": metric, "value": value, "recent": list(recent)}


class World:
    """Simulates customers and colleagues, and reacts to the real agents."""

    def __init__(self, chance: random.Random, publisher: Publisher, listener: Listener) -> None:
        self._chance = chance
        self._publisher = publisher
        self._listener = listener
        self._numbers = count(chance.randrange(1_000, 90_000))  # rooms outlive a backend; two runs must share none
        self._customers: deque[dict[str, Any]] = deque(chance.sample(SCRIPT["customers"], len(SCRIPT["customers"])))
        self._opens_at = 0.0
        self._assigns_at = 8.0
        self._board_at = 0.0
        self.board = Board(chance)
        self.chats: dict[str, Chat] = {}
        self.team: set[str] = set()
        """Real agents who are online."""

    async def begin(self, now: float) -> None:
        """Opens the first chats, and the one for publishing by hand."""
        await self._open_by_hand()
        for number in range(ACTIVE):
            chat = await self._open(now, delay=0.0)
            self._run_plan(chat, now + 60)
            if number % 2:
                self._claim(chat, self._colleague(number), now)
                for agent_line, customer_line in [
                    chat.turns.popleft() for _ in range(min(number // 3, len(chat.turns)))
                ]:
                    self._say(chat, str(chat.agent), agent_line, now)
                    self._say(chat, chat.customer_id, customer_line, now)
            if chat.status == "waiting" and chat.waiting_since is not None:  # not all arrived in the same second
                earlier = self._chance.uniform(20, 240)
                chat.waiting_since -= int(earlier * 1000)
                chat.asked_at -= earlier
                self._show(chat)
        self.board = Board(self._chance)

    def show_all(self) -> None:
        """Publishes the state of all chats, because the service may have restarted without it."""
        for chat in self.chats.values():
            self._show(chat)

    def retire(self, shown: list[dict[str, Any]]) -> None:
        """Removes chats of an earlier run from the queue, given the events that it shows."""
        for facts in shown:
            if facts["chat"] not in self.chats and facts["status"] != "gone":
                self._publisher.publish(f"queue:{TEAM}", "queue.chat", {**facts, "status": "gone"})

    async def tick(self, now: float) -> None:
        """Publishes the events that are due."""
        for chat in self._played():
            self._run_plan(chat, now)
            self._think(chat, now)
        if now >= self._opens_at and sum(chat.status != "closed" for chat in self._played()) < ACTIVE:
            await self._open(now, delay=self._chance.uniform(1, 3))
            self._opens_at = now + self._chance.uniform(8, 22)
        await self._forget_old()
        self._assign(now)
        if now >= self._board_at:
            self._board_at = now + 1.0
            self.board.waits = [now - chat.asked_at for chat in self._played() if chat.status == "waiting"]
            shown = [chat for chat in self.chats.values() if chat.messages or not chat.played]
            for metric in self.board.metrics(shown, now):
                self._publisher.publish("board:main", "board.metric", metric)

    def hear(self, event: dict[str, Any], now: float) -> None:
        """Handles an event of a real agent."""
        chat = self.chats.get(event["channel"].removeprefix("room:"))
        agent, data = event["from"], event["data"]
        if chat is not None and not chat.played:
            self._hear_by_hand(chat, agent, event["type"], data)
            return
        if chat is None or agent is None or agent in (BOT, chat.customer_id) or agent in SCRIPT["colleagues"]:
            return
        self.team.add(agent)  # an agent who acts is online, even if the last presence reply lacked them
        if event["type"] == "chat.message":
            self._note(chat, agent, data["text"], now)
            self._answer(chat, now)
        elif event["type"] == "chat.status":
            self._become(chat, data["status"], data.get("agent", agent), now)
        self._show(chat)

    # --- the chat for publishing by hand --------------------------------------------------------------------------------

    def _played(self) -> list[Chat]:
        return [chat for chat in self.chats.values() if chat.played]

    async def _open_by_hand(self) -> None:
        chat = Chat(BY_HAND, "Your terminal", "What you publish to room:1", deque(), played=False)
        chat.preview = "Publish to room:1 and it shows up here"
        self.chats[chat.id] = chat
        await self._listener.join(chat.room)
        self._show(chat)

    def _hear_by_hand(self, chat: Chat, sender: str | None, kind: str, data: dict[str, Any]) -> None:
        if kind == "chat.message":
            chat.preview, chat.messages = data["text"], chat.messages + 1
            from_team = sender in self.team
            chat.waiting_since = None if from_team else chat.waiting_since or int(time.time() * 1000)
            chat.status = "waiting" if chat.status == "closed" and not from_team else chat.status
        elif kind == "chat.status":
            chat.status = "closed" if data["status"] == "closed" else "claimed"
            chat.agent, chat.waiting_since = data.get("agent", sender), None
        self._show(chat)

    # --- customers ------------------------------------------------------------------------------------------------------

    async def _open(self, now: float, delay: float) -> Chat:
        here = {chat.customer for chat in self.chats.values()}
        script = next((script for script in self._customers if script["name"] not in here), self._customers[0])
        self._customers.remove(script)
        self._customers.append(script)
        turns: deque[list[str]] = deque(script["turns"])
        chat = Chat(f"c-{next(self._numbers)}", script["name"], script["topic"], turns, asked_at=now)
        self.chats[chat.id] = chat
        await self._listener.join(chat.room)
        when = now + delay
        for line in script["opening"]:
            when = self._plan_line(chat, chat.customer_id, line, when)
        return chat

    def _answer(self, chat: Chat, now: float) -> None:
        """Schedules the customer's answer to the last message of a real agent."""
        if chat.status == "closed" or any(kind == "chat.message" for _, _, kind, _ in chat.plan):
            return
        line = chat.turns.popleft()[1] if chat.turns else self._chance.choice(SCRIPT["thanks"])
        self._plan_line(chat, chat.customer_id, line, now + self._chance.uniform(0.8, 2.0))

    def _think(self, chat: Chat, now: float) -> None:
        """Schedules the next events of a chat without a plan."""
        if chat.plan or chat.status == "closed":
            return
        if chat.status == "waiting":
            quiet = now - chat.spoken_at
            if quiet > 50 and chat.nudges < len(SCRIPT["nudges"]) and self._chance.random() < 0.02:
                self._plan_line(chat, chat.customer_id, SCRIPT["nudges"][chat.nudges], now)
                chat.nudges += 1
            elif quiet > 20 and self._may_take(chat, now) and self._chance.random() < 0.01:
                self._claim(chat, self._colleague(len(self.chats)), now)
        elif chat.agent in SCRIPT["colleagues"]:
            self._colleague_goes_on(chat, now)
        elif now - chat.spoken_at > PATIENCE:
            self._left_alone(chat, now)

    def _left_alone(self, chat: Chat, now: float) -> None:
        """Takes over a chat that a real agent left: a colleague answers, or the chat ends if the customer had an answer."""
        if chat.waiting_since is not None:
            self._claim(chat, self._colleague(chat.messages), now)
        else:
            chat.plan.append((now, BOT, "chat.status", {"status": "closed"}))

    # --- colleagues -----------------------------------------------------------------------------------------------------

    def _may_take(self, chat: Chat, now: float) -> bool:
        """Claims chats for colleagues, but leaves the longest-waiting customers to the real agents."""
        waiting = sorted((chat for chat in self._played() if chat.status == "waiting"), key=lambda chat: chat.asked_at)
        busy = sum(chat.agent in SCRIPT["colleagues"] and chat.status == "claimed" for chat in self.chats.values())
        return (chat in waiting[3:] or now - chat.asked_at > PATIENCE) and busy < 5

    def _colleague(self, number: int) -> str:
        names: list[str] = SCRIPT["colleagues"]
        return names[number % len(names)]

    def _colleague_goes_on(self, chat: Chat, now: float) -> None:
        agent = str(chat.agent)
        if chat.turns:
            theirs, customers = chat.turns.popleft()
            when = self._plan_line(chat, agent, theirs, now + self._chance.uniform(2, 7))
            self._plan_line(chat, chat.customer_id, customers, when + self._chance.uniform(1, 4))
        else:
            when = self._plan_line(
                chat, agent, self._chance.choice(SCRIPT["goodbyes"]), now + self._chance.uniform(2, 5)
            )
            chat.plan.append((when + 2, agent, "chat.status", {"status": "closed"}))

    # --- what is published ----------------------------------------------------------------------------------------------

    def _plan_line(self, chat: Chat, sender: str, text: str, when: float) -> float:
        """Schedules typing and a message; returns the time of the message."""
        done = when + min(1.0 + len(text) / 22, 4.5) * self._chance.uniform(0.8, 1.2)
        chat.plan.append((when, sender, "chat.typing", {"active": True}))
        chat.plan.append((done, sender, "chat.message", {"text": text}))
        return done

    def _run_plan(self, chat: Chat, now: float) -> None:
        while chat.plan and chat.plan[0][0] <= now:
            _, sender, kind, data = chat.plan.popleft()
            if kind == "chat.message":
                self._say(chat, sender, data["text"], now)
            elif kind == "chat.status":
                self._publisher.publish(chat.room, kind, data, sender)
                self._become(chat, data["status"], sender, now)
                self._show(chat)
            else:
                self._publisher.publish(chat.room, kind, data, sender)

    def _say(self, chat: Chat, sender: str, text: str, now: float) -> None:
        self._publisher.publish(chat.room, "chat.message", {"text": text}, sender)
        self._note(chat, sender, text, now)
        self._show(chat)

    def _note(self, chat: Chat, sender: str, text: str, now: float) -> None:
        """Updates chat and board after a message."""
        chat.preview, chat.messages, chat.spoken_at = text, chat.messages + 1, now
        self.board.said.append(now)
        if sender == chat.customer_id:
            if chat.waiting_since is None:
                chat.waiting_since = int(time.time() * 1000)
            return
        chat.waiting_since = None
        if not chat.answered:
            chat.answered = True
            self.board.first_responses.append(max(1.0, now - chat.asked_at))

    def _claim(self, chat: Chat, agent: str, now: float) -> None:
        self._publisher.publish(chat.room, "chat.status", {"status": "claimed"}, agent)
        self._become(chat, "claimed", agent, now)
        self._show(chat)

    def _become(self, chat: Chat, status: str, agent: str, now: float) -> None:
        if status == "closed":
            chat.status, chat.closed_at, chat.waiting_since = "closed", now, None
            chat.plan.clear()
            rating = self._chance.choice((3, 4, 5, 5, 5))
            self.board.ratings.append(rating)
            if agent in self.team:
                self._tell(agent, "rated", chat, f"{chat.customer} rated your chat {rating} out of 5")
        else:
            chat.status, chat.agent = "claimed", agent

    def _show(self, chat: Chat) -> None:
        self._publisher.publish(f"queue:{TEAM}", "queue.chat", chat.facts())

    def _tell(self, agent: str, kind: str, chat: Chat, text: str) -> None:
        data = {"kind": kind, "chat": chat.id, "customer": chat.customer, "text": text}
        self._publisher.publish(f"inbox:{agent}", "inbox.item", data)

    # --- periodic work --------------------------------------------------------------------------------------------------

    def _assign(self, now: float) -> None:
        """Periodically assigns the newest waiting chat to the real agent with the fewest chats."""
        if now < self._assigns_at or not self.team:
            return
        self._assigns_at = now + self._chance.uniform(60, 110)
        waiting = [chat for chat in self._played() if chat.status == "waiting" and chat.messages]
        mine = {
            agent: sum(chat.agent == agent and chat.status == "claimed" for chat in self.chats.values())
            for agent in self.team
        }
        agent = min(sorted(mine), key=mine.__getitem__)
        if len(waiting) < 3 or mine[agent] >= 3:
            return
        chat = waiting[-1]
        self._publisher.publish(chat.room, "chat.status", {"status": "claimed", "agent": agent}, BOT)
        self._become(chat, "claimed", agent, now)
        self._show(chat)
        self._tell(agent, "assigned", chat, f"{chat.customer} was assigned to you: {chat.topic}")

    async def _forget_old(self) -> None:
        closed = sorted((chat for chat in self._played() if chat.status == "closed"), key=lambda chat: chat.closed_at)
        for chat in closed[: max(0, len(closed) - KEPT_CLOSED)]:
            chat.status = "gone"
            self._show(chat)
            del self.chats[chat.id]
            await self._listener.leave(chat.room)
