"""``duplex doctor --url`` against servers that are well, and against each way in which they are not."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from coturn import SECRET, coturn
from cryptography.hazmat.primitives import serialization
from test_tls import Authority

from duplex import cli_doctor
from duplex.cli_doctor_network import ice_findings, judged
from duplex.cli_doctor_report import Finding
from duplex.cli_doctor_server import Counts, clock, examine, lag, read_counts, readiness
from duplex.config import Config
from duplex.keys import KeyRing, changing
from duplex.serve import Running, running
from duplex.transport.client import FarEnd

INF = float("inf")


@asynccontextmanager
async def serving(**tables: Any) -> AsyncIterator[Running]:
    tables["server"] = {"port": 0, **tables.get("server", {})}
    async with running(Config.model_validate({"agent": {"name": "echo"}, **tables})) as server:
        yield server


async def look(url: str) -> dict[str, Finding]:
    return {finding.name: finding async for finding in examine(url)}


def failed(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.mend for name, finding in found.items() if finding.state == "fail"}


async def test_a_server_that_is_well_is_called_both_ways_and_through_its_relay(tmp_path: Path) -> None:
    with coturn(tmp_path) as relay:
        servers = [{"urls": [relay.stun]}, {"urls": [relay.turn]}]
        async with serving(webrtc={"ice_servers": servers, "turn_secret": SECRET}) as server:
            found = await look(server.url)
            assert server.hub.live == 0
    assert failed(found) == {}
    assert list(found) == [
        *("healthz", "clock", "readyz", "keys", "version"),
        *("websocket", "webrtc", "webrtc by turn", relay.stun, relay.turn, "loop lag"),
    ]
    assert "sound both ways" in found["webrtc"].text
    assert "by relay to" in found["webrtc by turn"].text
    assert found[relay.turn].text.startswith("relays")
    assert SECRET not in repr(found)


async def test_where_nobody_is_there_the_first_line_says_so() -> None:
    found = await look("http://127.0.0.1:9")
    assert list(found) == ["healthz"]
    assert "duplex serve" in found["healthz"].mend
    assert list(await look("ftp://nowhere")) == ["address"]


async def test_what_is_no_duplex_is_told_apart() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with other:
        found = await look(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}")
    assert "not as duplex does" in found["healthz"].text


async def test_keys_are_asked_for_tried_and_judged_by_what_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    ring, _, talks = KeyRing().add("talks", created_s=1)
    ring, _, reads = ring.add("reads", created_s=1, scopes=["metrics"])
    ring, _, both = ring.add("both", created_s=1, scopes=["talk", "metrics"])
    with changing(path) as write:
        write(ring)
    async with serving(security={"keys_file": str(path)}) as server:
        monkeypatch.delenv("DUPLEX_API_KEY", raising=False)
        without = await look(server.url)
        monkeypatch.setenv("DUPLEX_API_KEY", "dx_unknown")
        unknown = await look(server.url)
        monkeypatch.setenv("DUPLEX_API_KEY", talks)
        talking = await look(server.url)
        monkeypatch.setenv("DUPLEX_API_KEY", reads)
        reading = await look(server.url)
        monkeypatch.setenv("DUPLEX_API_KEY", both)
        well = await look(server.url)
    assert "--key" in failed(without)["keys"]
    assert "does not know" in unknown["keys"].text
    assert failed(talking) == {}
    assert (talking["metrics"].state, talking["webrtc"].state) == ("warn", "ok")
    assert "may not call" in reading["keys"].text
    assert "webrtc" not in reading
    assert {finding.state for finding in well.values()} <= {"ok", "warn"}
    assert well["version"].state == "ok"
    assert not any(secret in repr(well) for secret in (talks, reads, both))


async def test_a_certificate_is_checked_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    authority.issue()
    (tmp_path / "root.pem").write_bytes(authority._root.public_bytes(serialization.Encoding.PEM))
    tls = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    async with serving(security=tls) as server:
        stranger = await look(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
        trusted = await look(server.url)
    assert list(stranger) == ["certificate"]
    assert "SSL_CERT_FILE" in failed(stranger)["certificate"]
    assert failed(trusted) == {}
    assert "TLSv1.3, good until" in trusted["certificate"].text
    assert {"websocket", "webrtc"} <= set(trusted)
    async with serving() as plain:
        found = await look(plain.url.replace("http:", "https:"))
    assert "Try --url http://" in failed(found)["certificate"]


async def test_a_full_server_and_a_dead_relay_are_said(tmp_path: Path) -> None:
    with coturn(tmp_path) as relay:
        turn, gone = relay.turn, "stun:127.0.0.1:9"
        wrong = [finding async for finding in ice_findings([{"urls": [turn], "username": "u", "credential": "p"}])]
    dead = [finding async for finding in ice_findings([{"urls": [gone]}])]
    assert [(f.state, "turn_secret" in f.mend) for f in wrong] == [("fail", True)]
    assert [(f.state, "UDP" in f.mend) for f in dead] == [("fail", True)]
    async with serving(server={"max_sessions": 1}) as server:
        place = server.hub.reserve()
        found = await look(server.url)
        place.release()
    assert found["readyz"].state == "ok"
    assert set(failed(found)) == {"websocket", "webrtc"}
    assert "places are taken" in found["webrtc"].text


@pytest.mark.parametrize(
    ("status", "body", "state", "mend"),
    [
        (200, {"status": "ready", "sessions": 1, "places": 4}, "ok", ""),
        (200, {"status": "ready", "sessions": 1, "places": None}, "ok", ""),
        (200, {"status": "ready", "sessions": 4, "places": 4}, "warn", "--max-sessions"),
        (503, {"status": "warming up", "sessions": 0, "places": 4}, "fail", "wait"),
        (503, {"status": "draining", "sessions": 2, "places": 4}, "fail", "stopped"),
        (502, "bad gateway", "fail", "log"),
    ],
)
def test_readiness_is_judged(status: int, body: object, state: str, mend: str) -> None:
    finding = readiness(httpx.Response(status, json=body))
    assert finding.state == state
    assert mend in finding.mend


@pytest.mark.parametrize(
    ("date", "state"),
    [
        ("Sun, 22 Nov 2026 18:00:10 GMT", "ok"),
        ("Sun, 22 Nov 2026 17:58:00 GMT", "warn"),
        ("Sun, 22 Nov 2026 18:01:00 GMT", "warn"),
        ("soon", "warn"),
        (None, "warn"),
    ],
)
def test_clocks_that_are_apart_are_said(date: str | None, state: str) -> None:
    now = datetime.datetime(2026, 11, 22, 18, 0, tzinfo=datetime.UTC)
    assert clock(date, now).state == state


def test_lag_is_of_while_we_called_where_that_was_long_enough() -> None:
    before = Counts("1", {0.01: 900.0, 0.05: 1000.0, INF: 1000.0})
    assert lag(before, Counts("1", {0.01: 1100.0, 0.05: 1200.0, INF: 1200.0})).state == "ok"
    slow = lag(before, Counts("1", {0.01: 1000.0, 0.05: 1200.0, INF: 1200.0}))
    assert (slow.state, "50 ms" in slow.text) == ("warn", True)
    assert "over a second" in lag(before, Counts("1", {0.01: 900.0, 0.05: 1000.0, INF: 1100.0})).text
    assert lag(before, before).state == "warn", "too short to say: since it began, which was slow"
    assert "does not measure" in lag(Counts("1"), Counts("1")).text


def test_figures_are_read_out_of_the_text() -> None:
    from duplex import __version__
    from duplex.metrics import Metrics

    metrics = Metrics()
    metrics.loop_lag_s.observe(0.015)
    metrics.underruns.inc()
    counts = read_counts(metrics.exposition().decode())
    assert counts.version == __version__
    assert (counts.lag[0.01], counts.lag[0.015], counts.lag[INF], counts.underruns) == (0.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("far", "received", "lost", "state", "said"),
    [
        (FarEnd(50, 0, 12.0, ("host", "host")), 20, 0, "ok", "host to host"),
        (FarEnd(48, 2, 12.0, ("prflx", "host")), 20, 0, "warn", "lost 2 of 50 there, 0 of 20 back"),
        (FarEnd(50, 0, 12.0, ("host", "host")), 18, 2, "warn", "lost 0 of 50 there, 2 of 20 back"),
        (FarEnd(50, 0, 240.0, ("relay", "host")), 20, 0, "warn", "round trip 240 ms"),
        (FarEnd(50, 0, None, ("relay", "host")), 20, 0, "ok", "sound both ways"),
    ],
)
def test_a_call_is_judged_by_what_got_through(far: FarEnd, received: int, lost: int, state: str, said: str) -> None:
    finding = judged("webrtc", 0.2, far, received, lost)
    assert finding.state == state
    assert said in finding.text


def run_doctor(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    cli_doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *argv])
    return int(args.run(args))


def test_the_command_says_it_and_its_status_is_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUPLEX_API_KEY", "dx_before")
    assert run_doctor("--url", "http://127.0.0.1:9", "--key", "dx_given") == 1
    said = capsys.readouterr().out
    assert "✗ healthz" in said
    assert "1 of 1 checks failed" in said
    assert os.environ["DUPLEX_API_KEY"] == "dx_before"
    assert run_doctor("--url", "http://127.0.0.1:9", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is False
    assert report["findings"][0]["name"] == "healthz"
