"""The buffers a tick works on, and its parts as functions of a batch size over them: what the graphs are captured from.

=========  ==========================================================  ===========================================
part       reads                                                       writes
=========  ==========================================================  ===========================================
encode     the users' samples; the codec's state                       the users' codes
temporal   the users' codes, what is forced; the backbone's state      its state, the text
depth      the same                                                    text and codes; ready, finite
decode     the codes where they are ready; the codec's state           the agents' sound; finite
=========  ==========================================================  ===========================================

Listening and speaking have masks of their own: a slot listens when it has a frame, and speaks when its codes are there.

The *tick lane* has a row for every slot. The *prompt lane* has one row and the backbone alone: a call's prompt is read
there, at the price of a batch of one, while the others tick on; then its row moves over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from duplex.codec import SlotCodec, SlotState
from duplex.thinker_talker.native.device.engine_parts import Backbone
from duplex.thinker_talker.native.device.graphs import Buffers, GraphBackend, GraphRunner, SlotFunction
from duplex.thinker_talker.native.device.part_times import PartTimes
from duplex.thinker_talker.native.device.staging import Field, Rows
from duplex.thinker_talker.native.model.tensors import StepInputs, StepOutputs


class Lane:
    """``sizes``: batch sizes it can run at; the last is the number of its rows. Without a ``codec`` the users'
    codes are given like the rest, and there is no sound."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        codec: SlotCodec | None,
        sizes: Sequence[int],
        device: torch.device,
        backend: GraphBackend | None,
    ) -> None:
        n_rows = max(sizes)
        self.name = name
        self._backbone, self._codec = backbone, codec
        self.model_state = backbone.new_state(n_rows)
        self.codec_state: SlotState | None = None

        given = [
            Field("active", torch.bool),
            Field("forced_text", torch.int64),
            Field("forced_audio", torch.int64, (backbone.dep_q,)),
        ]
        made = [
            Field("text", torch.int64),
            Field("ready", torch.bool),
            Field("finite", torch.bool),
            Field("codes", torch.int64, (backbone.dep_q,)),
        ]
        functions: list[tuple[str, SlotFunction]] = [("temporal", self._temporal), ("depth", self._depth)]
        if codec is not None:
            self.codec_state = codec.new_state(n_rows)
            samples = (codec.info.frame_samples,)
            given += [Field("n_codebooks", torch.int64), Field("samples", torch.float32, samples)]
            made.append(Field("sound", torch.float32, samples))
            functions = [("encode", self._encode), *functions, ("decode", self._decode)]
        else:
            given.append(Field("user_codes", torch.int64, (backbone.n_user,)))
        self.given, self.made = Rows(given, n_rows, device), Rows(made, n_rows, device)
        here = self.given.device
        self.user_codes = (
            torch.zeros(n_rows, backbone.n_user, dtype=torch.int64, device=device)
            if codec is not None
            else here["user_codes"]
        )
        self.inputs = StepInputs(here["active"], self.user_codes, here["forced_text"], here["forced_audio"])
        out = self.made.device
        self.outputs = StepOutputs(out["text"], out["codes"], out["ready"], out["finite"])
        # Views made once: making them is as much work for the host as a small operation.
        self._inputs = {size: self.inputs.first(size) for size in sizes}
        self._outputs = {size: self.outputs.first(size) for size in sizes}
        self._runners = [
            GraphRunner(f"{name}.{part}", function, sizes=sizes, buffers=self._buffers, backend=backend)
            for part, function in functions
        ]

    @property
    def states(self) -> tuple[SlotState, ...]:
        return (self.model_state,) if self.codec_state is None else (self.model_state, self.codec_state)

    def warm_up_and_capture(self) -> None:
        """With nothing active: what warms up leaves every state as it was."""
        self.given.host["active"][:] = False
        self.given.upload(len(self.user_codes))
        for runner in self._runners:
            runner.warm_up_and_capture()

    def verify(self) -> None:
        """Raises ``GraphError`` if something a graph relies on was moved."""
        for runner in self._runners:
            runner.verify()

    def run(self, size: int, times: PartTimes) -> None:
        """What was uploaded, through every part; nothing waits."""
        for runner in self._runners:
            runner.run(size)
            times.end_of(runner.name.rpartition(".")[2])

    def _buffers(self) -> Buffers:
        states = {f"state{i}.{name}": t for i, state in enumerate(self.states) for name, t in state.tensors().items()}
        return {**self.given.device, **self.made.device, "user_codes": self.user_codes, **states}

    def _encode(self, n: int) -> None:
        assert self._codec is not None
        assert self.codec_state is not None
        here = self.given.device
        codes = self._codec.encode(self.codec_state.first(n), here["samples"][:n], here["active"][:n])
        self.user_codes[:n].copy_(codes[:, : self.user_codes.shape[1]])

    def _temporal(self, n: int) -> None:
        self._backbone.temporal(self.model_state.first(n), self._inputs[n])

    def _depth(self, n: int) -> None:
        self._backbone.depth(self.model_state.first(n), self._inputs[n], self._outputs[n])

    def _decode(self, n: int) -> None:
        assert self._codec is not None
        assert self.codec_state is not None
        made, here = self.made.device, self.given.device
        ready = made["ready"][:n] & here["active"][:n]
        codes = made["codes"][:n].clamp(min=0)
        missing = self._codec.info.codebooks - codes.shape[1]
        if missing:
            codes = functional.pad(codes, (0, missing))
        sound = self._codec.decode(self.codec_state.first(n), codes, ready, here["n_codebooks"][:n])
        made["sound"][:n].copy_(sound)
        made["finite"][:n].logical_and_(torch.isfinite(sound).all(dim=1) | ~ready)
