"""What is shipped for those who run a server: it names only what the server has, and the files say what they should."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from duplex import cli, serve
from duplex.config import AgentConfig, Config, RecordConfig, ServerConfig, WebRtcConfig, load_config
from duplex.scheduler.metrics import SchedulerMetrics
from duplex.testing import load_echo_agent
from duplex.weights import load_manifest

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
_METRIC = re.compile(r"\b(?:duplex|process|python)_[a-z0-9_]+")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


class Counted:
    """An echo with the figures of a scheduler, as a native agent has them."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry | None = SchedulerMetrics().registry
        self._inner = load_echo_agent({})

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A server in which everything that counts does."""
    monkeypatch.setattr(serve, "create_agent", lambda name, options: Counted())
    return Config(
        server=ServerConfig(port=0), agent=AgentConfig(name="echo"), record=RecordConfig(dir=tmp_path / "calls")
    )


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[serve.Running]:
    async with serve.running(everything(tmp_path, monkeypatch)) as up:
        yield up


@dataclass(frozen=True)
class Exposed:
    """``kinds``: every series' name that /metrics has or would have. ``labels``: by the name it was made with."""

    kinds: dict[str, str]
    labels: dict[str, set[str]]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    async def ask(config: Config) -> Exposed:
        async with serve.running(config) as up, httpx.AsyncClient() as http:
            text = (await http.get(f"{up.url}/metrics")).text
            return Exposed(_kinds(text), _labels(up.hub.metrics.registry))

    with pytest.MonkeyPatch.context() as monkeypatch:
        return asyncio.run(ask(everything(tmp_path_factory.mktemp("calls"), monkeypatch)))


def _kinds(text: str) -> dict[str, str]:
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return {name + suffix: kind for name, kind in kinds.items() for suffix in _SUFFIXES[kind]}


def _labels(registry: CollectorRegistry) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    pending: list[Any] = [registry]
    while pending:
        for collector in list(pending.pop()._collector_to_names):
            if isinstance(collector, CollectorRegistry):
                pending.append(collector)
            elif isinstance(collector, MetricWrapperBase):
                found[collector._name] = set(collector._labelnames)
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    return found


def targets() -> list[tuple[str, dict[str, Any]]]:
    return [(panel["title"], target) for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def test_every_query_of_the_dashboard_names_what_the_server_exposes(exposed: Exposed) -> None:
    there = exposed.kinds
    asked = {name for _, target in targets() for name in _METRIC.findall(target["expr"])}
    assert asked - set(there) == set()
    variables = {name for v in dashboard()["templating"]["list"] for name in _METRIC.findall(json.dumps(v))}
    assert variables - set(there) == set()
    assert variables


def test_every_metric_of_ours_is_on_the_dashboard(exposed: Exposed) -> None:
    """Or is named here, with the reason it is not."""
    not_shown = {
        "duplex_scheduler_batch_frames",  # slots and batch size say as much
        "duplex_scheduler_overhead_seconds",  # part of the tick, for who works on the scheduler
        "duplex_scheduler_prefill_seconds",
        "duplex_scheduler_frames_refused_total",
        "duplex_scheduler_frames_with_fewer_codebooks_total",
    }
    text = json.dumps(dashboard())
    there = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exposed.kinds}
    missing = {name for name in there if name.startswith("duplex_") and name not in text and "_created" not in name}
    assert missing == not_shown


def test_it_groups_and_names_by_labels_that_are_there(exposed: Exposed) -> None:
    known = exposed.labels
    for title, target in targets():
        grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
        wanted = {label.strip() for part in grouped for label in part.split(",")}
        wanted |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        (name,) = set(_METRIC.findall(target["expr"])) - {"duplex_session_places"} or {"duplex_session_places"}
        base = re.sub(r"_(bucket|sum|count|total|info)$", "", name)
        has = known.get(base, set()) | {"job", "instance"}
        has |= {"le"} if name.endswith("_bucket") else set()
        has |= {"version"} if name == "duplex_build_info" else set()
        assert wanted <= has, title


def test_counters_are_asked_for_rates_and_histograms_for_quantiles(exposed: Exposed) -> None:
    there = exposed.kinds
    for title, target in targets():
        expr = target["expr"]
        assert expr.count("(") == expr.count(")"), title
        for name in _METRIC.findall(expr):
            counts = there[name] == "counter" or name.endswith("_bucket")
            assert counts == bool(re.search(rf"(?:rate|increase)\({name}{{", expr)), f"{title}: {expr}"


def test_panels_lie_beside_each_other_and_ask_the_chosen_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_example_of_scraping_names_what_is_there(exposed: Exposed) -> None:
    asked = set(_METRIC.findall((DEPLOY / "prometheus.yml").read_text("utf-8")))
    assert asked
    assert asked - set(exposed.kinds) == set()


