"""Bit rate against quality: what real speech loses when codebooks are left away.

    duplex bench bitrate [--weights FILE|mimi] [--codebooks 1,2,4,8,16,32] [--seconds N] [--json FILE] [--plot FILE]
                         [--save FILE]

Each recording is encoded once with all codebooks, and decoded once in a batch in which every row uses another number of
them: the way in which a call's bit rate changes while it runs (``SlotCodec.decode``). Recordings are the turns of the
``reporting`` split (docs/stimuli.md), people's voices at −20 dBFS.

``--weights`` is a Mimi's safetensors file, the name ``mimi`` (``duplex models pull mimi``, 385 MB), or a file that
``--save`` wrote. **Without it, it is not Mimi that is measured**: a small codec of our own, a lapped transform and the
residual quantiser of ``codecs/rvq.py``, learns its codebooks from the ``tuning`` split first, which takes half a
minute to a minute. It shows how quality falls with codebooks, not how good Mimi is. Mimi itself takes some minutes on
a CPU; ``--seconds 20`` will do for a first look.

Two distances, as medians over the recordings, with the 10th and 90th percentile: SI-SDR compares waveforms (right for
the transform codec; poor for Mimi at any rate, since it was trained to sound right), log-mel distance what is heard
(for both). See ``benchmarks/bitrate_quality.py``. What G.711, the telephone's codec at 64 kbit/s, makes of the same
recordings is there to compare with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duplex.benchmarks.bitrate_quality import log_mel_distance_db, si_sdr_db
from duplex.benchmarks.server_process import machine
from duplex.benchmarks.stimuli import Stimulus, load_source
from duplex.benchmarks.stimuli_cuts import CUTS, Split
from duplex.benchmarks.stimuli_packages import ASTERISK
from duplex.bitrate import bits_per_second
from duplex.codec import SlotCodec
from duplex.codecs import g711
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples

CODEBOOKS = (1, 2, 4, 8, 16, 32)
MIMI_WEIGHTS = "tokenizer-e351c8d8-checkpoint125.safetensors"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over the recordings."""

    p10: float
    p50: float
    p90: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(*(float(value) for value in np.percentile(values, [10, 50, 90])))


@dataclass(frozen=True, slots=True)
class Row:
    """One number of codebooks (0: another codec). ``bits_per_second``: of the codes, without framing."""

    n_codebooks: int
    bits_per_second: float
    si_sdr_db: Spread
    log_mel_db: Spread


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one codebook, over all recordings: share of its entries that occurred, and exp of the codes' entropy."""

    used_share: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Result:
    codec: str
    what: str
    rows: tuple[Row, ...]
    g711: Row
    usage: tuple[Usage, ...]
    n: int
    speakers: int
    seconds: float


def measure(codec: SlotCodec, what: str, stimuli: Sequence[Stimulus], codebooks: Sequence[int], note: Note) -> Result:
    """``codebooks`` beyond what the codec has are left out. Raises ``DuplexError`` if there is nothing to measure."""
    from duplex.codecs.rvq_usage import UsageCounter

    info = codec.info
    counts = sorted({k for k in codebooks if 1 <= k <= info.codebooks})
    if not counts or not stimuli:
        raise DuplexError(
            f"Nothing to measure: {len(stimuli)} recordings, and {info.codebooks} codebooks to choose from."
        )
    counter = UsageCounter(info.codebooks, info.codebook_size)
    figures: dict[int, list[tuple[float, float]]] = {k: [] for k in counts}
    for index, stimulus in enumerate(stimuli, 1):
        note(f"{index}/{len(stimuli)}  {stimulus.name}")
        for k, decoded in zip(counts, _decoded(codec, stimulus.samples, counts, counter), strict=True):
            figures[k].append((si_sdr_db(stimulus.samples, decoded), log_mel_distance_db(stimulus.samples, decoded)))
    frame_rate_hz = info.sample_rate_hz / info.frame_samples
    rows = tuple(
        Row(
            k,
            bits_per_second(k, frame_rate_hz, math.log2(info.codebook_size)),
            Spread.of([sdr for sdr, _ in figures[k]]),
            Spread.of([mel for _, mel in figures[k]]),
        )
        for k in counts
    )
    return Result(
        info.name,
        what,
        rows,
        _g711_row(stimuli),
        tuple(Usage(usage.used_share, usage.perplexity) for usage in counter.usage()),
        len(stimuli),
        len({stimulus.speaker for stimulus in stimuli}),
        sum(len(stimulus.samples) for stimulus in stimuli) / info.sample_rate_hz,
    )


def _g711_row(stimuli: Sequence[Stimulus]) -> Row:
    """The telephone: 8 kHz, µ-law."""
    import soxr

    figures = []
    for stimulus in stimuli:
        narrow = soxr.resample(stimulus.samples, SAMPLE_RATE_HZ, g711.RATE_HZ)
        wide = soxr.resample(g711.decode_ulaw(g711.encode_ulaw(narrow)), g711.RATE_HZ, SAMPLE_RATE_HZ)
        heard = np.zeros_like(stimulus.samples)
        heard[: len(wide)] = wide[: len(heard)]
        figures.append((si_sdr_db(stimulus.samples, heard), log_mel_distance_db(stimulus.samples, heard)))
    sdr, mel = zip(*figures, strict=True)
    return Row(0, 8.0 * g711.RATE_HZ, Spread.of(sdr), Spread.of(mel))


