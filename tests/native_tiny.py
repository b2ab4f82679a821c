"""A tiny model of the Moshi family: everything the 7B has (two transformers, delays, 4 + 4 audio streams, a codec with
32 codebooks), at 2 ms a step. Random weights of a seed; its greedy tokens vary with what it hears.

    lm = tiny_lm()          # moshi.models.LMModel, float32, eval
    mimi = tiny_mimi()      # moshi.models.MimiModel, float32, eval
    tiny_checkpoint(path)   # a directory as a repository of the family is: config.json, safetensors, tokenizer

They are built anew at each call (0.1 s): build once per session or module if you only read them.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")

import copy
import io
import json
from pathlib import Path

import torch

TEXT_CARD = 320  # room for a tokenizer with the 256 byte pieces
CARD = 64
DEP_Q, USER_Q = 4, 4


def tiny_lm_kwargs() -> dict[str, Any]:
    """Arguments of ``LMModel``; also the body of a ``config.json``."""
    from moshi.models import loaders

    return copy.deepcopy(loaders._lm_kwargs) | {
        "dim": 64,
        "text_card": TEXT_CARD,
        "n_q": DEP_Q + USER_Q,
        "dep_q": DEP_Q,
        "card": CARD,
        "num_heads": 4,
        "num_layers": 2,
        "context": 100,
        "depformer_dim": 32,
        "depformer_dim_feedforward": 64,
        "depformer_num_heads": 2,
        "depformer_num_layers": 1,
        "depformer_context": DEP_Q,
        "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
    }


def tiny_lm(seed: int = 0, **changes: Any) -> Any:
    """A ``moshi.models.LMModel``; ``changes`` go over :func:`tiny_lm_kwargs`."""
    from duplex.thinker_talker.native.checkpoints.random_weights import random_lm

    return random_lm(tiny_lm_kwargs() | changes, seed, torch.device("cpu"), torch.float32)


def tiny_mimi_config() -> dict[str, Any]:
    """A ``mimi_config`` of the package."""
    from moshi.models import loaders

    config = copy.deepcopy(loaders._mimi_config)
    config["seanet"] |= {"dimension": 32, "n_filters": 4}
    config["quantizer"] |= {"dimension": 16, "n_q": 32, "bins": CARD, "input_dimension": 32, "output_dimension": 32}
    config["transformer"] |= {
        "d_model": 32,
        "num_heads": 2,
        "num_layers": 1,
        "dim_feedforward": 64,
        "input_dimension": 32,
        "output_dimensions": [32],
        "context": 50,
    }
    return config


def tiny_mimi(seed: int = 0, codebooks: int = DEP_Q) -> Any:
    """A ``moshi.models.MimiModel`` that encodes and decodes ``codebooks`` of its 32."""
    from duplex.codecs.mimi_weights import MimiOptions, build

    model = build(MimiOptions(config=tiny_mimi_config(), seed=seed, codebooks=codebooks))
    model.set_num_codebooks(codebooks)
    return model


def tiny_tokenizer() -> bytes:
    """A SentencePiece model of :data:`TEXT_CARD` pieces, laid out as the family's: 0 unknown (end of padding), 1 and 2
    begin and end, 3 padding; then the 256 bytes, then pieces of a few English words."""
    import sentencepiece

    words = (
        "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew for the evil queen and jack"
    )
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words, "hello there <system>", *words.split()] * 20),
        model_writer=out,
        vocab_size=TEXT_CARD,
        model_type="bpe",
        byte_fallback=True,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def tiny_checkpoint(directory: Path, seed: int = 0, **config: Any) -> Path:
    """Writes what :func:`tiny_lm` and :func:`tiny_mimi` give as a published model; ``config`` goes over its
    ``config.json``. Returns ``directory``, which ``--weights`` takes."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    names = {"moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "text.model"}
    table = tiny_lm_kwargs() | names | {"mimi_config_name": "mimi.json", "model_type": "moshi"} | config
    (directory / "config.json").write_text(json.dumps(table))
    (directory / "mimi.json").write_text(json.dumps(tiny_mimi_config()))
    (directory / "text.model").write_bytes(tiny_tokenizer())
    lm = tiny_lm(seed, **({"dep_q": table["dep_q"]} if "dep_q" in config else {}))
    for name, model in (("model", lm), ("mimi", tiny_mimi(seed))):
        save_file(
            {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, directory / f"{name}.safetensors"
        )
    return directory