async def test_loop_lag_and_the_process_are_measured(server: serve.Running) -> None:
    async with httpx.AsyncClient() as http:
        for _ in range(500):
            text = (await http.get(f"{server.url}/metrics")).text
            if float(re.findall(r"^duplex_loop_lag_seconds_count (\S+)$", text, re.MULTILINE)[0]) > 0:
                break
        else:
            raise AssertionError("nobody watches the loop")
    assert "duplex_session_places 4.0" in text
    assert float(re.findall(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[0]) > 1e7
    assert float(re.findall(r"^duplex_threads (\S+)$", text, re.MULTILINE)[0]) >= 1


# --- the image and the service -----------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of the Dockerfile, comments gone and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def image_environment() -> dict[str, str]:
    """Of the last stage."""
    last = len(instructions()) - 1 - [name for name, _ in instructions()][::-1].index("FROM")
    pairs = [shlex.split(rest) for name, rest in instructions()[last:] if name == "ENV"]
    return dict(pair.split("=", 1) for rest in pairs for pair in rest)


def copied() -> list[str]:
    return [path for rest in of("COPY") if "--from" not in rest for path in shlex.split(rest)[:-1]]


def test_every_instruction_is_one_and_every_file_copied_is_there_and_let_in() -> None:
    known = "FROM RUN ENV WORKDIR COPY ARG USER VOLUME EXPOSE HEALTHCHECK ENTRYPOINT CMD".split()
    assert {name for name, _ in instructions()} <= set(known)
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert set(copied()) == let_in
    assert [path for path in copied() if not (ROOT / path).exists()] == []


def test_the_image_holds_every_package_and_what_its_metadata_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    needed = folders | {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert needed <= set(copied())


def test_the_image_installs_what_the_project_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The line that reads the requirements out of pyproject.toml, run as it stands."""
    (script,) = re.findall(r'python -c "([^"]+)"', next(rest for rest in of("RUN") if "tomllib" in rest))
    extras = shlex.split(next(rest for rest in of("ARG") if rest.startswith("EXTRAS")).split("=", 1)[1])[0].split()
    done = subprocess.run(
        [sys.executable, "-c", script, *extras], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    expected = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    assert done.stdout.splitlines() == expected


def test_the_image_has_the_default_models_and_starts_as_somebody_who_may_do_little() -> None:
    (models,) = [rest for rest in of("ARG") if rest.startswith("MODELS")]
    assert shlex.split(models.split("=", 1)[1])[0].split() == list(load_manifest().default)
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert of("USER") == ["10001"]
    assert all(":latest" not in image and ":" in image for image in of("FROM"))


def test_what_the_image_runs_is_a_command_of_ours_and_its_variables_are_settings() -> None:
    (entry,), (command,) = of("ENTRYPOINT"), of("CMD")
    program, *argv = [*json.loads(entry), *json.loads(command)]
    assert program == "duplex"
    args = cli._parser().parse_args(argv)
    environ = {name: value for name, value in image_environment().items() if name.startswith("DUPLEX_")}
    config = load_config(environ=environ)
    assert args.run is cli._serve
    assert (config.server.host, config.log.format) == ("0.0.0.0", "json")
    assert of("EXPOSE") == [str(config.server.port)]


def healthcheck() -> Any:
    spec = importlib.util.spec_from_file_location("healthcheck", DEPLOY / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_health_check_says_whether_the_server_answers(server: serve.Running) -> None:
    alive, port = healthcheck().alive, server.url.rsplit(":", 1)[1]
    assert await asyncio.to_thread(alive, {"DUPLEX_SERVER__PORT": port})
    assert not await asyncio.to_thread(alive, {"DUPLEX_SERVER__PORT": "9"})
    assert not await asyncio.to_thread(
        alive, {"DUPLEX_SERVER__PORT": port, "DUPLEX_SECURITY__TLS_CERTIFICATE": "cert.pem"}
    )
    ((where, *_),) = [json.loads(rest.split("CMD", 1)[1])[1:] for rest in of("HEALTHCHECK")]
    assert any(rest.split() == ["deploy/healthcheck.py", where] for rest in of("COPY"))


def unit() -> dict[str, list[str]]:
    """Every setting of the service, in order; one that is set again has several."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "duplex.service").read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_what_the_service_runs_are_commands_of_ours_and_its_variables_are_settings() -> None:
    for name in ("ExecStart", "ExecStartPre"):
        (line,) = unit()[name]
        program, *argv = shlex.split(line)
        assert program == "/opt/duplex/bin/duplex"
        assert callable(cli._parser().parse_args(argv).run)
    pairs = [pair.split("=", 1) for line in unit()["Environment"] for pair in shlex.split(line)]
    config = load_config(environ={name: value for name, value in pairs if name.startswith("DUPLEX_")})
    assert config.log.format == "json"
    assert str(config.security.keys_file) == "%S/duplex/keys.json"


def test_the_service_may_do_little() -> None:
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictNamespaces"):
        assert unit()[name] == ["yes"], name
    assert unit()["CapabilityBoundingSet"] == [""]
    assert unit()["ProtectSystem"] == ["strict"]
    assert unit()["User"] == ["duplex"]


def test_systemd_finds_nothing_wrong_with_the_service(tmp_path: Path) -> None:
    """Where systemd's own tool is: the program replaced by one that is there, and a user that is."""
    if (tool := shutil.which("systemd-analyze")) is None:
        return
    text = (DEPLOY / "duplex.service").read_text("utf-8")
    text = text.replace("/opt/duplex/bin/duplex", sys.executable).replace("User=duplex", "User=root")
    (tmp_path / "duplex.service").write_text(text.replace("Group=duplex", "Group=root"))
    done = subprocess.run(
        [tool, "verify", str(tmp_path / "duplex.service")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_relays_example_is_for_the_servers_scheme() -> None:
    text = (DEPLOY / "turnserver.conf").read_text("utf-8")
    assert "\nuse-auth-secret\n" in text
    (example,) = re.findall(r"^#\s+ice_servers = (.+)$", text, re.MULTILINE)
    table = tomllib.loads(f'turn_secret = "{"x" * 32}"\nice_servers = {example}')
    config = WebRtcConfig.model_validate(table)
    assert [server.relays for server in config.ice_servers] == [True]
