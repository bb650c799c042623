"""Puts an EAGLE-3 head beside the model that it guesses for. Imported in the worker process only."""

from __future__ import annotations

from typing import Any, cast

from sixfold.core.family import LoadContext, ModelFiles
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.eagle3_files import Eagle3Files, read_eagle3
from sixfold.plugins.llm.eagle3_head import Eagle3Head
from sixfold.plugins.llm.eagle3_proposer import Eagle3Proposer
from sixfold.plugins.llm.facts import ModelFacts
from sixfold.plugins.llm.options import TransformersOptions


def load_eagle3(context: LoadContext, options: TransformersOptions) -> Eagle3Files | None:
    """The files of the head that the options name; None if they name none.

    They are read before the model's weights: its cache has a layer for the head, and what is wrong shows sooner.

    Raises:
        ConfigError: The head does not fit the model.
    """
    source = options.speculation.source
    if source is None or options.speculation.method != "eagle3":
        return None
    config = ModelFiles(context.path).json("config.json")
    text = cast("dict[str, Any]", config.get("text_config") or config)
    place = f"models.{context.model_name}.options.speculation.source"
    files = read_eagle3(
        source.local_path,
        hidden_size=int(text.get("hidden_size") or text.get("n_embd") or 0),
        vocab_size=int(text.get("vocab_size") or 0),
        place=place,
    )
    files.tap_places(int(text.get("num_hidden_layers") or text.get("n_layer") or 0), place)
    return files


def eagle3_proposer(files: Eagle3Files, decoder: Decoder, facts: ModelFacts) -> Eagle3Proposer:
    """The head over a loaded model, whose cache has a layer for it."""
    cache = decoder.cache
    head = Eagle3Head(
        files,
        decoder.embedding,
        layer_idx=cache.num_model_layers,
        vocab_size=facts.vocab_size,
        dtype=cache.dtype,
        device=decoder.device,
    )
    taps = decoder.tap(files.tap_places(cache.num_model_layers, "speculation.source"))
    return Eagle3Proposer(decoder, head.eval(), taps)
