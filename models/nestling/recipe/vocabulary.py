"""Stage 0: a CLIP-style byte-pair tokenizer, learned from the captions themselves."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from scenes import caption, random_scene

MERGES = 500
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def learn_merges() -> list[tuple[str, str]]:
    """The byte pairs worth joining, most frequent first, over 20,000 captions."""
    rng = random.Random(0)
    captions = [caption(random_scene(rng, None), rng)[0] for _ in range(20_000)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # CLIP splits words off before bytes; whitespace and punctuation do the same for captions.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), tokenizer.pre_tokenizer])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build(folder: Path) -> CLIPTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` to a folder and read them back as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=77,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
