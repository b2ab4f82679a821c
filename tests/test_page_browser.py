"""The page in a real Chromium, against a scripted server: the network and the peer connection are fakes.

What the fakes leave out (real SDP, real audio) is covered where a real server is called.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from duplex.web_demo import static_dir

pytestmark = pytest.mark.browser

# A peer connection that connects when it gets an answer, and does what `fake` says afterwards.
FAKE_PEER = """
window.fake = { sent: [], peers: [], iceFails: false };
class FakeSender { track = null; async replaceTrack(track) { this.track = track; } }
window.RTCPeerConnection = class extends EventTarget {
  connectionState = "new"; iceGatheringState = "complete"; localDescription = null; lines = [];
  constructor() { super(); fake.peers.push(this); }
  addTransceiver(what, options) {
    const sender = new FakeSender();
    if (typeof what !== "string") sender.track = what;
    const line = { kind: typeof what === "string" ? what : what.kind, direction: options.direction, sender };
    this.lines.push(line);
    return line;
  }
  createDataChannel(label) {
    const channel = new EventTarget();
    channel.label = label;
    channel.readyState = "connecting";
    channel.send = (text) => fake.sent.push(JSON.parse(text));
    channel.close = () => { channel.readyState = "closed"; };
    return (this.channel = channel);
  }
  async createOffer() { return { type: "offer", sdp: "v=0 offer" }; }
  async setLocalDescription(description) { this.localDescription = description; }
  async setRemoteDescription() {
    this.#become(fake.iceFails ? "failed" : "connected");
    if (fake.iceFails) return;
    this.channel.readyState = "open";
    setTimeout(() => this.channel.dispatchEvent(new Event("open")));
  }
  async getStats() { return new Map(); }
  close() { this.connectionState = "closed"; }
  fail() { this.#become("failed"); }
  #become(state) { this.connectionState = state; this.dispatchEvent(new Event("connectionstatechange")); }
};
fake.emit = (...events) => {
  for (const event of events) {
    const data = typeof event === "string" ? event : JSON.stringify(event);
    fake.peers.at(-1).channel.dispatchEvent(new MessageEvent("message", { data }));
  }
};
"""


class Server:
    """What the page's requests get: a queue of answers for POST (the last repeats), and a record of them all."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = [{"status": 201}]
        self.moves: list[str] = []
        self.move_status = 200
        self.requests: list[tuple[str, str, str | None]] = []
        self.down = False

    def handle(self, route: Route) -> None:
        request = route.request
        path = request.url.split("/", 3)[3]
        if path.endswith("/ice_servers"):  # asked before each call, and not one of its requests
            route.abort() if self.down else route.fulfill(json={"ice_servers": []})
            return
        self.requests.append((request.method, f"/{path}", request.headers.get("content-type")))
        if self.down:
            route.abort()
        elif request.method == "DELETE":
            route.fulfill(status=204)
        elif request.method == "PATCH":
            self.moves.append(request.post_data or "")
            route.fulfill(status=self.move_status, body="v=0 answer")
        else:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            call = f"/v1/realtime/calls/call_{len(self.requests)}"
            headers = {"Location": call} | answer.get("headers", {})
            route.fulfill(status=answer["status"], body=answer.get("body", "v=0 answer"), headers=headers)

    def count(self, method: str) -> int:
        return sum(1 for request in self.requests if request[0] == method)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(static_dir()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream"]
    arguments += ["--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def page(chromium: Browser, address: str, server: Server) -> Iterator[Page]:
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(FAKE_PEER)
    page.route("**/v1/realtime/calls**", server.handle)
    page.route("**/v1/realtime/calls/**", server.handle)
    page.goto(address)
    yield page
    context.close()
    assert faults == []


def wait_for_status(page: Page, status: str) -> None:
    page.wait_for_function("status => duplexState.status === status", arg=status)


def emit(page: Page, *events: dict[str, Any] | str) -> None:
    page.evaluate("events => fake.emit(...events)", list(events))


def captions(page: Page) -> list[dict[str, Any]]:
    found = page.evaluate("duplexState.captions")
    assert isinstance(found, list)
    return found


def sent(page: Page, kind: str) -> list[dict[str, Any]]:
    found = page.evaluate("kind => fake.sent.filter(event => event.type === kind)", kind)
    assert isinstance(found, list)
    return found


@pytest.fixture
def live(page: Page) -> Page:
    page.click("#talk")
    wait_for_status(page, "live")
    return page


WORDS = [
    {"text": "Paris", "start_ms": 0, "end_ms": 300, "estimated": False},
    {"text": "is", "start_ms": 300, "end_ms": 450, "estimated": False},
    {"text": "big", "start_ms": 450, "end_ms": 800, "estimated": False},
]


def reply(response: str = "r1", item: str = "i1") -> list[dict[str, Any]]:
    """A reply whose words are known and none of which is audible yet."""
    return [
        {"type": "response.created", "response": {"id": response}},
        {"type": "response.output_item.added", "response_id": response, "item": {"id": item}},
        {
            "type": "response.output_audio_transcript.delta",
            "response_id": response,
            "item_id": item,
            "delta": "Paris, is big. And old.",
        },
        {"type": "duplex.words", "response_id": response, "item_id": item, "words": WORDS},
    ]


# Getting a call


@pytest.mark.parametrize(
    ("thrown", "code"),
    [
        ("NotAllowedError", "mic-refused"),
        ("NotFoundError", "mic-missing"),
        ("NotReadableError", "mic-busy"),
    ],
)
def test_a_microphone_that_cannot_be_had(page: Page, server: Server, thrown: str, code: str) -> None:
    page.evaluate(
        "name => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', name) } }", thrown
    )
    page.click("#talk")
    wait_for_status(page, "problem")
    assert page.evaluate("duplexState.problem") == code
    expect(page.locator("#notice-words")).to_contain_text("icrophone")
    expect(page.locator("#notice-steps li").first).to_be_visible()
    assert server.count("POST") == 0

    page.get_by_role("button", name="Continue by typing").click()
    wait_for_status(page, "live")
    expect(page.locator("#composer-text")).to_be_focused()
    assert page.evaluate("fake.peers.at(-1).lines[0].sender.track") is None
    assert page.evaluate("fake.peers.at(-1).lines[0].direction") == "sendrecv"


def test_an_insecure_address_is_said_before_the_first_press(page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
    page.reload()
    wait_for_status(page, "problem")
    assert page.evaluate("duplexState.problem") == "insecure"
    expect(page.locator("#notice-steps code").first).to_contain_text("ssh -L")


def test_a_full_server_is_called_again_when_it_says(page: Page, server: Server) -> None:
    page.clock.install()
    server.answers = [{"status": 503, "headers": {"Retry-After": "40"}}, {"status": 201}]
    page.click("#talk")
    wait_for_status(page, "waiting")
    assert page.evaluate("duplexState.problem") == "full"
    expect(page.locator("#notice-countdown")).to_contain_text("again in")
    page.clock.run_for(20_000)
    assert page.evaluate("duplexState.status") == "waiting"
    assert server.count("POST") == 1
    page.clock.run_for(21_000)
    wait_for_status(page, "live")
    expect(page.locator("#notice")).to_be_hidden()
    assert server.count("POST") == 2


def test_a_server_that_is_gone_is_called_until_it_is_back(page: Page, server: Server) -> None:
    server.down = True
    page.click("#talk")
    page.wait_for_function("duplexState.problem === 'gone'")
    expect(page.locator("#status")).to_have_text("Reconnecting")
    server.down = False
    page.get_by_role("button", name="Try now").click()
    wait_for_status(page, "live")


def test_giving_up_ends_the_retries(page: Page, server: Server) -> None:
    server.answers = [{"status": 503, "headers": {"Retry-After": "3600"}}]
    page.click("#talk")
    wait_for_status(page, "waiting")
    page.get_by_role("button", name="Give up").click()
    wait_for_status(page, "idle")
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#talk")).to_be_focused()


def test_a_refusal_shows_the_servers_own_words(page: Page, server: Server) -> None:
    server.answers = [{"status": 400, "body": json.dumps({"error": {"message": "The offer has no audio."}})}]
    page.click("#talk")
    wait_for_status(page, "problem")
    expect(page.locator("#notice-text")).to_have_text("The offer has no audio.")


def test_sound_that_cannot_get_through(page: Page) -> None:
    page.evaluate("fake.iceFails = true")
    with page.expect_request(lambda request: request.method == "DELETE"):  # the server keeps no half a call
        page.click("#talk")
    wait_for_status(page, "problem")
    assert page.evaluate("duplexState.problem") == "ice"
    expect(page.locator("#notice-steps")).to_contain_text("UDP")


def test_the_offer_and_its_lines(live: Page, server: Server) -> None:
    assert server.requests == [("POST", "/v1/realtime/calls", "application/sdp")]
    lines = live.evaluate("fake.peers[0].lines.map(line => [line.kind, line.direction])")
    assert lines == [["audio", "sendrecv"], ["video", "sendonly"]]
    assert live.evaluate("fake.peers[0].channel.label") == "oai-events"


def test_hanging_up_tells_the_server(live: Page) -> None:
    expect(live.locator("#talk")).to_have_text("Hang up")
    with live.expect_request(lambda request: request.method == "DELETE") as request:
        live.click("#talk")
    assert request.value.url.endswith("/v1/realtime/calls/call_1")
    wait_for_status(live, "idle")
    assert live.evaluate("duplex.call.stream") is None, "the microphone is let go"


def test_leaving_the_page_tells_the_server(live: Page) -> None:
    with live.expect_request(lambda request: request.method == "DELETE"):
        live.evaluate("dispatchEvent(new PageTransitionEvent('pagehide'))")


def test_a_broken_connection_is_made_again(live: Page, server: Server) -> None:
    emit(live, {"type": "duplex.transcript.partial", "item_id": "u1", "text": "are you"})
    live.evaluate("fake.peers.at(-1).fail()")
    wait_for_status(live, "reconnecting")
    wait_for_status(live, "live")
    assert server.count("POST") == 2
    expect(live.locator(".divider")).to_contain_text("Reconnected")
    assert captions(live) == [{"who": "user", "text": "are you", "final": True, "cut": False}]


SECRET = {"type": "session.created", "event_id": "event_1", "session": {"duplex": {"resume_token": "secret"}}}


def test_a_lost_connection_goes_on_with_its_session(live: Page, server: Server) -> None:
    emit(live, SECRET, {"type": "duplex.floor", "event_id": "event_7", "floor": "listening", "user": "idle"})
    live.evaluate("fake.peers.at(-1).fail()")
    wait_for_status(live, "reconnecting")
    wait_for_status(live, "live")
    assert server.count("POST") == 1
    assert server.count("DELETE") == 0  # a goodbye would end the session
    (moved,) = server.moves
    assert '"resume_token":"secret"' in moved
    assert '"last_event_id":"event_7"' in moved
    expect(live.locator(".divider")).to_have_text("Reconnected.")


def test_a_session_that_is_over_is_begun_anew(live: Page, server: Server) -> None:
    server.move_status = 404
    emit(live, SECRET)
    live.evaluate("fake.peers.at(-1).fail()")
    wait_for_status(live, "reconnecting")
    wait_for_status(live, "live")
    assert server.count("PATCH") == 1
    assert server.count("POST") == 2
    expect(live.locator(".divider")).to_contain_text("starts afresh")


# What is said


def test_the_users_words_are_lighter_until_final(live: Page) -> None:
    emit(
        live,
        {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
        {"type": "duplex.transcript.partial", "item_id": "u1", "text": "what is the cat"},
        {"type": "duplex.transcript.partial", "item_id": "u1", "text": "what is the capital"},
        {"type": "conversation.item.input_audio_transcription.delta", "item_id": "u1", "delta": "what is"},
    )
    expect(live.locator(".line.user.partial .said")).to_have_text("what is the capital")
    emit(
        live,
        {
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": "u1",
            "transcript": "What is the capital?",
        },
    )
    expect(live.locator(".line.user.partial")).to_have_count(0)
    assert captions(live) == [{"who": "user", "text": "What is the capital?", "final": True, "cut": False}]
    expect(live.locator("#announcer p")).to_have_text("You: What is the capital?")


def test_a_turn_that_goes_on_opens_its_line_again(live: Page) -> None:
    final = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u1"}
    emit(
        live,
        final | {"transcript": "What is"},
        {"type": "duplex.turn.reopened", "item_id": "u1"},
        {"type": "duplex.transcript.partial", "item_id": "u1", "text": "what is the capital"},
    )
    assert captions(live) == [{"who": "user", "text": "what is the capital", "final": False, "cut": False}]
    emit(live, final | {"transcript": "What is the capital?"})
    assert captions(live) == [{"who": "user", "text": "What is the capital?", "final": True, "cut": False}]


def test_noise_leaves_no_line(live: Page) -> None:
    emit(
        live,
        {"type": "duplex.transcript.partial", "item_id": "u1", "text": "hm"},
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u1", "transcript": ""},
    )
    assert captions(live) == []
    expect(live.locator(".line.user")).to_be_hidden()


def test_a_question_stays_above_its_answer_however_late_its_words_are(live: Page) -> None:
    emit(
        live,
        {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
        *reply(),
        {"type": "output_audio_buffer.started", "response_id": "r1"},
        {"type": "duplex.playout", "response_id": "r1", "sent_ms": 400, "heard_ms": 320},
    )
    expect(live.locator(".line.agent .said")).to_contain_text("Paris,")
    emit(
        live,
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u1", "transcript": "Paris?"},
    )
    assert [line["who"] for line in captions(live)] == ["user", "agent"]


def test_the_agents_words_appear_as_they_are_heard(live: Page) -> None:
    emit(live, *reply())
    assert captions(live) == [], "nothing was audible yet"
    emit(
        live,
        {"type": "output_audio_buffer.started", "response_id": "r1"},
        {"type": "duplex.playout", "response_id": "r1", "sent_ms": 420, "heard_ms": 400},
        {"type": "duplex.playout", "response_id": "r1", "sent_ms": 420, "heard_ms": 400},  # it holds there
    )
    expect(live.locator(".line.agent .said")).to_have_text("Paris, is")
    acks = sent(live, "duplex.playback.ack")
    assert all(ack["response_id"] == "r1" and 0 < ack["played_ms"] <= 420 for ack in acks)
    emit(
        live,
        {"type": "duplex.playout", "response_id": "r1", "sent_ms": 1500, "heard_ms": 1400},
        {"type": "response.done", "response": {"id": "r1", "status": "completed"}},
        {"type": "output_audio_buffer.stopped", "response_id": "r1"},
    )
    live.wait_for_function("duplexState.captions[0].final")
    assert captions(live) == [{"who": "agent", "text": "Paris, is big. And old.", "final": True, "cut": False}]
    live.wait_for_function("fake.sent.findLast(e => e.type === 'duplex.playback.ack')?.played_ms === 1500")


def test_no_more_is_acknowledged_than_was_sent(page: Page) -> None:
    """The server refuses more. It may also take back what it had queued and not sent."""
    over = page.evaluate(
        """async () => {
          const { Playout } = await import("./playout.js");
          let seed = 11, worst = -1e9, least = 1e9, backwards = 0;
          const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
          for (let run = 0; run < 200; run += 1) {
            const clock = new Playout();
            clock.delayMs = 150 * random();
            let now = 0, sent = 0, before = 0;
            clock.started("r", now);
            for (let step = 0; step < 30; step += 1) {
              now += 200;
              sent = random() < 0.1 ? Math.max(0, sent - 200 * random()) : random() < 0.8 ? sent + 200 : sent;
              clock.sent("r", sent, now);
              for (const at of [now, now + 190 * random()]) {
                for (const ack of clock.acks(at)) {
                  worst = Math.max(worst, ack.played_ms - sent);
                  backwards = Math.max(backwards, before - ack.played_ms);
                  before = ack.played_ms;
                }
              }
            }
            clock.stopped("r");
            for (const ack of clock.acks(now + 5000)) before = ack.played_ms;
            least = Math.min(least, before - sent);
          }
          return { worst, backwards, least };
        }"""
    )
    assert over["worst"] <= 0
    assert over["backwards"] <= 0
    assert over["least"] >= -1, "in the end, all of it is acknowledged"


def test_what_was_cut_off_is_struck_out(live: Page) -> None:
    emit(
        live,
        *reply(),
        {"type": "output_audio_buffer.started", "response_id": "r1"},
        {"type": "duplex.playout", "response_id": "r1", "sent_ms": 460, "heard_ms": 400},
    )
    expect(live.locator(".line.agent .said")).to_contain_text("Paris,")
    emit(
        live,
        {"type": "output_audio_buffer.cleared", "response_id": "r1"},
        {"type": "response.done", "response": {"id": "r1", "status": "cancelled"}},
        {"type": "conversation.item.truncated", "item_id": "i1", "content_index": 0, "audio_end_ms": 200},
    )
    expect(live.locator(".line.agent del")).to_have_text("is big. And old.")
    assert captions(live) == [{"who": "agent", "text": "Paris, —", "final": True, "cut": True}]
    expect(live.locator("#announcer")).to_contain_text("interrupted")


def test_a_reply_nobody_heard_leaves_no_line(live: Page) -> None:
    emit(live, *reply(), {"type": "response.done", "response": {"id": "r1", "status": "cancelled"}})
    assert captions(live) == []
    expect(live.locator(".line.agent")).to_have_count(0)


def test_a_backchannel_is_an_aside(live: Page) -> None:
    emit(
        live,
        {"type": "duplex.transcript.partial", "item_id": "u1", "text": "uh-huh"},
        {"type": "duplex.floor", "floor": "holding", "user": "backchannel", "at_ms": 1},
    )
    expect(live.locator(".line.aside")).to_have_text("Youuh-huh")
    expect(live.locator("#floor-word")).to_have_text("Holding")
    assert live.evaluate("duplexState.floor") == "holding"


def test_what_is_said_is_never_markup(live: Page) -> None:
    text = "<img src=x onerror=alert(1)>"
    emit(live, {"type": "duplex.transcript.partial", "item_id": "u1", "text": text})
    expect(live.locator(".line.user .said")).to_have_text(text)
    expect(live.locator("#captions img")).to_have_count(0)


def test_odd_messages_do_not_end_the_call(live: Page) -> None:
    emit(live, "not json", "null", {"type": "duplex.words"}, {"type": "response.done"}, {"type": "x.unknown"})
    emit(live, {"type": "error", "error": {"message": "response.cancel: nothing to cancel"}})
    expect(live.locator("#notice-text")).to_have_text("response.cancel: nothing to cancel")
    assert live.evaluate("duplexState.status") == "live"


def test_the_waterfall_names_each_stage(live: Page) -> None:
    names = ["end_of_turn", "listener", "thinker", "talker", "first_packet"]
    spans = [{"name": name, "start_ms": i * 80, "end_ms": i * 80 + 80} for i, name in enumerate(names)]
    trace = {
        "type": "duplex.trace",
        "turn_id": "t1",
        "marks": [{"name": "commit", "at_ms": 320}],
        "spans": spans,
        "voice_to_voice_ms": 412.4,
        "first_packet_ms": 46,
        "speculative": True,
    }
    emit(live, trace)
    expect(live.locator("#waterfall strong")).to_have_text("412 ms")
    expect(live.locator("#waterfall .name")).to_have_text(
        ["End of turn", "Listener", "Thinker", "Talker", "First packet"]
    )
    assert live.evaluate("duplexState.lastTrace.turn_id") == "t1"


# What a person can do


def test_typing_over_the_agent_interrupts_it_first(live: Page) -> None:
    emit(live, *reply())
    live.click("#type-toggle")
    live.fill("#composer-text", "Never mind.")
    live.keyboard.press("Enter")
    assert len(sent(live, "response.cancel")) == 1
    assert sent(live, "response.create") == [], "a second reply is refused while the first is under way"
    emit(live, {"type": "response.done", "response": {"id": "r1", "status": "cancelled"}})
    assert len(sent(live, "response.create")) == 1


def test_a_late_stop_is_no_error_to_show(live: Page) -> None:
    emit(live, {"type": "duplex.floor", "floor": "speaking", "user": "idle", "at_ms": 1})
    live.click("#stop-agent")
    refused = sent(live, "response.cancel")[0]["event_id"]
    emit(live, {"type": "error", "error": {"message": "nothing to cancel", "event_id": refused}})
    expect(live.locator("#notice")).to_be_hidden()


def test_typing_instead_of_speaking(live: Page) -> None:
    live.click("#type-toggle")
    live.fill("#composer-text", "Where is Paris?")
    live.keyboard.press("Enter")
    item = sent(live, "conversation.item.create")[0]["item"]
    assert item["content"] == [{"type": "input_text", "text": "Where is Paris?"}]
    assert len(sent(live, "response.create")) == 1
    emit(live, {"type": "conversation.item.added", "item": {"id": "u9", **item}})
    assert [line["text"] for line in captions(live)] == ["Where is Paris?"], "its echo is the same line"


def test_instructions_and_voice_are_applied(live: Page) -> None:
    live.evaluate("for (const panel of document.querySelectorAll('details')) panel.open = true")
    live.fill("#instructions", "Answer like a pirate.")
    live.fill("#voice", "joe")
    live.click("#session-apply")
    assert sent(live, "session.update") == [
        {
            "type": "session.update",
            "session": {
                "type": "realtime",
                "instructions": "Answer like a pirate.",
                "audio": {"output": {"voice": "joe"}},
            },
        }
    ]
    emit(live, {"type": "session.updated", "session": {}})
    expect(live.locator("#session-note")).to_have_text("Applied.")


def test_the_camera_comes_and_goes_without_a_new_offer(live: Page, server: Server) -> None:
    toggle = live.locator("#camera-toggle")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "true")
    expect(live.locator("#camera-preview")).to_be_visible()
    settings = live.evaluate("fake.peers[0].lines[1].sender.track.getSettings()")
    assert (settings["width"], settings["height"]) == (640, 480)
    toggle.click()
    expect(live.locator("#camera-preview")).to_be_hidden()
    live.wait_for_function("fake.peers[0].lines[1].sender.track === null")
    assert server.count("POST") == 1


def test_mute_silences_the_track(live: Page) -> None:
    live.click("#mute")
    expect(live.locator("#mute")).to_have_attribute("aria-pressed", "true")
    assert live.evaluate("duplex.call.stream.getAudioTracks()[0].enabled") is False


def test_stopping_the_agent_by_hand(live: Page) -> None:
    expect(live.locator("#stop-agent")).to_be_disabled()
    emit(live, {"type": "duplex.floor", "floor": "speaking", "user": "idle", "at_ms": 1})
    live.click("#stop-agent")
    assert len(sent(live, "response.cancel")) == 1
    assert len(sent(live, "output_audio_buffer.clear")) == 1


def test_the_theme_is_remembered(page: Page) -> None:
    page.click("#theme")
    page.click("#theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(15, 20, 22)"


def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    for width in (320, 390, 768):
        page.set_viewport_size({"width": width, "height": 720})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# The clock of what was heard, by itself


def test_the_playout_clock(page: Page) -> None:
    """Random schedules: never backwards, never more than was sent plus what may be on the wire."""
    worst = page.evaluate(
        """async () => {
          const { Playout } = await import("./playout.js");
          let seed = 7;
          const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
          const worst = { backwards: 0, ahead: -1e9, late: 0 };
          for (let run = 0; run < 200; run += 1) {
            const clock = new Playout();
            clock.delayMs = 20 + 150 * random();
            let now = 1000, sent = 0, before = 0, held = false;
            clock.started("r", now);
            for (let step = 0; step < 40; step += 1) {
              const passed = 50 + 300 * random();
              if (random() < 0.2) held = !held;
              now += passed;
              if (!held) sent += passed;
              clock.sent("r", sent, now);
              const played = clock.playedMs("r", now + 100 * random());
              worst.backwards = Math.max(worst.backwards, before - played);
              worst.ahead = Math.max(worst.ahead, played - sent);
              before = played;
            }
            clock.stopped("r");
            worst.late = Math.max(worst.late, sent - clock.playedMs("r", now + 5000));
            if (!clock.finished("r", now + 5000)) worst.late = 1e9;
          }
          return worst;
        }"""
    )
    assert worst["backwards"] == 0
    assert worst["ahead"] <= 100
    assert worst["late"] < 1


def test_what_was_cleared_stays_where_it_was(page: Page) -> None:
    played = page.evaluate(
        """async () => {
          const { Playout } = await import("./playout.js");
          const clock = new Playout();
          clock.delayMs = 50;
          clock.started("r", 0);
          clock.sent("r", 1000, 1000);
          clock.cleared("r", 1000);
          clock.sent("r", 2000, 2000);
          const acks = [clock.acks(9000).length, clock.acks(9100).length];
          return [clock.playedMs("r", 9000), clock.finished("r", 9000), ...acks];
        }"""
    )
    assert played == [950, True, 0, 0]


# A native agent


def created(**duplex: Any) -> dict[str, Any]:
    return {"type": "session.created", "session": {"id": "sess_1", "duplex": {"turn_taking": {}, **duplex}}}


@pytest.mark.parametrize(
    ("takes_images", "caption"),
    [
        ({"takes_images": False}, "Only you see this: this agent has no eyes"),
        ({"takes_images": True}, "The agent sees this"),
        ({}, "The agent sees this"),  # a server that does not say
    ],
)
def test_the_camera_says_who_sees_it(live: Page, takes_images: dict[str, bool], caption: str) -> None:
    emit(live, created(**takes_images))
    live.click("#camera-toggle")
    expect(live.locator("#camera figcaption")).to_have_text(caption)


def test_an_agent_that_writes_only_its_own_words_says_so_once(live: Page) -> None:
    emit(live, created(native=True), created(native=True))
    expect(live.locator("#captions .divider")).to_have_text(
        ["This agent hears your voice itself and does not write it down: only its own words appear here."]
    )
    emit(
        live,
        {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u1", "transcript": ""},
    )
    expect(live.locator("#captions .line.user:visible")).to_have_count(0)  # and no empty bubble


def test_a_cascade_has_nothing_to_explain(live: Page) -> None:
    emit(live, created(native=False), created())
    expect(live.locator("#captions .divider")).to_have_count(0)


def test_a_hiccup_is_a_line_that_goes_by_itself(live: Page) -> None:
    live.clock.install(time=0)
    live.clock.pause_at(3_600_000)
    late = {"type": "error", "error": {"type": "server_error", "code": "agent_behind", "message": "It fell behind."}}
    emit(live, late, late)
    line = live.locator(".passing")
    expect(line).to_have_text(["It fell behind."])
    expect(live.locator("#notice")).to_be_hidden()
    live.clock.run_for(5_900)
    expect(line).to_have_count(1)
    live.clock.run_for(200)
    expect(line).to_have_count(0)
    emit(live, {"type": "error", "error": {"code": "agent_fault", "message": "It broke."}})
    expect(live.locator("#notice")).to_be_visible()
