"""Mimi by slots against the moshi package's own model: equal, for every cutting, mask, batch and neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.codecs.mimi import MimiCodec, MimiState, load, state_bytes
from duplex.thinker_talker.native.device.graph_recorder import RecordedGraphs

FRAME = 1920
FRAMES = 40  # 80 transformer steps; the tiny one looks back 50, so the ring comes round
CODEBOOKS = 32


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def codec(dtype: str = "float32", codebooks: int = CODEBOOKS) -> MimiCodec:
    return load({"config": "tiny", "codebooks": codebooks, "dtype": dtype, "seed": 5})


@cache
def sounds() -> torch.Tensor:
    """float32[4, FRAMES · FRAME]: noise at four levels, one of them with silence in it."""
    noise = torch.randn(4, FRAMES * FRAME, generator=torch.Generator().manual_seed(1))
    noise *= torch.tensor([0.1, 0.02, 0.3, 0.1])[:, None]
    noise[3, 5 * FRAME : 9 * FRAME] = 0
    return noise


@dataclass(frozen=True)
class Whole:
    """What the package makes of everything at once: codes int64[4, FRAMES, K], samples [4, FRAMES · FRAME]."""

    codes: torch.Tensor
    samples: torch.Tensor


@cache
def whole(dtype: str) -> Whole:
    model = codec(dtype).model
    codes = model.encode(sounds()[:, None].to(codec(dtype).dtype))
    return Whole(codes.transpose(1, 2), model.decode(codes)[:, 0])


def everyone(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bool)


def count(n: int, codebooks: int = CODEBOOKS) -> torch.Tensor:
    return torch.full((n,), codebooks)


def frame_of(rows: Sequence[int], at: int | Sequence[int]) -> torch.Tensor:
    starts = [at] * len(rows) if isinstance(at, int) else at
    return torch.stack([sounds()[row, FRAME * i : FRAME * (i + 1)] for row, i in zip(rows, starts, strict=True)])


@cache
def alone(row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One sound through a state of one slot: codes [FRAMES, K], samples [FRAMES, FRAME]."""
    state, codes, samples = codec().new_state(1), [], []
    for i in range(FRAMES):
        codes.append(codec().encode(state, frame_of([row], i), everyone(1)))
        samples.append(codec().decode(state, codes[-1], everyone(1), count(1)))
    return torch.cat(codes), torch.cat(samples)


