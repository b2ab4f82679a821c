"""A full-duplex language model of the Moshi family, stepped for many slots at once.

Theory of operation
-------------------
A step takes each slot one frame (80 ms) on. It has two halves, which can be called, timed and recorded apart:

    temporal   the tokens of all streams, summed as embeddings ─► transformer over what was ─► the text token
    depth      that transformer's output and the text token ─► the agent's codebooks, one after the other

The weights are those of a ``moshi`` ``LMModel``; the step over them is our own, because the package's keeps its state
in the modules, for one batch size, with one way of sampling for all. Here state is a value (:mod:`.backbone_state`),
rows are independent, and everything is done in place with shapes that depend on n alone and without a word to the host:
a CUDA graph can record a step for any n over views of one state.

What a slot may be told at each step: nothing (``active`` false: not a bit of its state changes), which text token or
which audio frame to make (kept like ones it chose). Steps equal ``LMGen`` of the package with ``support_out_of_sync``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from duplex.errors import ConfigError

from . import layers as parts
from .backbone_state import BackboneState, Memory, Work
from .delays import Delays
from .depth import Depth
from .kv_cache import KvDtype, KvLayer, KvLayout, stored_dtype
from .prompt import read_prompt
from .sampling import Sampling, TopK, choose, gumbel, index_table, pick, stream_keys, stream_table
from .temporal import Temporal
from .tensors import CHOOSE, UNGENERATED, StepInputs, StepOutputs


@dataclass(frozen=True, slots=True)
class BackboneOptions:
    """``context``: steps whose keys and values are kept, ``None``: the model's; ``sinks`` of them are the first ones,
    for ever. ``kv_dtype``: how they are kept. ``max_top_k``: the largest top-k a slot may ask for. ``sampling``: of a
    slot that says nothing else."""

    context: int | None = None
    sinks: int = 0
    kv_dtype: KvDtype = "model"
    max_top_k: int = 256
    sampling: Sampling = field(default_factory=Sampling)


class Backbone:
    """``model``: a ``moshi`` ``LMModel`` with its weights, on its device, in its final precision: change nothing of it
    afterwards. Raises ``ConfigError`` for kinds of model that cannot be served."""

    def __init__(self, model: Any, options: BackboneOptions = BackboneOptions()) -> None:
        if model.fuser is not None or model.condition_provider is not None:
            raise ConfigError("This checkpoint needs conditions (a voice, a quality), which cannot be served yet.")
        options.sampling.check(options.max_top_k)
        self.model = model
        self.options = options
        self.device: torch.device = model.text_emb.weight.device
        self.dtype: torch.dtype = model.text_emb.weight.dtype
        self.dep_q: int = model.dep_q
        self.n_user: int = model.n_q - model.dep_q
        self.card: int = model.card
        self.text_card: int = model.text_card
        context = options.context or model.context
        if context is None:
            raise ConfigError("This checkpoint names no context; set one (steps, 12.5 a second).")
        attention = model.transformer.layers[0].self_attn
        self.kv_layout = KvLayout(
            capacity=context,
            sinks=options.sinks,
            heads=attention.num_heads // attention.kv_repeat,
            dim=attention.embed_dim // attention.num_heads,
            dtype=stored_dtype(options.kv_dtype, self.dtype),
        )
        self.n_layers = len(model.transformer.layers)
        initial = [model.text_initial_token_id] + [model.initial_token_id] * model.n_q
        self.delays = Delays(model.delays, self.dep_q, initial, self.device)
        self._temporal = Temporal(model.transformer, self.kv_layout, self.device)
        self._depth = Depth(model, self.device) if self.dep_q else None
        self._audio_embedding = parts.embedding_sum(model.emb)
        self._text_embedding = parts.embedding(model.text_emb)
        self._out_norm = parts.norm(model.out_norm)
        self._text_logits = parts.linear(model.text_linear)
        self._extra_heads = [parts.linear(head) for head in model.extra_heads]
        self._streams = stream_table(1 + self.dep_q, self.device)
        self._text_table = index_table(model.text_linear.out_features, self.device)
        self._audio_table = index_table(self.card, self.device)

    # --- what a slot needs -----------------------------------------------------------------------------------

    @property
    def n_streams(self) -> int:
        """Text, the agent's codebooks, the user's codebooks."""
        return 1 + self.dep_q + self.n_user

    @property
    def kv_bytes_per_slot(self) -> int:
        return self.n_layers * self.kv_layout.bytes_per_slot

    @torch.inference_mode(False)
    @torch.no_grad()
    def new_state(self, n_slots: int) -> BackboneState:
        """Every slot as new. Plain tensors, wherever it is called: they may be written in and out of inference mode."""

        def tensor(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(n_slots, *shape, dtype=dtype, device=self.device)

        memory = Memory(
            step=tensor(),
            tokens=tensor(self.n_streams, self.delays.ring),
            forced=tensor(self.dep_q, self.delays.ring),
            seed=tensor(),
            temperature_text=tensor(dtype=torch.float32),
            temperature_audio=tensor(dtype=torch.float32),
            top_k_text=tensor(),
            top_k_audio=tensor(),
        )
        work = Work(
            hidden=tensor(self.model.dim, dtype=self.dtype),
            keys=tensor(1 + self.dep_q),
            text=tensor(),
            forced=tensor(self.dep_q),
            finite=tensor(dtype=torch.bool),
        )
        caches = [KvLayer.empty(self.kv_layout, n_slots, self.device) for _ in range(self.n_layers)]
        state = BackboneState(memory, caches, work, self.delays, self.options.sampling, self.options.max_top_k)
        self.delays.clear(memory.tokens, memory.forced)
        for slot in range(n_slots):
            state.set_sampling(slot, self.options.sampling)
        return state

    @torch.inference_mode(False)
    def new_inputs(self, n_slots: int) -> StepInputs:
        """All active, users silent in codes of 0, nothing forced."""

        def tensor(value: int, *shape: int) -> torch.Tensor:
            return torch.full((n_slots, *shape), value, dtype=torch.int64, device=self.device)

        return StepInputs(
            active=torch.ones(n_slots, dtype=torch.bool, device=self.device),
            user_codes=tensor(0, self.n_user),
            forced_text=tensor(CHOOSE),
            forced_audio=tensor(CHOOSE, self.dep_q),
        )

    def new_outputs(self, n_slots: int) -> StepOutputs:
        def tensor(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(n_slots, *shape, dtype=dtype, device=self.device)

        return StepOutputs(tensor(), tensor(self.dep_q), tensor(dtype=torch.bool), tensor(dtype=torch.bool))

    # --- a step ----------------------------------------------------------------------------------------------

    def step(
        self,
        state: BackboneState,
        inputs: StepInputs,
        outputs: StepOutputs | None = None,
        *,
        kv_span: int | None = None,
    ) -> StepOutputs:
        """One frame of every active slot. All arguments have the same n; ``outputs`` is filled, or made when ``None``.

        ``kv_span``: look only at that many places of the caches, which spares time early in a call; more than every
        active slot's step, or the result is wrong. It is a shape: a graph is recorded for one value.
        """
        if outputs is None:
            outputs = self.new_outputs(state.n_slots)
        self.temporal(state, inputs, kv_span=kv_span)
        self.depth(state, inputs, outputs)
        return outputs

    @torch.no_grad()
    def temporal(self, state: BackboneState, inputs: StepInputs, *, kv_span: int | None = None) -> None:
        """The first half: reads the users' codes, adds a position to the caches, chooses the text. Its results wait in
        ``state.work``; :meth:`depth` must follow before anything else touches these slots."""
        memory, work, active = state.memory, state.work, inputs.active
        self.delays.put_user(memory.tokens, memory.step, inputs.user_codes.clamp(-1, self.card), active)
        forced = inputs.forced_audio.clamp(CHOOSE, self.card - 1)
        work.forced.copy_(self.delays.put_forced(memory.forced, memory.step, forced, active))
        x = self.embed(self.delays.read(memory.tokens, memory.step))
        plan = self._temporal.step_plan(memory.step, active, kv_span, self.dtype)
        hidden = self._out_norm(self._temporal.step(x, plan, state.caches))
        logits = self._text_logits(hidden).float()
        work.hidden.copy_(hidden)
        work.keys.copy_(stream_keys(memory.seed, memory.step, self._streams))
        chosen = choose(
            logits,
            work.keys[:, 0],
            memory.temperature_text,
            memory.top_k_text,
            self._text_table,
            self.options.max_top_k,
        )
        given = inputs.forced_text.clamp(CHOOSE, self.text_card - 1)
        work.text.copy_(torch.where(given == CHOOSE, chosen, given))
        work.finite.copy_(torch.isfinite(logits.sum(dim=1)))

    @torch.no_grad()
    def depth(self, state: BackboneState, inputs: StepInputs, outputs: StepOutputs) -> None:
        """The second half: the agent's codebooks; then the step is over and counted."""
        memory, work, active = state.memory, state.work, inputs.active
        made, finite = work.forced, work.finite
        if self._depth is not None:
            hidden = work.hidden.to(self._depth.dtype)
            cache = self._depth.new_cache(state.n_slots, self.device)
            noise = gumbel(work.keys[:, 1:], self._audio_table) * memory.temperature_audio[:, None, None]
            top_k = TopK.of(memory.top_k_audio, self.options.max_top_k, self.card)
            chooses = work.forced == CHOOSE
            token, tokens, sums = work.text, [], []
            for k in range(self.dep_q):
                logits = self._depth.logits(k, hidden, token, cache)
                token = torch.where(chooses[:, k], pick(logits, noise[:, k], top_k), work.forced[:, k])
                tokens.append(token)
                sums.append(logits.sum(dim=1))
            made = torch.stack(tokens, dim=1)
            finite = finite & torch.isfinite(torch.stack(sums).sum(dim=0))
        self.delays.put_made(memory.tokens, memory.step, work.text, made, active)
        codes, ready = self.delays.frame(memory.tokens, memory.step)
        outputs.text.copy_(work.text)
        outputs.codes.copy_(codes.masked_fill(~active[:, None], UNGENERATED))
        outputs.ready.copy_(ready & active)
        outputs.finite.copy_(finite | ~active)
        memory.step.add_(active)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64[m, K] to what the temporal transformer reads, ``[m, d]``."""
        return self._audio_embedding(tokens[:, 1:]) + self._text_embedding(tokens[:, 0])

    @torch.no_grad()
    def extra_heads(self, state: BackboneState) -> torch.Tensor | None:
        """Probabilities of the model's additional heads (voice activity, in some checkpoints) at the last step:
        ``[n, heads, classes]``; ``None`` for a model without."""
        if not self._extra_heads:
            return None
        return torch.stack([head(state.work.hidden).softmax(dim=-1) for head in self._extra_heads], dim=1)

    # --- a prompt --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, state: BackboneState, slot: int, tokens: torch.Tensor) -> torch.Tensor:
        """Takes one slot through ``tokens`` int64[K, T] (text, the agent's frame, the user's frame of each step), many
        positions at a time, and leaves what T steps with all of it forced leave. Not for a graph; nothing waits.

        Returns bool[]: everything was finite. Raises ``ConfigError`` for tokens (on the host) that do not exist.
        """
        return read_prompt(self, state.rows(slot, slot + 1), tokens)

    @torch.no_grad()
    def read_positions(self, state: BackboneState, tokens: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """``tokens`` int64[t, K] as the temporal transformer is to read them at ``first`` (int64[1]) and after, of the
        one slot of ``state``; only its caches change. Returns ``[t, d]``."""
        positions = first + torch.arange(tokens.shape[0], dtype=torch.int64, device=self.device)
        plan = self._temporal.prompt_plan(positions, self.dtype)
        return self._out_norm(self._temporal.prompt(self.embed(tokens), plan, state.caches))
