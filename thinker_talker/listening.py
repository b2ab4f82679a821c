"""A listener engine for any speech model that can be interrupted.

Theory of operation. Streams only append audio and file requests; ``workers`` threads take the requests
in the order *finals, partials, upkeep* and run the model. At most one request of a stream runs at a
time, so what is frozen only moves forward. A stream has at most one final and one partial (or upkeep)
waiting: a newer request takes its place. When a final arrives and no worker is free, one running partial is
aborted and, unless a newer request of its stream has replaced it, waits again; what it had recognised
so far becomes the draft of the next attempt. So a final waits for one operation of the model, not for
a whole transcription. Upkeep is a partial nobody asked for: it freezes a long utterance as it grows,
so that the final never has more than a tail to do.

Locks: ``engine._changed`` guards the queues, ``stream._lock`` one utterance; neither is taken inside
the other. Only ``stream._delivery`` is held while ``on_result`` runs, so ``on_result`` may call the
stream.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from duplex.clock import MonotonicClock
from duplex.errors import AgentError, AgentFaultError

from .listener import LISTENER_RATE_HZ, Kind, OnResult, Samples16k, Transcript
from .supervised import SupervisedThread
from .utterance import (
    EMPTY,
    FRAME_SAMPLES,
    CutPolicy,
    Recognition,
    Utterance,
    find_cut,
    frame_levels_db,
    trimmed,
    voiced_span,
)

_log = logging.getLogger(__name__)

UPKEEP_EVERY_SAMPLES = 5 * LISTENER_RATE_HZ


class Aborted(Exception):  # noqa: N818 - an outcome, not an error
    """A recognition was stopped. ``tokens`` is what it had so far."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        super().__init__("recognition aborted")
        self.tokens = tuple(tokens)


