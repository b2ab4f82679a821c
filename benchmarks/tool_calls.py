"""How often the embedded thinker calls the right tool, and whether its answers hold what the tool said.

    python benchmarks/tool_calls.py [--models DIR] [--fit] [--json FILE]

Three tables, each for the utterances that were tuned on and for those held out (``tool_material.py``):

* decisions: right ones of the model alone, of the words alone, and of both, with tools in groups of one to ten. The
  thresholds of the first two are the best ones for the tuning half. Utterances that lack a value are left out here.
* calls: the whole reply, with arguments, as ``LlamaThinker`` makes it; and how much longer it takes to its first
  token than without tools, in the same run.
* answers: how many hold all facts of a tool's result, with words of the model's own choosing and as they are made.

``--fit`` fits the weights anew to the tuning half and prints them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from duplex.agent import Tool
from duplex.benchmarks.tool_material import (
    ANSWERS_HELD_OUT,
    ANSWERS_TUNING,
    HELD_OUT,
    TUNING,
    Answered,
    Material,
    Said,
)
from duplex.thinker_talker import tool_small as small
from duplex.thinker_talker.cascade_options import DEFAULT_INSTRUCTIONS
from duplex.thinker_talker.gguf_repack import repacked
from duplex.thinker_talker.llama import LlamaThinker
from duplex.thinker_talker.llama_place import Place
from duplex.thinker_talker.llama_tools import SmallReply
from duplex.thinker_talker.thinker import Call, CollectingSink, Message, ThinkRequest, Thought
from duplex.thinker_talker.tool_words import overlap
from duplex.weights import ModelStore

_SYSTEM = Message("system", DEFAULT_INSTRUCTIONS)


@dataclass(frozen=True, slots=True)
class Case:
    """One utterance with what speaks for each tool."""

    said: Said
    evidence: tuple[small.Evidence, ...]


class Bench:
    """The thinker with one session, asked in its own words and through its seams."""

    def __init__(self, model: Path) -> None:
        self.thinker = LlamaThinker(model, sessions=1, threads=1, native_tools=False)
        self.session = self.thinker.open()

    def close(self) -> None:
        self.thinker.close()

    def evidence(self, tools: Sequence[Tool], said: Said) -> Case:
        messages = (_SYSTEM, Message("user", said.text))
        request = ThinkRequest(messages, tools=tuple(tools), temperature=0.0)
        thought = Thought(CollectingSink())
        reply = SmallReply(Place(self.thinker, 0, request, thought), request, messages, self.thinker.examples, thought)
        spoken_of = [(tool, overlap(tool, said.text)) for tool in tools]
        return Case(said, tuple(reply.evidence(spoken_of, said.text)))

    def plain_reply(self, text: str, tools: Sequence[Tool]) -> CollectingSink:
        sink = CollectingSink()
        request = ThinkRequest((_SYSTEM, Message("user", text)), max_tokens=30, temperature=0.0, tools=tuple(tools))
        self.session.think(request, sink).wait_over()
        return sink

    def reply(self, text: str, tools: Sequence[Tool]) -> tuple[CollectingSink, float]:
        """The reply and the seconds to its first piece, the conversation up to the user's words being read ahead."""
        sink = _TimedSink()
        self.session.prefill((_SYSTEM,), tuple(tools))
        self.session.think(ThinkRequest((_SYSTEM, Message("user", ".")), max_tokens=1), CollectingSink()).wait_over()
        self.session.think(
            ThinkRequest((_SYSTEM, Message("user", ".")), max_tokens=1, tools=tuple(tools)), CollectingSink()
        ).wait_over()
        request = ThinkRequest((_SYSTEM, Message("user", text)), max_tokens=60, temperature=0.0, tools=tuple(tools))
        began_s = time.perf_counter()
        self.session.think(request, sink).wait_over()
        return sink, sink.first_s - began_s

    def answer(self, question: str, output: str, *, bound: bool) -> str:
        asked = Message("assistant", "", calls=(Call("c", "call", "{}"),))
        messages = (_SYSTEM, Message("user", question), asked, Message("tool", output, call_id="c"))
        request = ThinkRequest(messages, max_tokens=60, temperature=0.0, tools=(Tool("call", "Does it."),))
        if bound:
            sink = CollectingSink()
            self.session.think(request, sink).wait_over()
            return sink.text
        thought = Thought(CollectingSink())
        shown = small.shown(messages, request.tools, self.thinker.examples)
        return Place(self.thinker, 0, request, thought).ask(shown, max_tokens=60).text