def copies(state: MimiState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Bit for bit where oneDNN and MKL compute, to rounding elsewhere; always bit for bit if these are codes."""
    if a.dtype == torch.int64 or (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        assert torch.equal(a, b)
    else:
        assert torch.allclose(a, b, atol=1e-6)


# -- streaming is the whole, cut up --------------------------------------------------------------------------------

TICKS = st.lists(
    st.tuples(
        st.integers(1, 5),  # frames at once
        st.lists(st.booleans(), min_size=3, max_size=3),  # who is heard
        st.lists(st.booleans(), min_size=3, max_size=3),  # who speaks
    ),
    min_size=8,
    max_size=16,
)


@given(ticks=TICKS)
@settings(max_examples=12, deadline=None)
def test_every_cutting_and_every_mask_gives_the_package_s_own_whole(
    ticks: list[tuple[int, list[bool], list[bool]]],
) -> None:
    mimi, want = codec("float64"), whole("float64")
    state = mimi.new_state(3)
    heard, spoken = [0, 0, 0], [0, 0, 0]
    for n_frames, listens, speaks in ticks:
        listens = [on and heard[i] + n_frames <= FRAMES for i, on in enumerate(listens)]
        speaks = [on and spoken[i] + n_frames <= FRAMES for i, on in enumerate(speaks)]
        samples = torch.full((3, n_frames * FRAME), 0.5)  # for those without a frame: anything
        codes = torch.zeros((3, n_frames, CODEBOOKS), dtype=torch.int64)
        for i in range(3):
            if listens[i]:
                samples[i] = sounds()[i, heard[i] * FRAME :][: n_frames * FRAME]
            if speaks[i]:
                codes[i] = want.codes[i, spoken[i] :][:n_frames]
        encoded = mimi.encode_frames(state, samples, torch.tensor(listens))
        decoded = mimi.decode_frames(state, codes, torch.tensor(speaks), count(3))
        for i in range(3):
            if listens[i]:
                assert torch.equal(encoded[i], want.codes[i, heard[i] :][:n_frames])
                heard[i] += n_frames
            if speaks[i]:
                expected = want.samples[i, spoken[i] * FRAME :][: n_frames * FRAME]
                assert (decoded[i] - expected).abs().max() < 1e-7  # float32's last bit, at the output
                spoken[i] += n_frames


def test_in_float32_samples_agree_to_1e_6_and_codes_but_for_ties() -> None:
    mimi, want = codec(), whole("float32")
    state, codes, samples = mimi.new_state(4), [], []
    for i in range(FRAMES):
        codes.append(mimi.encode(state, frame_of(range(4), i), everyone(4)))
        samples.append(mimi.decode(state, want.codes[:, i], everyone(4), count(4)))
    same_frames = (torch.stack(codes, 1) == want.codes).all(-1).float().mean()
    assert same_frames >= 0.98  # of 160; a tie decided otherwise changes the rest of that frame
    assert (torch.cat(samples, 1) - want.samples).abs().max() < 1e-6


def test_the_package_s_streaming_agrees_until_its_ring_is_full_and_only_until_then() -> None:
    """Why the ring here is larger. 25 frames in the tiny one are 125, 10 s, in the real one."""
    mimi = codec("float64")
    model = mimi.model
    codes = whole("float64").codes[:1].transpose(1, 2)
    with model.streaming(1):
        streamed = torch.cat([model.decode(codes[..., i : i + 1])[:, 0] for i in range(FRAMES)], 1)
    difference = (streamed - whole("float64").samples[:1]).abs().view(FRAMES, FRAME).amax(1)
    assert difference[:25].max() < 1e-7
    assert difference[25:].max() > 1e-5


# -- one slot among others -----------------------------------------------------------------------------------------


def test_slots_join_leave_and_reset_mid_run_and_nobody_else_notices() -> None:
    """As a scheduler does it: a prefix of live rows, a leaver's hole filled with the last row, sizes 1, 2, 4, 8."""
    mimi = codec()
    root = mimi.new_state(8)
    live: list[int] = []  # sound by row
    at: dict[int, int] = {}
    seen: dict[int, list[torch.Tensor]] = {row: [] for row in range(4)}
    heard: dict[int, list[torch.Tensor]] = {row: [] for row in range(4)}
    plan = {0: "+0", 3: "+1 +2", 6: "+3", 9: "-0", 12: "-2", 14: "+0", 17: "!3", 20: "-1"}
    for tick in range(26):
        for word in plan.get(tick, "").split():
            sound = int(word[1])
            if word[0] == "+":
                root.reset(len(live))
                live.append(sound)
                at[sound], seen[sound], heard[sound] = 0, [], []
            elif word[0] == "-":
                hole, last = live.index(sound), len(live) - 1
                if hole != last:
                    root.move(last, hole)
                live[hole] = live[last]
                live.pop()
            else:
                root.reset(live.index(sound))
                at[sound], seen[sound], heard[sound] = 0, [], []
        n = next(size for size in (1, 2, 4, 8) if size >= len(live))
        here = [sound for i, sound in enumerate(live) if (tick + i) % 5]  # now and then a frame is late
        samples, active = torch.zeros(n, FRAME), torch.zeros(n, dtype=torch.bool)
        for i, sound in enumerate(live):
            if sound in here:
                samples[i], active[i] = frame_of([sound], at[sound])[0], True
        codes = mimi.encode(root.first(n), samples, active)
        out = mimi.decode(root.first(n), codes, active, count(n))
        for i, sound in enumerate(live):
            if sound in here:
                seen[sound].append(codes[i])
                heard[sound].append(out[i])
                at[sound] += 1
    assert min(len(codes) for codes in seen.values()) >= 7
    for row in range(4):
        codes, samples = alone(row)
        assert_same(torch.stack(seen[row]), codes[: len(seen[row])])
        assert_same(torch.stack(heard[row]), samples[: len(heard[row])])


@pytest.mark.parametrize("n", [2, 3, 5, 16])
def test_neither_place_nor_size_of_the_batch_changes_a_result(n: int) -> None:
    mimi = codec()
    for place in {0, n // 2, n - 1}:
        rows = [(i + 1) % 4 for i in range(n)]
        rows[place] = 0
        state = mimi.new_state(n)
        for i in range(6):
            codes = mimi.encode(state, frame_of(rows, i), everyone(n))
            samples = mimi.decode(state, codes, everyone(n), count(n))
            assert_same(codes[place], alone(0)[0][i])
            assert_same(samples[place], alone(0)[1][i])


def test_a_slot_without_a_frame_keeps_every_bit_whatever_it_is_given() -> None:
    mimi = codec()
    state = mimi.new_state(3)
    for i in range(3):
        mimi.decode(state, mimi.encode(state, frame_of([0, 1, 2], i), everyone(3)), everyone(3), count(3))
    before = copies(state)
    samples = frame_of([0, 1, 2], 3)
    samples[1] = torch.nan
    codes = mimi.encode(state, samples, torch.tensor([True, False, True]))
    after_encode = copies(state)
    mimi.decode(state, codes, torch.tensor([False, False, True]), count(3))
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor[1], before[name][1]), name
        changed = not torch.equal(after_encode[name][0], before[name][0])
        assert changed == name.startswith("encoder"), f"encoding touched {name}, or did not"
        assert torch.equal(tensor[0], after_encode[name][0]), "slot 0 did not speak"
    assert torch.isfinite(state.tensors()["decoder.kv"]).all()


def test_nan_stays_in_its_slot_and_a_reset_heals_it() -> None:
    mimi = codec()
    state = mimi.new_state(2)
    for i in range(4):
        frame = frame_of([1, 0], i)
        if i == 3:  # not where a reset slot writes first
            frame[0, 100] = torch.nan
        codes = mimi.encode(state, frame, everyone(2))
        assert_same(codes[1], alone(0)[0][i])
    assert not torch.isfinite(state.tensors()["encoder.kv"][0]).all()
    state.reset(0)
    for i in range(3):
        codes = mimi.encode(state, frame_of([2, 0], [i, i + 4]), everyone(2))
        assert_same(codes[0], alone(2)[0][i])
        assert_same(codes[1], alone(0)[0][i + 4])


# -- state ---------------------------------------------------------------------------------------------------------


def test_views_of_the_first_slots_share_memory_and_are_made_once() -> None:
    state = codec().new_state(8)
    assert state.first(8) is state
    assert state.first(4) is state.first(4)
    assert state.first(4).first(2) is state.first(2)
    addresses = {name: tensor.data_ptr() for name, tensor in state.tensors().items()}
    for n in (1, 2, 4):
        view = state.first(n)
        assert {name: tensor.data_ptr() for name, tensor in view.tensors().items()} == addresses
        assert all(len(tensor) == n for tensor in view.tensors().values())
        codec().encode(view, frame_of([0] * n, 0), everyone(n))
        codec().decode(view, torch.zeros(n, CODEBOOKS, dtype=torch.int64), everyone(n), count(n))
        assert {name: tensor.data_ptr() for name, tensor in view.tensors().items()} == addresses
    assert state.tensors()["encoder.position"].tolist() == [6, 4, 2, 2, 0, 0, 0, 0]
    assert not state.tensors()["encoder.buffers"][4:].any()
    for n in (0, 9):
        with pytest.raises(ValueError, match="8 slots"):
            state.first(n)
    with pytest.raises(IndexError):
        state.first(2).reset(2)


def test_a_slot_goes_on_from_its_snapshot_bit_for_bit_in_another_state() -> None:
    mimi = codec()
    here, there = mimi.new_state(2), mimi.new_state(4)
    for i in range(27):  # the ring has come round
        mimi.decode(here, mimi.encode(here, frame_of([1, 0], i), everyone(2)), everyone(2), count(2))
    saved = here.snapshot(1)
    mimi.encode(there, frame_of([3, 3, 3, 3], 0), everyone(4))
    here.reset(1)
    there.restore(2, saved)
    for i in range(27, FRAMES):
        codes = mimi.encode(there, frame_of([3, 2, 0, 1], i), everyone(4))
        samples = mimi.decode(there, codes, everyone(4), count(4))
        assert_same(codes[2], alone(0)[0][i])
        assert_same(samples[2], alone(0)[1][i])


def test_a_snapshot_that_does_not_fit_changes_nothing() -> None:
    state = codec().new_state(2)
    codec().encode(state, frame_of([0, 1], 0), everyone(2))
    before = copies(state)
    for other in (codec("float64").new_state(1).snapshot(0), {}):
        with pytest.raises(ValueError, match=r"snapshot has .* for"):
            state.restore(0, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_memory_per_slot_is_counted() -> None:
    state = codec().new_state(3)
    assert state_bytes(state) == 3 * codec().bytes_per_slot == 3 * state.bytes_per_slot
    assert state_bytes(state.first(2)) == 2 * codec().bytes_per_slot
    assert sum(row.numel() * row.element_size() for row in state.snapshot(0).values()) == codec().bytes_per_slot
    assert codec("bfloat16").bytes_per_slot - 16 == (codec().bytes_per_slot - 16) / 2  # but for the two positions


# -- what a step is made of ----------------------------------------------------------------------------------------


def test_a_step_can_be_recorded_and_replayed_on_other_data() -> None:
    """No value is read by the host, no shape or branch depends on one, all state stays where it is."""
    mimi, n = codec(codebooks=8), 2
    state = mimi.new_state(n)
    samples, active, used = torch.zeros(n, FRAME), everyone(n), count(n, 8)
    out_codes, out = torch.zeros(n, 8, dtype=torch.int64), torch.zeros(n, FRAME)

    def step() -> None:
        out_codes.copy_(mimi.encode(state, samples, active))
        out.copy_(mimi.decode(state, out_codes, active, used))

    replay = RecordedGraphs().capture(step)
    eager = mimi.new_state(n)
    for slot in range(n):
        state.reset(slot)
    for i in range(30):
        frame, on = frame_of([0, 3], i), torch.tensor([i % 3 != 1, i % 4 != 2])
        books = torch.tensor([1 + i % 8, 8 - i % 8])
        samples.copy_(frame)
        active.copy_(on)
        used.copy_(books)
        replay()
        codes = mimi.encode(eager, frame, on)
        assert torch.equal(out_codes[on], codes[on])
        assert torch.equal(out[on], mimi.decode(eager, codes, on, books)[on])
    assert all(torch.equal(tensor, eager.tensors()[name]) for name, tensor in state.tensors().items())


def test_each_slot_uses_its_own_number_of_codebooks() -> None:
    mimi, codes = codec("float64"), whole("float64").codes
    n = CODEBOOKS
    state = mimi.new_state(n)
    used = torch.arange(1, n + 1)
    got = torch.cat([mimi.decode(state, codes[:1, i].expand(n, -1), everyone(n), used) for i in range(3)], 1)
    for k in range(1, n + 1):
        want = mimi.model.decode(codes[:1, :3, :k].transpose(1, 2).contiguous())[0, 0]
        assert (got[k - 1] - want).abs().max() < 1e-7, k
    assert (got[0] - got[n - 1]).abs().max() > 0.01


def test_codes_that_name_no_entry_do_no_harm() -> None:
    mimi = codec()
    codes = torch.tensor([[-2] * CODEBOOKS, [64] * CODEBOOKS, [-1] * CODEBOOKS])
    out = mimi.decode(mimi.new_state(3), codes, everyone(3), torch.tensor([32, 99, 0]))
    clamped = mimi.decode(mimi.new_state(3), codes.clamp(0, 63), everyone(3), torch.tensor([32, 32, 1]))
    assert torch.equal(out, clamped)


def test_wrong_shapes_are_said_with_both_shapes() -> None:
    mimi = codec()
    state = mimi.new_state(2)
    codes = torch.zeros(2, CODEBOOKS, dtype=torch.int64)
    for samples in (torch.zeros(2, 960), torch.zeros(1, FRAME), torch.zeros(2, 0), torch.zeros(2, 1, FRAME)):
        with pytest.raises(ValueError, match=r"samples are .* not \[2, a multiple of 1920\]"):
            mimi.encode(state, samples, everyone(2))
    with pytest.raises(ValueError, match=r"codes are .* not \[2, frames, 32\]"):
        mimi.decode(state, codes[:, :8], everyone(2), count(2))
    with pytest.raises(ValueError, match="n_codebooks"):
        mimi.decode(state, codes, everyone(2), count(1))
    with pytest.raises(ValueError, match=r"not bool\[2\]"):
        mimi.encode(state, frame_of([0, 1], 0), torch.ones(2))
    with pytest.raises(ValueError, match="another codec's"):
        load({"config": {"transformer": {"num_layers": 1}}, "codebooks": 1}).encode(
            state, frame_of([0, 1], 0), everyone(2)
        )


def test_bfloat16_networks_keep_the_sound() -> None:
    half, full = codec("bfloat16"), whole("float32")
    state = half.new_state(4)
    assert state.tensors()["encoder.kv"].dtype == torch.bfloat16
    out = half.decode_frames(state, full.codes, everyone(4), count(4))
    noise = (out - full.samples).pow(2).mean()
    assert out.dtype == torch.float32
    assert 10 * torch.log10(full.samples.pow(2).mean() / noise) > 25  # dB
    codes = half.encode_frames(state, sounds(), everyone(4))
    assert (codes[..., 0] == full.codes[..., 0]).float().mean() > 0.8


def test_the_real_size_streams_as_the_package_computes_the_whole() -> None:
    mimi = load({"codebooks": 8, "seed": 2})
    assert (mimi.info.sample_rate_hz, mimi.info.frame_samples, mimi.info.codebook_size) == (24_000, 1920, 2048)
    assert mimi.bytes_per_slot / 2**20 == pytest.approx(16.1, abs=0.1)
    sound = sounds()[:1, : 3 * FRAME]
    mimi.model.set_num_codebooks(8)
    codes = mimi.model.encode(sound[:, None])
    want = mimi.model.decode(codes)[0, 0]
    state = mimi.new_state(2)
    for i in range(3):
        frame = slice(i * FRAME, (i + 1) * FRAME)
        got = mimi.encode(state, sound[:, frame].expand(2, -1), everyone(2))
        out = mimi.decode(state, codes[..., i].expand(2, -1), everyone(2), count(2, 8))
        assert torch.equal(got, codes[..., i].expand(2, -1))
        assert (out - want[frame]).abs().max() < 1e-6
