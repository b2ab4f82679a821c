"""The page as files: complete, self-contained, labelled, and legible in both themes. No browser needed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from duplex.web_demo import static_dir

ROOT = static_dir()
HTML = (ROOT / "index.html").read_text(encoding="utf-8")
CSS = (ROOT / "style.css").read_text(encoding="utf-8")
MODULES = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.js")}
JS = "\n".join(MODULES.values())

HANDLED_EVENTS = """
    session.created session.updated error
    input_audio_buffer.speech_started
    conversation.item.added conversation.item.done conversation.item.truncated
    conversation.item.input_audio_transcription.delta conversation.item.input_audio_transcription.completed
    response.output_item.added response.output_audio_transcript.delta response.output_audio_transcript.done
    response.done output_audio_buffer.started output_audio_buffer.stopped output_audio_buffer.cleared
    duplex.floor duplex.transcript.partial duplex.words duplex.playout duplex.trace
    duplex.reply.held duplex.turn.reopened duplex.session.closed response.created
""".split()
SENT_EVENTS = """
    session.update response.cancel output_audio_buffer.clear conversation.item.create response.create
    duplex.playback.ack
""".split()
STABLE_IDS = "talk floor captions status waterfall level-user level-agent camera-toggle".split()


class Page(HTMLParser):
    """Every element with its attributes, and the text inside each button."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.button_texts: dict[str, str] = {}
        self._button: str | None = None
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag == "button":
            self._button = attributes["id"]
            self.button_texts[self._button] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "button":
            self._button = None

    def handle_data(self, data: str) -> None:
        if self._button is not None:
            self.button_texts[self._button] += data.strip()

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


PAGE = Page(HTML)


def test_the_files_are_found_through_the_package() -> None:
    assert (static_dir() / "index.html").is_file()
    assert (static_dir() / "main.js").is_file()


def test_nothing_is_loaded_from_elsewhere() -> None:
    namespaces_and_words = {"http://www.w3.org/2000/svg", "http://localhost"}
    for path in ROOT.rglob("*"):
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:https?|wss?)://[\w.]+(?:/[\w./-]*)?", text))
        assert found <= namespaces_and_words, f"{path.name} names {found - namespaces_and_words}"
        assert not re.search(r"""(?:src|href)=["']//""", text), path.name
        assert not re.search(r"url\((?!#)", text), path.name


def test_every_linked_file_exists_and_is_relative() -> None:
    links = [a[key] for _, a in PAGE.elements for key in ("src", "href") if key in a]
    files = [link for link in links if not link.startswith("#")]
    assert "./main.js" in files
    for link in files:
        assert link.startswith("./"), f"{link}: an absolute link breaks behind a path prefix"
        assert (ROOT / link).is_file(), link


def imports_of(source: str) -> list[str]:
    return re.findall(r"""^import .*?from "(.+?)";""", source, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_imported_name_is_exported(name: str) -> None:
    for names, target in re.findall(r'^import \{(.+?)\} from "\./(.+?)";', MODULES[name], re.MULTILINE | re.DOTALL):
        assert target in MODULES, f"{name} imports {target}"
        for imported in (part.strip() for part in names.split(",")):
            pattern = rf"^export (?:async )?(?:class|function|const) {imported}\b"
            assert re.search(pattern, MODULES[target], re.MULTILINE), f"{name}: {target} exports no {imported}"


def test_every_module_is_used() -> None:
    reached = {"theme.js"}  # the one classic script, for the colours of the first paint
    waiting = ["main.js"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [Path(target).name for target in imports_of(MODULES[name])]
    assert reached == set(MODULES)


def test_ids_are_unique_and_those_that_code_uses_exist() -> None:
    assert len(PAGE.ids) == len(set(PAGE.ids))
    used = set(re.findall(r"""(?:byId|getElementById)\("([^"]+)"\)""", JS))
    used |= set(re.findall(r'input: "([\w-]+)"', MODULES["devices.js"]))
    assert len(used) > 20
    assert used <= set(PAGE.ids), used - set(PAGE.ids)
    assert set(STABLE_IDS) <= set(PAGE.ids)


def test_every_control_has_a_name() -> None:
    for button in PAGE.all("button"):
        assert button.get("aria-label") or PAGE.button_texts[button["id"]], button
        assert button.get("type") in {"button", "submit"}, button
    labelled = {label["for"] for label in PAGE.all("label") if "for" in label}
    for field in PAGE.all("input", "select", "textarea"):
        wrapped = re.search(rf"<label[^>]*><input id=\"{field['id']}\"", HTML)
        assert field["id"] in labelled or wrapped, field
    assert labelled <= set(PAGE.ids)
    for element in PAGE.all("video", "figure", "section", "aside", "main", "div", "ol"):
        if "tabindex" in element or element.get("role") in {"region", "meter", "group"}:
            assert element.get("aria-label"), element


def test_what_attributes_point_to_exists() -> None:
    for _, attributes in PAGE.elements:
        for key in ("aria-controls", "aria-labelledby", "aria-describedby"):
            if key in attributes:
                assert attributes[key] in PAGE.ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in PAGE.ids
    for icon in re.findall(r'"#(i-[\w-]+)"', JS):
        assert icon in PAGE.ids


def test_the_document_speaks_to_screen_readers_and_phones() -> None:
    assert PAGE.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in PAGE.all("meta"))
    by_id = {a["id"]: a for _, a in PAGE.elements if "id" in a}
    assert by_id["announcer"]["aria-live"] == "polite"
    assert by_id["status"]["role"] == "status"
    assert by_id["notice-words"]["role"] == "alert"
    assert "prefers-reduced-motion" in CSS
    assert ":focus-visible" in CSS
    assert "user-scalable" not in HTML


def test_scripts_may_come_from_this_server_only() -> None:
    policy = next(m["content"] for m in PAGE.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "script-src-elem 'self';" in policy
    assert "connect-src 'self';" in policy
    assert not re.search(r"""\sstyle=["']|\son\w+=["']""", HTML), "inline styles and handlers are not allowed"
    assert "innerHTML" not in JS, "what people and models say must never be parsed as markup"


def test_every_event_of_the_wire_is_handled_or_sent() -> None:
    for name in HANDLED_EVENTS:
        assert re.search(rf'^  "?{re.escape(name)}"?: ', JS, re.MULTILINE), f"no handler for {name}"
    for name in SENT_EVENTS:
        assert f'type: "{name}"' in JS, f"{name} is never sent"


def test_every_custom_property_is_defined() -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", CSS))
    defined = set(re.findall(r"(--[\w-]+):", CSS)) | set(re.findall(r'setProperty\("(--[\w-]+)"', JS))
    assert used <= defined, used - defined


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of ``#rrggbb``."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_is_legible(theme: int) -> None:
    tokens = {name: pair[theme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)}
    pairs = [(text, ground) for text in ("ink", "muted", "you", "agent", "alarm") for ground in ("paper", "sheet")]
    pairs += [("on-fill", "you"), ("alarm", "alarm-wash"), ("ink", "alarm-wash"), ("you", "you-wash")]
    for text, ground in pairs:
        ratio = contrast(tokens[text], tokens[ground])
        assert ratio >= 4.5, f"{text} on {ground}: {ratio:.2f}"
