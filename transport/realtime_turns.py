"""``turn_detection``: from the wire's words to the session's rules and the agent's own settings, and back.

``semantic_vad`` is how turns end here: by voice, prosody and words; ``eagerness`` names the preset. ``server_vad`` is
what it says, a silence timer: every one of the agent's silences is made the same, and the evidence that would move
them is left out. ``null`` leaves it to the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, UnsupportedError
from duplex.transport.realtime_fields import Number, Only, Rule, SessionDefaults, Table, as_table, check, shown
from duplex.turn_rules import TurnEnds, TurnRules

PRESET_OF_EAGERNESS = {"low": "patient", "medium": "balanced", "high": "eager"}
THRESHOLD, PREFIX_MS, SILENCE_MS = 0.5, 300, 500
"""The published defaults of ``server_vad``."""
MOST_PREFIX_MS = 300
"""An agent's listener is given at least this much from before the voice."""

_BOTH: dict[str, Rule] = {
    "create_response": Only((True, False, None), "Use true or false."),
    "interrupt_response": Only((True, False, None), "Use true or false."),
}
_KINDS = {
    "server_vad": Table(
        {
            "type": Only(("server_vad",), ""),
            **_BOTH,
            "threshold": Number(0.01, 0.99),
            "prefix_padding_ms": Number(0, MOST_PREFIX_MS),
            "silence_duration_ms": Number(50, 10_000),
            "idle_timeout_ms": Number(100, 3_600_000),
        }
    ),
    "semantic_vad": Table(
        {
            "type": Only(("semantic_vad",), ""),
            **_BOTH,
            "eagerness": Only(("auto", *PRESET_OF_EAGERNESS, None), 'Use "low", "medium", "high" or "auto".'),
        }
    ),
}


def read_turns(value: Any, path: str, defaults: SessionDefaults) -> tuple[TurnRules, dict[str, Any]]:
    """The session's rules, and what they mean in an agent's ``turn_taking`` table. Raises ``ProtocolError``'s kinds."""
    if value is None:
        return TurnRules(ends=TurnEnds.CLIENT), {}
    kind = as_table(value, path).get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidEventError(
            f'{path}.type must be "server_vad" or "semantic_vad", got {shown(kind)}. null leaves turns to the client.',
            param=f"{path}.type",
        )
    check(_KINDS[kind], value, path, defaults)
    replies, interrupts = value.get("create_response") is not False, value.get("interrupt_response") is not False
    if kind == "semantic_vad":
        preset = PRESET_OF_EAGERNESS.get(str(value.get("eagerness")))
        return TurnRules(TurnEnds.MEANING, replies, interrupts), {} if preset is None else {"preset": preset}
    threshold, prefix_ms, silence_ms, idle_ms = (
        value.get(name) for name in ("threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms")
    )
    idle_s = None if idle_ms is None else idle_ms / 1000.0
    if defaults.native:
        _check_native(value, path)
        return TurnRules(TurnEnds.MEANING, replies, interrupts, idle_s), {}
    rules = TurnRules(
        TurnEnds.SILENCE,
        replies,
        interrupts,
        idle_s,
        silence_s=(SILENCE_MS if silence_ms is None else silence_ms) / 1000.0,
        threshold=THRESHOLD if threshold is None else float(threshold),
        prefix_s=(PREFIX_MS if prefix_ms is None else prefix_ms) / 1000.0,
    )
    return rules, _silence_timer(rules)


def _check_native(value: Mapping[str, Any], path: str) -> None:
    for name, usual in (
        ("threshold", THRESHOLD),
        ("prefix_padding_ms", PREFIX_MS),
        ("silence_duration_ms", SILENCE_MS),
    ):
        if value.get(name) not in (None, usual):
            raise UnsupportedError(
                f"{path}.{name} = {shown(value[name])} cannot be honoured: this agent hears and speaks all the "
                "time and takes turns by itself. Leave the field out.",
                param=f"{path}.{name}",
            )


def _silence_timer(rules: TurnRules) -> dict[str, Any]:
    assert rules.silence_s is not None
    assert rules.threshold is not None
    return {
        "silence_likely_s": rules.silence_s,
        "silence_unknown_s": rules.silence_s,
        "silence_unlikely_s": rules.silence_s,
        "silence_most_s": rules.silence_s,
        "patience": False,
        "without": "prosody, expectation, intonation",
        "speech_threshold": rules.threshold,
        # As far from it as the defaults are: a voice that began may be a little less certain, one over ours is more.
        "silence_threshold": round(max(0.01, rules.threshold - 0.15), 3),
        "overlap_threshold": round(min(0.98, rules.threshold + 0.1), 3),
    }


def turn_detection(settings: AgentSettings) -> dict[str, Any] | None:
    """The effective setting, as a session object has it."""
    rules = settings.turns or TurnRules()
    both = {"create_response": rules.replies, "interrupt_response": rules.interrupts}
    match rules.ends:
        case TurnEnds.CLIENT:
            return None
        case TurnEnds.SILENCE:
            return {
                "type": "server_vad",
                "threshold": rules.threshold,
                "prefix_padding_ms": round((rules.prefix_s or 0.0) * 1000),
                "silence_duration_ms": round((rules.silence_s or 0.0) * 1000),
                "idle_timeout_ms": None if rules.idle_timeout_s is None else round(rules.idle_timeout_s * 1000),
                **both,
            }
        case TurnEnds.MEANING:
            preset = (settings.turn_taking or {}).get("preset")
            eagerness = next((name for name, known in PRESET_OF_EAGERNESS.items() if known == preset), "auto")
            return {"type": "semantic_vad", "eagerness": eagerness, **both}
