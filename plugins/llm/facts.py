"""What a model's own config files say that the runtime needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sixfold.core.family import ModelFiles
from sixfold.plugins.llm.sampling import SamplingDefaults
from sixfold.plugins.llm.text_codec import TextCodec

# These rescale all positions by the longest one of the batch, so a sequence would depend on its neighbours.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the model's configs say."""

    num_layers: int
    vocab_size: int
    max_model_len: int
    eos_ids: tuple[int, ...]
    defaults: SamplingDefaults


def read_facts(path: Path, model: Any, codec: TextCodec) -> ModelFacts:
    """Collects the facts.

    Args:
        path: The model's folder.
        model: The loaded transformers model.
        codec: Its tokenizer.
    """
    config = model.config.get_text_config()
    eos: Any = model.generation_config.eos_token_id
    declared = cast("list[int | None]", eos if isinstance(eos, list) else [eos])
    limits = [getattr(config, "max_position_embeddings", None), codec.max_tokens]
    max_model_len = min((int(limit) for limit in limits if limit), default=2048)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for kind in (rope, *rope.values()):  # flat, or one per type of layer
        if not isinstance(kind, dict):
            continue
        kind = cast("dict[str, Any]", kind)
        if kind.get("rope_type") in _BATCH_DEPENDENT_ROPE:
            max_model_len = min(max_model_len, int(kind.get("original_max_position_embeddings", max_model_len)))

    return ModelFacts(
        num_layers=config.num_hidden_layers,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        max_model_len=max_model_len,
        eos_ids=tuple(sorted({int(i) for i in (*declared, codec.eos_id) if i is not None})),
        defaults=_sampling_defaults(path),
    )


def _sampling_defaults(path: Path) -> SamplingDefaults:
    # The file itself: what it leaves out must not become a default of transformers' own.
    declared = ModelFiles(path).json("generation_config.json")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return SamplingDefaults(**{name: declared[name] for name in names if declared.get(name) is not None})