def _decoded(codec: SlotCodec, samples: Samples, counts: Sequence[int], counter: Any) -> list[Samples]:
    """float32[n] for each of ``counts``, from one encoding; the codec's delay is taken out."""
    import torch

    frame, delay = codec.info.frame_samples, int(getattr(codec, "delay_samples", 0))
    n_frames = -(-(len(samples) + delay) // frame)
    padded = torch.zeros(n_frames * frame)
    padded[: len(samples)] = torch.from_numpy(samples)
    one, all_rows = torch.ones(1, dtype=torch.bool), torch.ones(len(counts), dtype=torch.bool)
    encoder, decoder = codec.new_state(1), codec.new_state(len(counts))
    heard = []
    for piece in padded.view(n_frames, frame):
        codes = codec.encode(encoder, piece[None], one)
        counter.add(codes[:, :, None])
        heard.append(codec.decode(decoder, codes.repeat(len(counts), 1), all_rows, torch.tensor(counts)))
    whole = torch.cat(heard, dim=1)[:, delay : delay + len(samples)]
    return [row.numpy() for row in whole]


def turns(split: Split, note: Note, uses: Sequence[str] | None = ("turn",)) -> list[Stimulus]:
    """Recordings of a split that are the same on every machine; ``uses``: which (``None``: all)."""
    found = [
        stimulus
        for source in CUTS[split]
        if source != ASTERISK
        for stimulus in load_source(split, source, note)
        if uses is None or stimulus.use in uses
    ]
    if not found:
        raise DuplexError("No recordings of human speech could be had. Check the network, then run this again.")
    return found


def codec_for(weights: str | None, codebooks: int, save: Path | None, note: Note) -> tuple[SlotCodec, str]:
    """The codec to measure, and in words what it is. Raises ``DuplexError`` with what to run."""
    import torch

    from duplex.codecs import rvq_mdct

    if weights is None:
        learned = turns("tuning", note, None)
        seconds = sum(len(stimulus.samples) for stimulus in learned) / SAMPLE_RATE_HZ
        note(f"Learning codebooks from {seconds:.0f} s of the tuning recordings …")
        options = rvq_mdct.MdctTraining(codebooks=max(1, min(codebooks, 64)))
        codec = rvq_mdct.train([torch.from_numpy(stimulus.samples) for stimulus in learned], options)
        if save is not None:
            codec.save(save)
        return codec, f"our transform codec, not Mimi: its codebooks learned from {seconds:.0f} s of other speakers"
    if weights == "mimi":
        from duplex.weights import ModelStore

        path = ModelStore().path("mimi") / MIMI_WEIGHTS
    else:
        path = Path(weights)
        if not path.is_file():
            raise DuplexError(
                f"There is no file {path}. Mimi's weights are {MIMI_WEIGHTS} (385 MB), in any of Kyutai's Moshi "
                "repositories on the Hugging Face hub; or run: duplex models pull mimi, and give --weights mimi"
            )
        if _format_of(path) == rvq_mdct.FORMAT:
            return rvq_mdct.RvqMdctCodec.read(path), f"our transform codec, not Mimi: codebooks from {path.name}"
    from duplex.codecs import mimi

    return mimi.load({"weights": path, "codebooks": codebooks}), f"Mimi, {path.name}"


def _format_of(path: Path) -> str:
    """The format's name in a safetensors file's header; empty if there is none, or no such file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 1 << 24)))
            return str(header["__metadata__"]["format"])
        except (ValueError, KeyError, TypeError):
            return ""


def report(result: Result) -> Mapping[str, Any]:
    return {"benchmark": "bitrate", "machine": machine(), **asdict(result)}


def show(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"duplex bench bitrate: {result.what}", title_justify="left")
    for name in ("K", "kbit/s", "SI-SDR", "p10…p90", "log-mel", "p10…p90", "used", "perplexity"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in (*result.rows, result.g711):
        cells = [str(row.n_codebooks or "G.711"), f"{row.bits_per_second / 1000.0:.3g}"]
        for spread in (row.si_sdr_db, row.log_mel_db):
            cells += [f"{spread.p50:.1f}", f"{spread.p10:.1f}…{spread.p90:.1f}"]
        if row.n_codebooks:
            usage = result.usage[row.n_codebooks - 1]
            cells += [f"{100.0 * usage.used_share:.0f} %", f"{usage.perplexity:.0f}"]
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"K codebooks decoded; n = {result.n} turns by {result.speakers} speakers, {result.seconds:.0f} s. "
        "SI-SDR in dB, more is better; log-mel distance (80 bands to 8 kHz) in dB, less is. “used” and "
        "perplexity: of the K-th codebook."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="duplex bench bitrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", metavar="FILE|mimi", help="a Mimi's safetensors file, 'mimi', or a file of --save")
    parser.add_argument("--codebooks", type=_numbers, default=CODEBOOKS, metavar="K,…", help="how many to decode with")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of recordings to measure; default: all, 68 s")
    parser.add_argument("--threads", type=int, default=1, help="torch's, on the CPU (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG of the two curves")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the learned codebooks; only without --weights")
    args = parser.parse_args(argv)
    if args.save is not None and args.weights is not None:
        parser.error("--save keeps codebooks that are learned here; with --weights there are none")
    try:
        import torch
    except ImportError as error:
        from duplex.errors import MissingDependencyError

        raise MissingDependencyError("torch", "moshi") from error
    torch.set_num_threads(args.threads)

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    codec, what = codec_for(args.weights, max(args.codebooks), args.save, note)
    stimuli, seconds = [], 0.0
    for stimulus in turns("reporting", note):
        if seconds >= args.seconds:
            break
        stimuli.append(stimulus)
        seconds += len(stimulus.samples) / codec.info.sample_rate_hz
    result = measure(codec, what, stimuli, args.codebooks, note)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(report(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if args.plot is not None:
        from duplex.benchmarks.bitrate_plot import save_curves

        save_curves(result, args.plot)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if not all(1 <= number <= 64 for number in numbers):
        raise argparse.ArgumentTypeError("numbers of codebooks are 1 to 64")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
