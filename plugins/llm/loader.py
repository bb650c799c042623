"""Loads a model folder into the native runtime. Imported in the worker process only."""

from __future__ import annotations

import math
import time

import torch

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.decoder_loader import DecoderUse, LoadedDecoder, load_decoder
from sixfold.plugins.llm.draft_model import DraftModelProposer
from sixfold.plugins.llm.eagle3_loader import eagle3_proposer, load_eagle3
from sixfold.plugins.llm.facts import ModelFacts
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.image_placer import ImagePlacer
from sixfold.plugins.llm.kv_announcer import announce
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.kv_fingerprint import fingerprint
from sixfold.plugins.llm.kv_transfer import KvTransfer
from sixfold.plugins.llm.lora_options import lora_details
from sixfold.plugins.llm.lora_table import AdapterTable
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.prefill_ranks import check_degrees, divide_prefill
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.prepare import Preparer
from sixfold.plugins.llm.speculation import Proposer, make_speculator
from sixfold.plugins.llm.stock_model import read_files
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.token_describer import TokenDescriber
from sixfold.plugins.llm.vision import VisionTower
from sixfold.plugins.llm.vision_loader import LoadedVision


def load(context: LoadContext) -> TransformersModel:
    """Loads a decoder, and the smaller one that guesses for it if there is one.

    Raises:
        ConfigError: The model or an option does not fit the native runtime; says why.
        SourceError: The folder's files are not a loadable model.
    """
    options = context.options
    assert isinstance(options, TransformersOptions)
    torch.set_num_threads(context.num_threads)
    device = torch.device(context.device)
    context.report(0.05, "reading the tokenizer")
    check_degrees(context, options)
    codec: TextCodec = read_files(lambda: TextCodec.load(context.path), "tokenizer")
    eagle3 = load_eagle3(context, options)
    use = DecoderUse(
        quantization=context.quantization,
        reads_images=options.images,
        may_adapt=options.lora is not None,
        fuses=context.parallel is None,
        guessing_layers=() if eagle3 is None else (eagle3.shape,),
    )
    loaded = load_decoder(
        context.path, codec, options, use, device=device, model_name=context.model_name, report=context.report
    )
    if loaded.vision is not None and not codec.has_chat_template:
        codec.use_template(loaded.vision.processor.chat_template)
    _keep_on_host(context, options, loaded.decoder.cache)
    divide_prefill(context, options, loaded.decoder, vocab_size=loaded.facts.vocab_size)
    adapters = _adapters(context, options, loaded.decoder)
    draft = _load_draft(context, options, loaded, codec)
    guesser = (
        _proposer(draft, loaded.facts) if eagle3 is None else eagle3_proposer(eagle3, loaded.decoder, loaded.facts)
    )
    helpers = [helper for helper in (draft, eagle3, adapters) if helper is not None]
    return _assemble(context, options, loaded, codec, adapters, guesser, helper_bytes=sum(h.num_bytes for h in helpers))


def _assemble(
    context: LoadContext,
    options: TransformersOptions,
    loaded: LoadedDecoder,
    codec: TextCodec,
    adapters: AdapterTable | None,
    guesser: Proposer | None,
    *,
    helper_bytes: int,
) -> TransformersModel:
    """Puts the loaded parts together; ``helper_bytes`` is the memory of those beside the decoder."""
    facts, vision, cache = loaded.facts, loaded.vision, loaded.decoder.cache
    placer = None if vision is None else _image_placer(vision, options)
    events = None if options.kv_events is None else announce(options.kv_events, cache)
    transfer = _transfer(context, options, cache, loaded.quantization)
    conversations = _conversations(options, loaded, codec)
    max_model_len = _max_model_len(facts, options, cache, context.model_name)
    info = ModelInfo(
        max_model_len=max_model_len,
        parameters=loaded.num_parameters,
        memory_bytes=loaded.num_bytes + helper_bytes,
        details={
            **_details(loaded, codec, placer),
            **conversations.details,
            **({} if events is None else events.endpoints),
            **({} if transfer is None else transfer.details),
            **lora_details(options.lora),
        },
    )
    preparer = Preparer(
        codec=codec,
        conversations=conversations,
        defaults=facts.defaults,
        eos_ids=facts.eos_ids,
        vocab_size=facts.vocab_size,
        max_model_len=max_model_len,
        prefix=PrefixSharing(mode=options.prefix_cache, block_size=options.block_size_tokens),
        images=placer,
        adapters=adapters,
    )
    return TransformersModel(
        decoder=loaded.decoder,
        preparer=preparer,
        describer=TokenDescriber(codec),
        info=info,
        masks=GrammarMasks(vocab_size=facts.vocab_size, num_mask_tokens=max(facts.vocab_size, codec.num_tokens)),
        speculator=make_speculator(options.speculation, guesser),
        events=events,
        transfer=transfer,
        vision=None if vision is None else _vision_tower(vision, context),
        tokens_per_image=0 if vision is None else vision.processor.typical_tokens(),
        adapters=adapters,
        begins_steps=context.device != "cpu" if options.steps_ahead is None else options.steps_ahead,
    )


def _conversations(options: TransformersOptions, loaded: LoadedDecoder, codec: TextCodec) -> ConversationWriter:
    return ConversationWriter.of_model(
        codec,
        tool_call_parser=options.tool_call_parser,
        reasoning_parser=options.reasoning_parser,
        vocab_size=loaded.facts.vocab_size,
        eos_ids=loaded.facts.eos_ids,
        image_token=None if loaded.vision is None else loaded.vision.processor.image_token,
    )