class Abort:
    """Asks a running recognition to stop, from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._callback: Callable[[], None] | None = None

    @property
    def asked(self) -> bool:
        return self._asked

    def ask(self) -> None:
        with self._lock:
            self._asked = True
            if self._callback is not None:
                self._callback()

    def on_ask(self, callback: Callable[[], None] | None) -> None:
        """Calls ``callback`` when asked (at once if that has happened); ``None`` takes it away again."""
        with self._lock:
            self._callback = callback
            if self._asked and callback is not None:
                callback()


class Recognizer(Protocol):
    """A speech model. Safe from several threads at once."""

    def recognize(self, samples_16k: Samples16k, draft: Sequence[int], abort: Abort, *, commands: bool) -> Recognition:
        """Text of ``samples_16k`` (float32[n]). ``draft`` is a guess at its tokens, which may only speed it up.

        ``commands``: what is nearly a command to stop (:mod:`.phrase_hints`) is taken for it.

        Raises :class:`Aborted` soon after ``abort`` is asked.
        """
        ...

    def warm_up(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Job:
    stream: _Stream
    utterance: Utterance
    kind: Kind
    request_id: int | None  # None: upkeep, not answered
    end: int  # position in the utterance that the answer covers
    requested_s: float
    commands: bool = False
    abort: Abort = field(default_factory=Abort)


class ThreadedListener:
    """:class:`.listener.Listener` around a :class:`Recognizer`."""

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        workers: int = 1,
        policy: CutPolicy | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._recognizer = recognizer
        self._policy = policy or CutPolicy()
        self._now = now or MonotonicClock().now
        self._changed = threading.Condition()
        self._finals: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._streams: set[_Stream] = set()
        self._closed = False
        self._workers = [SupervisedThread(self._work, f"duplex-listener-{n}") for n in range(workers)]
        for worker in self._workers:
            worker.start()

    def open(self, on_result: OnResult) -> _Stream:
        """A new stream. Raises :class:`AgentError` once the engine is closed."""
        with self._changed:
            if self._closed:
                raise AgentError("the listener is closed; load a new one")
            stream = _Stream(self, on_result, self._policy)
            self._streams.add(stream)
            return stream

    def warm_up(self) -> None:
        self._recognizer.warm_up()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            streams = list(self._streams)
            self._changed.notify_all()
        for stream in streams:
            stream.close()
        for worker in self._workers:
            worker.join()

    # ── what streams call ──

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._closed or job.stream._utterance is not job.utterance:
                return
            waiting = any(other.stream is job.stream for other in (*self._finals, *self._others))
            if job.request_id is None and waiting:
                return  # that will do the upkeep
            self._others = deque(other for other in self._others if other.stream is not job.stream)
            if job.kind == "final":
                # Who pauses often asks often: only the newest words are still wanted, and older requests that have not
                # begun would make it late.
                self._finals = deque(other for other in self._finals if other.stream is not job.stream)
                self._finals.append(job)
                self._make_way(job)
            elif job.request_id is None:
                self._others.append(job)
            else:  # before all upkeep, after the partials that came earlier
                partials = [other for other in self._others if other.request_id is not None]
                upkeep = [other for other in self._others if other.request_id is None]
                self._others = deque([*partials, job, *upkeep])
            self._changed.notify()

    def _make_way(self, final: _Job) -> None:
        """Aborts a running partial if ``final`` would have to wait for it. The engine's lock is held."""
        partials = [job for job in self._running if job.kind == "partial" and not job.abort.asked]
        own = [job for job in partials if job.stream is final.stream]
        if own:
            own[0].abort.ask()
        elif partials and len(self._running) == len(self._workers):
            partials[0].abort.ask()

    def _withdraw(self, stream: _Stream, *, closed: bool = False) -> None:
        with self._changed:
            self._finals = deque(job for job in self._finals if job.stream is not stream)
            self._others = deque(job for job in self._others if job.stream is not stream)
            for job in self._running:
                if job.stream is stream:
                    job.abort.ask()
            if closed:
                self._streams.discard(stream)

    # ── the workers ──

    def _work(self) -> None:
        while True:
            with self._changed:
                job = self._take()
                while job is None and not self._closed:
                    self._changed.wait()
                    job = self._take()
                if job is None:
                    return
                self._running.append(job)
            try:
                self._serve(job)
            finally:
                with self._changed:
                    self._running.remove(job)
                    self._changed.notify_all()

    def _take(self) -> _Job | None:
        busy = {job.stream for job in self._running}
        for queue in (self._finals, self._others):
            for job in queue:
                if job.stream not in busy:
                    queue.remove(job)
                    return job
        return None

    def _serve(self, job: _Job) -> None:
        stream, utterance = job.stream, job.utterance
        error: AgentFaultError | None = None
        tail = EMPTY
        try:
            tail = self._transcribe(job)
        except Aborted as stopped:
            with stream._lock:
                if len(stopped.tokens) > len(utterance.draft):
                    utterance.draft = stopped.tokens
            self._wait_again(job)
            return
        except Exception as fault:
            _log.exception("the listener failed on request %s", job.request_id)
            error = AgentFaultError(f"speech recognition failed: {fault}")
        if job.request_id is None:
            return
        with stream._lock:
            transcript = Transcript(
                request_id=job.request_id,
                kind=job.kind,
                text=utterance.text_with(tail),
                audio_samples=job.end,
                elapsed_ms=(self._now() - job.requested_s) * 1000.0,
                confidence=utterance.confidence_with(tail),
                ended=utterance.ended_with(tail),
                error=error,
            )
        stream._deliver(utterance, transcript)

    def _wait_again(self, job: _Job) -> None:
        """Files an aborted partial anew, at the front, unless something newer took its place."""
        job.abort = Abort()
        with self._changed:
            waiting = [*self._finals, *self._others]
            if job.stream._utterance is job.utterance and all(other.stream is not job.stream for other in waiting):
                self._others.appendleft(job)

    def _transcribe(self, job: _Job) -> Recognition:
        """Freezes what is ripe, then recognises the tail."""
        stream, utterance = job.stream, job.utterance
        while True:
            with stream._lock:
                (start, samples), draft = utterance.tail(job.end), utterance.draft
            levels_db = frame_levels_db(samples)
            span = voiced_span(levels_db)
            cut = find_cut(levels_db, self._policy, final=job.kind == "final") if span is not None else None
            if cut is None:
                break
            voiced = voiced_span(levels_db[: cut // FRAME_SAMPLES])
            piece = EMPTY
            if voiced is not None:
                piece = self._recognizer.recognize(
                    trimmed(samples[:cut], voiced), draft, job.abort, commands=job.commands
                )
            with stream._lock:
                utterance.commit(start + cut, piece)
        if span is None:
            with stream._lock:
                utterance.drop_silence(until=job.end)
            return EMPTY
        position = span.shifted(start)
        with stream._lock:
            tail = utterance.known(position, job.end)
        if tail is None:
            tail = self._recognizer.recognize(trimmed(samples, span), draft, job.abort, commands=job.commands)
        with stream._lock:
            utterance.learn(position, job.end, tail)
            utterance.drop_silence(until=position.start)
        return tail


class _Stream:
    """:class:`.listener.ListenerStream`. An utterance is replaced, not cleared, so that stale work is recognised."""

    def __init__(self, engine: ThreadedListener, on_result: OnResult, policy: CutPolicy) -> None:
        self._engine = engine
        self._on_result = on_result
        self._policy = policy
        self._lock = threading.Lock()
        self._delivery = threading.RLock()
        self._utterance: Utterance | None = Utterance(policy)  # None: closed
        self._cared_for = 0  # position up to which a request or upkeep was filed

    def push(self, samples_16k: Samples16k) -> None:
        with self._lock:
            utterance = self._open_utterance()
            utterance.append(samples_16k)
            end = utterance.end
            due = end - self._cared_for >= UPKEEP_EVERY_SAMPLES
            if due:
                self._cared_for = end
        if due:
            self._engine._submit(_Job(self, utterance, "partial", None, end, self._engine._now()))

    def request(self, kind: Kind, request_id: int, *, commands: bool = False) -> None:
        with self._lock:
            utterance = self._open_utterance()
            end = self._cared_for = utterance.end
        self._engine._submit(_Job(self, utterance, kind, request_id, end, self._engine._now(), commands))

    @property
    def lost_samples(self) -> int:
        """Audio (16 kHz samples) of this utterance that was dropped because the workers did not keep up."""
        with self._lock:
            return self._utterance.lost_samples if self._utterance is not None else 0

    def reset(self) -> None:
        self._replace(Utterance(self._policy))

    def close(self) -> None:
        self._replace(None)

    def _replace(self, utterance: Utterance | None) -> None:
        with self._delivery, self._lock:
            if self._utterance is None:
                return
            self._utterance = utterance
            self._cared_for = 0
        self._engine._withdraw(self, closed=utterance is None)

    def _deliver(self, utterance: Utterance, transcript: Transcript) -> None:
        with self._delivery:
            if self._utterance is not utterance:
                return
            try:
                self._on_result(transcript)
            except Exception:
                _log.exception("on_result raised; the listener goes on")

    def _open_utterance(self) -> Utterance:
        if self._utterance is None:
            raise AgentError("the listener stream is closed; open another")
        return self._utterance
