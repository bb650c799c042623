"""Builds the two tokenizers: stock classes over a closed vocabulary, where every known word is one token."""

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from examples.train_tiny import clips, scenes

CLIP_TOKENS = 32
T5_TOKENS = 128


def vocabulary() -> list[str]:
    """Returns every word that a training prompt can hold, sorted."""
    texts = [
        "a an one of on the background moving standing still to left right up down",
        *scenes.COLOURS,
        *scenes.SHAPES,
        *scenes.PLURALS.values(),
        *scenes.COUNT_WORDS.values(),
        *scenes.POSITIONS,
        *scenes.PREFIXES,
        *clips.PREFIXES,
    ]
    for table in (scenes.SIZE_WORDS, scenes.RELATION_WORDS, clips.SPEED_WORDS, clips.SHAPE_WORDS):
        texts += [word for words in table.values() for word in words]
    return sorted({word for text in texts for word in text.split()})


def build_clip_tokenizer() -> CLIPTokenizer:
    """Byte pairs learnt on the closed vocabulary: known words become one token, others are spelled, none is unknown."""
    # The 256 letters stand for bytes, as in CLIP: no text, in whatever script, can fall outside the vocabulary.
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    learner.train_from_iterator(vocabulary(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted({*learnt["vocab"], *(letter + "</w>" for letter in letters)}, key=lambda p: (len(p), p))
    vocab = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    merges: Any = [tuple(pair) for pair in learnt["merges"]]  # the class takes pairs, though it is annotated otherwise
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def build_t5_tokenizer() -> T5Tokenizer:
    """One piece per known word (in lower case and with a capital letter); every other word is ``<unk>``."""
    words = vocabulary()
    pieces = ["\u2581" + word for word in [*words, *(word.capitalize() for word in words)]]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=T5_TOKENS)