def _details(
    loaded: LoadedDecoder, codec: TextCodec, placer: ImagePlacer | None
) -> dict[str, str | int | float | bool]:
    """What users are told of a decoder."""
    cache = loaded.decoder.cache
    return {
        "dtype": str(cache.dtype).removeprefix("torch."),
        "kv_cache_tokens": cache.num_tokens,
        "vocab_size": loaded.facts.vocab_size,
        "has_chat_template": codec.has_chat_template,
        **({"quantization": loaded.quantization} if loaded.quantization else {}),
        "images": placer is not None,
        **({} if placer is None else {"max_images": placer.max_images}),
    }


def _vision_tower(vision: LoadedVision, context: LoadContext) -> VisionTower:
    """Beside the steps, so with half of their threads: all of them would get into each other's way."""
    return VisionTower(vision.encoder, torch.device(context.device), num_threads=max(1, context.num_threads // 2))


def _image_placer(vision: LoadedVision, options: TransformersOptions) -> ImagePlacer:
    return ImagePlacer(
        vision.processor,
        image_token_id=vision.image_token_id,
        max_images=options.max_images,
        max_pixels=options.max_image_pixels,
        rope_index=vision.rope_index,
    )


def _keep_on_host(context: LoadContext, options: TransformersOptions, cache: KvCache) -> None:
    if options.kv_offload_bytes is None:
        return
    place = f"models.{context.model_name}.options.kv_offload_bytes"
    if context.device == "cpu":
        raise ConfigError(f"{place}: the cache of this model is in host memory already. Raise kv_cache_bytes instead.")
    if options.prefix_cache == "off":
        raise ConfigError(f"{place}: nothing is found again without the prefix cache. Set prefix_cache, or remove it.")
    cache.keep_on_host(options.kv_offload_bytes).measure()


def _adapters(context: LoadContext, options: TransformersOptions, decoder: Decoder) -> AdapterTable | None:
    """The table of the model's adapters, filled."""
    if options.lora is None or decoder.router is None:
        return None
    table = AdapterTable(
        decoder.router.shapes,
        dtype=decoder.cache.dtype,
        device=decoder.device,
        max_adapters=options.lora.max_adapters,
        max_rank=options.lora.max_rank,
    )
    try:
        table.follow(options.lora)
    except ConfigError as error:
        raise ConfigError(f"models.{context.model_name}.options.lora: {error}") from error
    return table


def _transfer(
    context: LoadContext, options: TransformersOptions, cache: KvCache, quantization: str
) -> KvTransfer | None:
    if options.kv_transfer is None:
        return None
    if options.prefix_cache == "off":
        raise ConfigError(
            f"models.{context.model_name}.options.kv_transfer: it needs the prefix cache, through which prompts are found. "
            "Set prefix_cache to shared or per_key, or remove kv_transfer."
        )
    return KvTransfer(
        options.kv_transfer,
        cache,
        fingerprint=fingerprint(context.path, cache, quantization=quantization),
        clock=time.monotonic,
    )


def _proposer(draft: LoadedDecoder | None, facts: ModelFacts) -> DraftModelProposer | None:
    if draft is None:
        return None
    return DraftModelProposer(draft.decoder, vocab_size=facts.vocab_size, max_model_len=draft.facts.max_model_len)


def _load_draft(
    context: LoadContext, options: TransformersOptions, main: LoadedDecoder, codec: TextCodec
) -> LoadedDecoder | None:
    """The smaller model, with a cache for as many tokens as the other has."""
    source = options.speculation.source
    if source is None or options.speculation.method != "draft":
        return None
    draft_codec: TextCodec = read_files(lambda: TextCodec.load(source.local_path), "draft tokenizer")
    vocab_size = main.facts.vocab_size
    if any(codec.token_bytes(i) != draft_codec.token_bytes(i) for i in range(vocab_size)):
        raise ConfigError(
            f"models.{context.model_name}.options.speculation.source: its tokens are not those of the model. Name a "
            "smaller model of the same family."
        )
    draft = load_decoder(
        source.local_path,
        draft_codec,
        options,
        DecoderUse(num_blocks=main.decoder.cache.pool.num_blocks),
        device=main.decoder.device,
        model_name=f"{context.model_name}.options.speculation",
        report=lambda fraction, _what: context.report(0.7 + fraction / 4, "reading the draft model"),
    )
    if draft.facts.vocab_size < vocab_size:
        raise ConfigError(
            f"models.{context.model_name}.options.speculation.source: it knows {draft.facts.vocab_size} tokens, the model "
            f"{vocab_size}. Name a smaller model of the same family."
        )
    return draft


def _max_model_len(facts: ModelFacts, options: TransformersOptions, cache: KvCache, model_name: str) -> int:
    wanted = options.max_model_len
    if wanted is not None and wanted > facts.max_model_len:
        raise ConfigError(
            f"models.{model_name}.options.max_model_len: {wanted} exceeds the model's own limit of {facts.max_model_len}."
        )
    if wanted is not None and wanted > cache.num_tokens:
        token_bytes = math.ceil(cache.num_bytes / cache.num_tokens)
        raise ConfigError(
            f"models.{model_name}.options.max_model_len: {wanted} tokens do not fit the cache of {cache.num_tokens}. "
            f"Set options.kv_cache_bytes to at least {wanted * token_bytes}."
        )
    return min(wanted or facts.max_model_len, cache.num_tokens)