class _TimedSink(CollectingSink):
    first_s = 0.0

    def on_text(self, delta: str) -> None:
        self.first_s = self.first_s or time.perf_counter()
        super().on_text(delta)

    def on_call_began(self, call_id: str, name: str) -> None:
        self.first_s = self.first_s or time.perf_counter()
        super().on_call_began(call_id, name)


def regrouped(material: Material) -> Material:
    """The same utterances for other numbers of tools: each set, each tool alone, all but one, and all sets together."""
    groups = list(material)
    for tools, utterances in material:
        for index, tool in enumerate(tools):
            groups.append(((tool,), tuple(u for u in utterances if u.tool in (None, tool.name))[::2]))
            if len(tools) > 2:
                rest = tools[:index] + tools[index + 1 :]
                kept = tuple(u for u in utterances if u.tool != tool.name)[index::3]
                groups.append((rest, kept))
    together = tuple(tool for tools, _ in material for tool in tools)
    groups.append((together, tuple(u for _, utterances in material for u in utterances)[::2]))
    return tuple(groups)


# --- who decides ----------------------------------------------------------------------------------


def decisions(cases: Sequence[Case], judge: str, weights: small.Weights, threshold: float) -> Counter[str]:
    """``judge``: "model", "words" or "both". Counts "right", "none", "other", "false" of those and "n"."""
    counts: Counter[str] = Counter()
    for case in cases:
        if case.said.missing:
            continue
        best = max(case.evidence, key=lambda seen: _score(seen, judge, weights))
        called = best.tool.name if _score(best, judge, weights) > threshold else None
        counts["n"] += 1
        counts["wanted"] += case.said.tool is not None
        counts[_verdict(case.said.tool, called)] += 1
    return counts


def _score(seen: small.Evidence, judge: str, weights: small.Weights) -> float:
    if judge == "model":
        return seen.margin
    if judge == "words":
        return weights.log_odds(replace(seen, margin=0.0))
    return weights.log_odds(seen) if seen.words else -1e9


def _verdict(wanted: str | None, called: str | None) -> str:
    if wanted == called:
        return "right"
    return "false" if wanted is None else "none" if called is None else "other"


def best_threshold(cases: Sequence[Case], judge: str, weights: small.Weights) -> float:
    scores = sorted({_score(seen, judge, weights) for case in cases for seen in case.evidence})
    tried = [(a + b) / 2 for a, b in itertools.pairwise(scores)]
    return max(tried, key=lambda t: decisions(cases, judge, weights, t)["right"])


def fit(cases: Sequence[Case], *, l2: float = 0.005, steps: int = 4000, rate: float = 0.03) -> small.Weights:
    """Logistic regression over the tools whose words were said, "none" being the reference."""
    rows: list[tuple[npt.NDArray[np.float64], int]] = []
    for case in cases:
        seen = [e for e in case.evidence if e.words]
        wanted = [i for i, e in enumerate(seen) if e.tool.name == case.said.tool]
        if seen and not case.said.missing and (wanted or case.said.tool is None):
            features = [[e.margin, min(e.words, 2), e.share, e.held, -e.lacks, 1.0] for e in seen]
            rows.append((np.array(features, float), wanted[0] if wanted else len(seen)))
    w = np.zeros(6)
    for _ in range(steps):
        gradient = l2 * w * [1, 1, 1, 1, 1, 0]
        for x, target in rows:
            z = np.append(x @ w, 0.0)
            p = np.exp(z - z.max())
            p /= p.sum()
            p[target] -= 1.0
            gradient = gradient + x.T @ p[:-1] / len(rows)
        w -= rate * gradient
    return small.Weights(*(round(float(v), 2) for v in w))


# --- whole replies --------------------------------------------------------------------------------


