"""A recorded agent: what it said then, said again.

Theory of operation
-------------------
With the settings of the recording every output comes in the entry it came in then, and the session does the
same. With other settings it may ask for a reply, or commit a turn, earlier, later, more or less often. So what
the models did is cut into *tasks*: a reply that was asked for, a turn whose words were asked for, and what came
of it how much later. A task that the replay asks for at another moment delivers after the same delays. What the
recording never asked for cannot be answered: such a reply ends at once, and is counted.

What the predictor saw of the user stays at its place. It was judged under the floor of the recording, so the
further a replay moves away from it, the less it means.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from duplex.agent import (
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    BeginReply,
    CommitTurn,
    DropReply,
    FinalTranscript,
    Heard,
    Mark,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
)
from duplex.clock import Clock
from duplex.errors import RecordingError
from duplex.records.journal import Entry, Reader

_SAME_TASK_US = 5_000_000  # further apart than this, two requests are not for the same thing


@dataclass(slots=True)
class Task:
    """Something the agent was asked for. ``outputs``: (after how many microseconds, the event as written)."""

    kind: str  # the command that began it
    task_id: str
    entry: int
    at_us: int
    outputs: list[tuple[int, Any]] = field(default_factory=list)
    taken: bool = False
    exact: bool = False  # asked for in the same entry, by the same name


def tasks_of(lines: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Task]:
    """The tasks in a journal, in order."""
    tasks: list[Task] = []
    newest: dict[tuple[str, str], Task] = {}
    at_us = 0
    for number, line in lines:
        try:
            at_us = line["us"][0] if line.get("us") else at_us
            for events in line.get("collected", ()):
                for event in events:
                    if (key := _key(event)) in newest:
                        task = newest[key]
                        task.outputs.append((at_us - task.at_us, event))
            for command in line.get("commands", ()):
                if command["is"] in ("BeginReply", "CommitTurn"):
                    key = (command["is"], str(command["reply_id" if command["is"] == "BeginReply" else "turn_id"]))
                    tasks.append(Task(*key, number, at_us))
                    newest[key] = tasks[-1]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RecordingError(f"Line {number} of the journal is damaged: {type(error).__name__} {error}.") from error
    return tasks


def _key(event: Mapping[str, Any]) -> tuple[str, str]:
    if event["is"] == "FinalTranscript":
        return "CommitTurn", str(event["turn_id"])
    return "BeginReply", str(event.get("reply_id"))


class RecordedMind:
    """The agent session. ``load`` says what entry is being replayed; ``moved`` and ``unanswered`` count tasks."""

    def __init__(self, tasks: Sequence[Task], reader: Reader) -> None:
        self._tasks, self._reader = tasks, reader
        self._entry = Entry("start")
        self._number = 0
        self._now_us = 0
        self._collects = 0
        self._calls: dict[str, int] = {}
        self._newest: dict[tuple[str, str], Task] = {}
        self._due: list[tuple[int, int, str, AgentEvent]] = []  # (when, order, for which task of the replay, what)
        self._order = 0
        self._next_task = 0
        self.moved = 0
        self.unanswered = 0

    def load(self, number: int, entry: Entry) -> None:
        self._number, self._entry, self._collects = number, entry, 0
        self._calls = {}
        if entry.readings_us:
            self._now_us = entry.readings_us[0]
        while self._next_task < len(self._tasks) and self._tasks[self._next_task].entry < number:
            task = self._tasks[self._next_task]
            self._newest[task.kind, task.task_id] = task
            self._next_task += 1

    def step(self, heard: Heard) -> None:
        self._raise("step")

    def collect(self) -> Sequence[AgentEvent]:
        self._raise("collect")
        recorded = self._entry.collected[self._collects] if self._collects < len(self._entry.collected) else ()
        self._collects += 1
        events = [event for event in recorded if self._in_place(event)]
        while self._due and self._due[0][0] <= self._now_us:
            events.append(heapq.heappop(self._due)[3])
        return events

    def _in_place(self, event: AgentEvent) -> bool:
        """Whether it belongs here: to no task, or to one that was asked for just as it was then."""
        match event:
            case ReplyText(reply_id=name) | ReplyAudio(reply_id=name) | ReplyEnd(reply_id=name):
                key = ("BeginReply", name)
            case Mark(reply_id=str(name)):
                key = ("BeginReply", name)
            case FinalTranscript(turn_id=name):
                key = ("CommitTurn", name)
            case _:
                return True
        task = self._newest.get(key)
        return task is None or task.exact

    def command(self, command: AgentCommand) -> None:
        match command:
            case BeginReply(reply_id=name):
                self._begin("BeginReply", name)
            case CommitTurn(turn_id=name):
                self._begin("CommitTurn", name)
            case DropReply(reply_id=name):
                self._due = [due for due in self._due if due[2] != name]
                heapq.heapify(self._due)
            case _:
                pass
        self._raise("command")

    def close(self) -> None: ...

    def _begin(self, kind: str, name: str) -> None:
        same = [task for task in self._tasks if task.kind == kind and not task.taken]
        same = [task for task in same if abs(task.at_us - self._now_us) <= _SAME_TASK_US]
        task = min(same, key=lambda t: (abs(t.entry - self._number), t.task_id != name), default=None)
        if task is None:
            self.unanswered += 1
            if kind == "BeginReply":
                self._put(self._now_us, name, ReplyEnd(name))
            return
        task.taken = True
        task.exact = task.entry == self._number and task.task_id == name
        if task.exact:
            return
        self.moved += 1
        for delay_us, written in task.outputs:
            self._put(self._now_us + delay_us, name, _renamed(self._reader.event(written), name, task, self._now_us))

    def _put(self, due_us: int, name: str, event: AgentEvent) -> None:
        self._order += 1
        heapq.heappush(self._due, (due_us, self._order, name, event))

    def _raise(self, where: str) -> None:
        call = self._calls[where] = self._calls.get(where, -1) + 1
        raised = self._entry.raised
        if raised is not None and raised.where == where and raised.call == call:
            raise raised.exception()


def _renamed(event: AgentEvent, name: str, task: Task, now_us: int) -> AgentEvent:
    match event:
        case Mark(at_s=at_s):
            return replace(event, reply_id=name, at_s=at_s + (now_us - task.at_us) / 1e6)
        case FinalTranscript():
            return replace(event, turn_id=name)
        case ReplyText() | ReplyAudio() | ReplyEnd():
            return replace(event, reply_id=name)
        case _:
            return event


class RecordedAgent:
    """Opens ``mind``, once; or fails to open as the agent did then."""

    def __init__(self, info: AgentInfo, mind: RecordedMind, first: Entry) -> None:
        self.info = info
        self._mind, self._first = mind, first

    async def start(self) -> None: ...

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        if self._first.raised is not None and self._first.raised.where == "open":
            raise self._first.raised.exception()
        return self._mind

    async def close(self) -> None: ...
