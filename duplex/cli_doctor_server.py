"""``duplex doctor --url``: whether a running server is well, and whether callers get through to it from here.

Each check is what a caller does: a request, a WebSocket, a WebRTC call with sound both ways, and where the server names
STUN and TURN servers, the way through those. It costs the server two short calls (three with TURN) of silence.
Nothing is sent by a connection whose certificate is not trusted. Part of the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.text import Text

from duplex import __version__
from duplex.cli_doctor_network import KEY_MISSING, call_findings, ice_findings, socket_finding
from duplex.cli_doctor_report import Finding, State, print_finding
from duplex.errors import DuplexError
from duplex.transport.client_address import address, base, is_loopback, key_header
from duplex.transport.ice_servers import ICE_SERVERS

PATIENCE_S = 10.0
RENEW_WITHIN_DAYS = 14
LAG_P99_S = 0.02
CLOCKS_APART_S = 30.0
"""More and what has a date (TURN credentials, client secrets, certificates) begins to fail."""

_LAG = "duplex_loop_lag_seconds_bucket"


def run_for_server(url: str, key: str | None, *, as_json: bool) -> int:
    """The whole of ``duplex doctor --url``. Returns the exit status: 0 if nothing failed."""
    console = Console(stderr=as_json)
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        if not as_json:
            print_finding(console, finding, heading=not any(f.section == finding.section for f in findings))
        findings.append(finding)

    async def collect() -> None:
        async for finding in examine(url):
            tell(finding)

    with _key_in_the_environment(key):
        try:
            asyncio.run(collect())
        except httpx.HTTPError as error:
            said = f"stopped answering: {str(error) or type(error).__name__}"
            tell(Finding("server", "connection", "fail", said, "look at its log, and at what is between"))
    well = not any(finding.state == "fail" for finding in findings)
    if as_json:
        print(json.dumps({"ready": well, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        _summary(console, findings)
    return 0 if well else 1


@contextlib.contextmanager
def _key_in_the_environment(key: str | None) -> Iterator[None]:
    """Where our own clients look for it."""
    before = os.environ.get("DUPLEX_API_KEY")
    if key is not None:
        os.environ["DUPLEX_API_KEY"] = key
    try:
        yield
    finally:
        if key is not None:
            os.environ.pop("DUPLEX_API_KEY")
            if before is not None:
                os.environ["DUPLEX_API_KEY"] = before


async def examine(url: str) -> AsyncIterator[Finding]:
    """The findings, as they are made. The first that makes the rest pointless is the last."""
    try:
        home = base(address(url, "/"))
    except DuplexError as error:
        yield Finding("server", "address", "fail", str(error), "duplex doctor --url http://127.0.0.1:8998")
        return
    if home.startswith("https:"):
        finding = await certificate(home)
        yield finding
        if finding.state == "fail":
            return
    elif not is_loopback(home):
        yield Finding(
            "server",
            "encryption",
            "warn",
            "plain http: keys can be read on the way, and browsers give no microphone to such a page",
            "duplex serve --tls-certificate FILE --tls-key FILE, or a proxy that speaks https in front",
        )
    verify = ssl.create_default_context() if home.startswith("https:") else True
    async with httpx.AsyncClient(
        base_url=home, timeout=PATIENCE_S, trust_env=not is_loopback(home), verify=verify
    ) as http:
        try:
            alive = await http.get("/healthz")
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            mend = "start it there with: duplex serve, and look whether a firewall or proxy is between"
            yield Finding("server", "healthz", "fail", f"{home} does not answer: {said}", mend)
            return
        if alive.status_code != httpx.codes.OK or _field(alive, "status") != "ok":
            mend = "is this address a duplex server's? A proxy has to pass on all paths"
            yield Finding("server", "healthz", "fail", f"answers {alive.status_code}, and not as duplex does", mend)
            return
        yield Finding("server", "healthz", "ok", f"answers in {alive.elapsed.total_seconds() * 1000:.0f} ms")
        yield clock(alive.headers.get("Date"), datetime.datetime.now(datetime.UTC))
        ready = readiness(await http.get("/readyz"))
        yield ready
        servers, findings = await _keys(http)
        for finding in findings:
            yield finding
        before, found = await _metrics(http)
        if found is not None:
            yield found
        if servers is None:
            return
        if ready.state != "fail":
            yield await socket_finding(home)
            async for finding in call_findings(home, servers):
                yield finding
        async for finding in ice_findings(servers):
            yield finding
        if before is not None:
            after, _ = await _metrics(http)
            yield lag(before, after or before)


# -- the checks -------------------------------------------------------------------------------------------


async def certificate(home: str) -> Finding:
    """Whether the certificate is trusted here, and for how many days more."""
    parts = urlsplit(home)
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=ssl.create_default_context()
            )
            shown: Any = writer.get_extra_info("peercert")
            version = writer.get_extra_info("ssl_object").version()
            writer.close()
    except ssl.SSLCertVerificationError as error:
        mend = "get one of a known authority; for one of your own: SSL_CERT_FILE=authority.pem duplex doctor …"
        if "expired" in error.verify_message:
            mend = "renew it; the server reads the new files by itself"
        return Finding("server", "certificate", "fail", f"not trusted: {error.verify_message}", mend)
    except ssl.SSLError as error:
        mend = f"is it http? Try --url http{home.removeprefix('https')}"
        return Finding("server", "certificate", "fail", f"no TLS: {error.reason}", mend)
    except (OSError, TimeoutError) as error:
        said = str(error) or "no answer in time"
        return Finding("server", "certificate", "fail", f"{home} does not answer: {said}", "start it: duplex serve")
    until = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), datetime.UTC)
    days = (until - datetime.datetime.now(datetime.UTC)).days
    said = f"{version}, good until {until:%Y-%m-%d} ({days} days)"
    state: State = "warn" if days < RENEW_WITHIN_DAYS else "ok"
    mend = "renew it; the server reads the new files by itself" if state == "warn" else ""
    return Finding("server", "certificate", state, said, mend)


def clock(date: str | None, now: datetime.datetime) -> Finding:
    """``date``: the header of an answer, to the second."""
    try:
        apart_s = abs((now - parsedate_to_datetime(date or "")).total_seconds())
    except ValueError:
        mend = "a proxy took the Date header away"
        return Finding("server", "clock", "warn", "it does not say what time it is", mend)
    if apart_s <= CLOCKS_APART_S:
        return Finding("server", "clock", "ok", "as here")
    mend = "let both machines keep time (systemd-timesyncd, chrony): what has a date fails otherwise"
    return Finding("server", "clock", "warn", f"{apart_s:.0f} s from ours", mend)


def readiness(answer: httpx.Response) -> Finding:
    status = str(_field(answer, "status"))
    if answer.status_code != httpx.codes.OK:
        mends = {"warming up": "wait until its models are loaded", "draining": "it is being stopped; start it again"}
        mend = mends.get(status, "look at its log")
        return Finding("server", "readyz", "fail", f"not ready: {status}", mend)
    live, places = _field(answer, "sessions"), _field(answer, "places")
    full = isinstance(live, int) and isinstance(places, int) and live >= places
    said = f"ready, {live} of {places} places taken" if places is not None else f"ready, {live} calls"
    mend = "every new caller is refused now: --max-sessions, if the machine has more to give" if full else ""
    return Finding("server", "readyz", "warn" if full else "ok", said, mend)


async def _keys(http: httpx.AsyncClient) -> tuple[list[dict[str, Any]] | None, list[Finding]]:
    """The STUN and TURN servers it tells callers, or None if it does not let us call; and what is to be said."""
    shown = key_header()
    stranger = await http.get(ICE_SERVERS)
    answer = await http.get(ICE_SERVERS, headers=shown) if shown else stranger
    asks = stranger.status_code == httpx.codes.UNAUTHORIZED
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        text = "it asks for a key" if not shown else "it does not know this key"
        mend = "duplex doctor --url … --key KEY" if not shown else KEY_MISSING
        return None, [Finding("server", "keys", "fail", text, mend)]
    if answer.status_code == httpx.codes.FORBIDDEN:
        text = "this key may not call (it has no scope 'talk')"
        return None, [Finding("server", "keys", "fail", text, KEY_MISSING)]
    if answer.status_code == httpx.codes.NOT_FOUND:  # an older server, which names none
        return [], [Finding("server", "keys", "ok", "it lets us call")]
    if answer.status_code != httpx.codes.OK:
        return None, [Finding("server", "keys", "fail", f"answers {answer.status_code}", "look at its log")]
    servers: list[dict[str, Any]] = answer.json()["ice_servers"]
    if asks:
        return servers, [Finding("server", "keys", "ok", "it asks for a key, and takes this one")]
    if is_loopback(str(http.base_url)):
        return servers, [Finding("server", "keys", "ok", "it asks nobody for a key, on this machine")]
    mend = "duplex keys add NAME, on the server; then start it without --insecure"
    return servers, [Finding("server", "keys", "warn", "whoever reaches it may call: it asks for no key", mend)]


@dataclass(frozen=True)
class Counts:
    """Of ``/metrics``, at one moment. ``lag``: cumulative counts by upper bound in seconds."""

    version: str
    lag: dict[float, float] = field(default_factory=dict)
    underruns: float = 0.0


def read_counts(text: str) -> Counts:
    version = re.search(r'^duplex_build_info\{version="([^"]*)"\}', text, re.MULTILINE)
    bounds = re.findall(rf'^{_LAG}\{{le="([^"]+)"\}} (\S+)$', text, re.MULTILINE)
    underruns = re.search(r"^duplex_underruns_total (\S+)$", text, re.MULTILINE)
    return Counts(
        version[1] if version else "",
        {float(bound): float(count) for bound, count in bounds},
        float(underruns[1]) if underruns else 0.0,
    )


async def _metrics(http: httpx.AsyncClient) -> tuple[Counts | None, Finding | None]:
    answer = await http.get("/metrics", headers=key_header())
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        mend = "duplex keys add NAME --scope metrics; the version and the load are not known without"
        return None, Finding("server", "metrics", "warn", "not with this key", mend)
    if answer.status_code != httpx.codes.OK:
        return None, Finding("server", "metrics", "warn", f"answers {answer.status_code}", "does a proxy hide it?")
    counts = read_counts(answer.text)
    if counts.version == __version__:
        return counts, Finding("server", "version", "ok", counts.version)
    mend = "use the same on both sides where you can: pip install --upgrade duplex-runtime"
    return counts, Finding("server", "version", "warn", f"{counts.version or 'unknown'}; here: {__version__}", mend)


def lag(before: Counts, after: Counts) -> Finding:
    """How late the server's loop was while we called, or since it began, if that was too short to say."""
    while_here = {bound: count - before.lag.get(bound, 0.0) for bound, count in after.lag.items()}
    counts = while_here if while_here.get(float("inf"), 0.0) >= 50 else after.lag
    total = counts.get(float("inf"), 0.0)
    if not total:
        return Finding("load", "loop lag", "warn", "the server does not measure it", "is it an older version?")
    p99_s = min(bound for bound, count in counts.items() if count >= 0.99 * total)
    said = f"p99 ≤ {p99_s * 1000:g} ms" if p99_s != float("inf") else "p99 over a second"
    if p99_s <= LAG_P99_S:
        return Finding("load", "loop lag", "ok", said)
    mend = "calls stutter at this: fewer at a time (--max-sessions), or a machine with more cores"
    return Finding("load", "loop lag", "warn", said, mend)


def _field(answer: httpx.Response, name: str) -> Any:
    try:
        return answer.json().get(name)
    except (ValueError, AttributeError):
        return None


def _summary(console: Console, findings: Sequence[Finding]) -> None:
    failed = sum(finding.state == "fail" for finding in findings)
    warned = sum(finding.state == "warn" for finding in findings)
    console.print()
    if failed:
        text, style = f"Not well: {failed} of {len(findings)} checks failed.", "bold red"
    elif warned:
        text, style = f"Callers get through. {warned} of {len(findings)} things could be better.", "yellow"
    else:
        text, style = "All well: callers get through.", "bold green"
    console.print(Text(text, style=style), soft_wrap=True)