def replies(bench: Bench, material: Material) -> Counter[str]:
    counts: Counter[str] = Counter()
    for tools, utterances in material:
        for said in utterances:
            sink = bench.plain_reply(said.text, tools)
            call = sink.calls[0] if sink.calls else None
            verdict = _verdict(said.tool, call.name if call else None)
            if said.missing:
                verdict = "asked" if call is None and sink.text.startswith(small.ASKS) else "not asked"
            elif verdict == "right" and call is not None and json.loads(call.arguments) != said.arguments:
                verdict = "wrong arguments"
            elif verdict == "right":
                verdict = "called" if call else "talked"
            elif sink.text.startswith(small.ASKS):
                verdict = f"asked instead of {verdict}"
            counts[verdict] += 1
            if verdict not in ("called", "talked", "asked"):
                print(f"   {verdict}: {said.text!r} -> {call.name + call.arguments if call else sink.text!r}")
    return counts


def delays(bench: Bench, material: Material) -> dict[str, list[float]]:
    """Seconds to the first piece of a reply: without tools; with them, by what it came to."""
    found: dict[str, list[float]] = {
        "no tools": [],
        "talk, no word of a tool": [],
        "talk, a word of one": [],
        "call": [],
    }
    for tools, utterances in material:
        for said in utterances:
            sink, first_s = bench.reply(said.text, tools)
            spoken_of = small.spoken_of(tools, said.text)
            kind = "call" if sink.calls else "talk, a word of one" if spoken_of else "talk, no word of a tool"
            found[kind].append(first_s)
            if not sink.calls:
                found["no tools"].append(bench.reply(said.text, ())[1])
    return found


def answers(bench: Bench, given: Answered, *, bound: bool) -> int:
    held = 0
    for question, output, facts in given:
        text = bench.answer(question, output, bound=bound)
        held += all(fact in text for fact in facts)
        print(f"   {'bound' if bound else 'free'}: {question} | {output} | {text}")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("decisions", "calls", "delays", "answers"))
    options = parser.parse_args()
    store = ModelStore(options.models)
    original = next(store.path("smollm2-135m").glob("*.gguf"))
    bench = Bench(repacked(original, store.root / "prepared"))
    report: dict[str, Any] = {}

    def wants(part: str) -> bool:
        return options.only in (None, part)

    if wants("decisions"):
        cases = {
            half: [bench.evidence(tools, said) for tools, utterances in regrouped(material) for said in utterances]
            for half, material in (("tuning", TUNING), ("held out", HELD_OUT))
        }
        weights = small.FITTED
        if options.fit:
            weights = fit(cases["tuning"])
            print("fitted:", weights)
        words = replace(weights, margin=0.0, bias=0.0)
        for judge in ("model", "words", "both"):
            used = words if judge == "words" else weights
            threshold = 0.0 if judge == "both" else best_threshold(cases["tuning"], judge, used)
            for half, found in cases.items():
                counts = decisions(found, judge, used, threshold)
                report[f"decisions/{judge}/{half}"] = dict(counts)
                print(f"decisions  {judge:6} {half:9} {dict(counts)}")
    for half, material, given in (("tuning", TUNING, ANSWERS_TUNING), ("held out", HELD_OUT, ANSWERS_HELD_OUT)):
        if wants("calls"):
            report[f"calls/{half}"] = dict(replies(bench, material))
            print(f"calls      {half:9} {report[f'calls/{half}']}")
        if wants("delays") and half == "held out":
            for kind, times in delays(bench, material).items():
                middle_ms = statistics.median(times) * 1000 if times else 0.0
                report[f"delays/{kind}"] = {"p50_ms": middle_ms, "n": len(times)}
                print(f"delays     {kind:25} p50 {middle_ms:6.0f} ms  n {len(times)}")
        if wants("answers"):
            for bound in (False, True):
                held = answers(bench, given, bound=bound)
                report[f"answers/{'bound' if bound else 'free'}/{half}"] = {"held": held, "n": len(given)}
                print(f"answers    {'bound' if bound else 'free':6} {half:9} {held} of {len(given)}")
    if options.json:
        options.json.write_text(json.dumps(report | {"weights": asdict(small.FITTED)}, indent=1))
    bench.close()


if __name__ == "__main__":
    main()
