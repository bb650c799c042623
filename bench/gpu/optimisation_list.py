"""Every GPU optimisation of the code: where it is, how it is switched, when it may help. `optimisations.py` goes along it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Optimisation:
    """One of them.

    Attributes:
        name: As the table says it.
        modality: Whose.
        when: The constraint under which it helps.
        place: Its code and its switch. Where the product has none, the bench turns it off from outside ("bench").
        measured_by: The command.
        is_in_code: Whether the product has it; else it was measured and left out.
    """

    name: str
    modality: str
    when: str
    place: str
    measured_by: str
    is_in_code: bool = True


IMAGE = "alone.py image, alone.py flux"
VIDEO, EMBED, SPEECH, NATIVE = (f"alone.py {each}" for each in ("video", "embedding", "tts", "native"))

OPTIMISATIONS: dict[str, Optimisation] = {
    "image.graphs": Optimisation(
        "denoiser's steps replayed as CUDA graphs",
        "image",
        "the host starts kernels slower than the card computes them: few rows, small pictures",
        "core/rendezvous/graphs.py; cuda_graph_rows",
        IMAGE,
    ),
    "image.compiled": Optimisation(
        "blocks compiled, any number of rows",
        "image",
        "the card is the limit, or steps are replayed; alone on a slow host its checks cost more than it gives",
        "plugins/image/loader.py; compile",
        IMAGE,
    ),
    "image.fp8": Optimisation(
        "fp8 products with the skip list",
        "image",
        "large products (transformers of billions), compiled: else rounding the inputs costs what is won; pictures change",
        "core/runtime/fp8_linear.py; quantization",
        IMAGE,
    ),
    "image.row-cache": Optimisation(
        "first-block cache by row",
        "image",
        "many steps that change little; eager only; pictures change; how often it skips depends on the weights",
        "core/rendezvous/row_cache.py; row_cache_threshold",
        IMAGE,
    ),
    "image.merged-rows": Optimisation(
        "steps of several requests in one forward",
        "image",
        "a step of one request does not fill the card",
        "core/rendezvous/model.py; max_step_units",
        IMAGE,
    ),
    "image.vae-batch": Optimisation(
        "pictures that are done at once decoded together",
        "image",
        "several are done within one decode",
        "core/rendezvous/lane.py; bench",
        IMAGE,
    ),
    "image.streams": Optimisation(
        "decoding on a stream of its own beside the steps",
        "image",
        "steps leave room on the card",
        "core/rendezvous/lane.py (new_stream); bench",
        IMAGE,
    ),
    "image.measured-budget": Optimisation(
        "as many requests share a step as the times measured at the start allow",
        "image",
        "requests of different length are there at once: latency",
        "core/batching/step_share.py, core/rendezvous/model.py (measure_company); measure_s",
        IMAGE,
    ),
    "image.encoders-aside": Optimisation(
        "text encoders on streams of their own, in the threads of the pipelines",
        "image",
        "none found: they wait for their inputs, which stand behind the steps",
        "in code and bench until 2026-11-30; `image.pipeline-streams` is what replaced it",
        IMAGE,
        is_in_code=False,
    ),
    "image.pipeline-streams": Optimisation(
        "what pipelines compute before and between the steps in streams of their threads",
        "image",
        "prompts are encoded while steps run: time to the first step",
        "core/rendezvous/streams.py (ThreadStreams), core/batching/pipeline_threads.py",
        IMAGE,
    ),
    **{
        f"image.attention-{key}": Optimisation(
            f"attention by {name} instead of torch's choice",
            "image",
            "long sequences",
            "bench",
            IMAGE,
            is_in_code=False,
        )
        for key, name in (("cudnn", "cuDNN"), ("flash", "FlashAttention 2"))
    },
    "image.vae-channels-last": Optimisation(
        "autoencoder in channels-last order", "image", "none found", "bench", IMAGE, is_in_code=False
    ),
    "video.merged-rows": Optimisation(
        "steps of several clips in one forward",
        "video",
        "short, small clips: one of 17 frames at 480p fills the card already",
        "core/rendezvous/model.py; limits",
        VIDEO,
    ),
    "video.row-cache": Optimisation(
        "first-block cache by clip",
        "video",
        "many steps that change little; clips change; how often it skips depends on the weights",
        "core/rendezvous/row_cache.py; row_cache_threshold",
        VIDEO,
    ),
    "video.fp8": Optimisation(
        "fp8 products with the skip list", "video", "large products; clips change", "quantization", VIDEO
    ),
    "video.graphs": Optimisation(
        "denoiser's steps replayed as CUDA graphs",
        "video",
        "clips too small to fill the card",
        "bench",
        VIDEO,
        is_in_code=False,
    ),
    "video.compiled": Optimisation(
        "blocks compiled, any number of rows",
        "video",
        "the card is the limit",
        "core/rendezvous/compiled.py; compile",
        VIDEO,
    ),
    "embedding.packed": Optimisation(
        "texts packed end to end instead of padded groups",
        "embedding",
        "lengths differ",
        "plugins/embedding/flat_forward.py; chosen by trial",
        EMBED,
    ),
    "embedding.graphs": Optimisation(
        "steps replayed as CUDA graphs of bucketed sizes",
        "embedding",
        "the host is the limit: stock layers, small steps",
        "plugins/embedding/flat_forward.py; cuda_graph_tokens",
        EMBED,
    ),
    "embedding.attention": Optimisation(
        "own attention kernel instead of FlashAttention by lengths",
        "embedding",
        "texts of some hundred tokens and fewer",
        "core/runtime/gpu_layers.py (attend_spans); bench",
        EMBED,
    ),
    "embedding.layers": Optimisation(
        "layers with one product for q, k, v and one kernel between products",
        "embedding",
        "BERT and Llama forms of layers",
        "plugins/embedding/gpu_layers.py; chosen by trial",
        EMBED,
    ),
    "embedding.rotation": Optimisation(
        "head norms and rotation in one kernel", "embedding", "within own layers", "rotate_heads; bench", EMBED
    ),
    "embedding.gate": Optimisation(
        "gate and the second norm in one kernel", "embedding", "within own layers", "silu_gate; bench", EMBED
    ),
    "embedding.norm": Optimisation(
        "norms in one kernel (with the sum before, in BERT)",
        "embedding",
        "within own layers",
        "rms_norm, add_layer_norm; bench",
        EMBED,
    ),
    "embedding.tokenization": Optimisation(
        "tokenization beside the steps",
        "embedding",
        "texts, not token ids, and throughput",
        "core/tokenization, plugins/embedding/preparer.py; bench",
        EMBED,
    ),
    "embedding.flights": Optimisation(
        "next step laid out during this one", "embedding", "throughput", "plugins/embedding/flights.py; bench", EMBED
    ),
    "asr.static-decoder": Optimisation(
        "decoder with caches at fixed places, computed",
        "asr",
        "its windows a second beside generate of transformers at the same batch",
        "plugins/asr/static_decoder.py",
        "asr.py",
    ),
    "asr.graphs": Optimisation(
        "decoder's steps replayed as CUDA graphs",
        "asr",
        "always on a GPU: a token is hundreds of small kernels",
        "plugins/asr/static_decoder.py; bench",
        "asr.py",
    ),
    "asr.windows": Optimisation(
        "windows of several requests heard together",
        "asr",
        "several wait",
        "plugins/asr/static_decoder.py; limits",
        "asr.py",
    ),
    "tts.vits-graphs": Optimisation(
        "VITS: texts read by CUDA graphs, a length each",
        "tts",
        "lengths that come again",
        "plugins/tts/vits_text.py; bench",
        SPEECH,
    ),
    "tts.vits-batch": Optimisation(
        "VITS: sentences of several requests a step", "tts", "several wait", "plugins/tts/vits.py; limits", SPEECH
    ),
    "tts.speecht5-graphs": Optimisation(
        "SpeechT5: frames spoken by CUDA graphs",
        "tts",
        "always on a GPU: a frame is hundreds of small kernels",
        "plugins/tts/speecht5_decoder.py; bench",
        SPEECH,
    ),
    "tts.speecht5-batch": Optimisation(
        "SpeechT5: a frame of several sentences a step",
        "tts",
        "several wait",
        "plugins/tts/speecht5_decoder.py; limits",
        SPEECH,
    ),
    "llm.paged-decode": Optimisation(
        "paged attention kernel instead of gathered contexts, decoding",
        "llm",
        "many rows or long contexts",
        "plugins/llm/paged_kernels.py; bench",
        NATIVE,
    ),
    "llm.paged-prompts": Optimisation(
        "paged attention kernel instead of gathered contexts, prompts",
        "llm",
        "prompts of several requests a step",
        "plugins/llm/paged_kernels.py; bench",
        NATIVE,
    ),
    "llm.graphs": Optimisation(
        "decoding steps replayed as CUDA graphs",
        "llm",
        "always on a GPU: a step is hundreds of small kernels",
        "plugins/llm/step_graphs.py; cuda_graph_rows",
        NATIVE,
    ),
    "llm.merged-layers": Optimisation(
        "merged projections and norms of one call",
        "llm",
        "the host is the limit, or few rows",
        "plugins/llm/fuse.py; compute_packed",
        NATIVE,
    ),
    "llm.sampling": Optimisation(
        "tokens chosen on the card instead of logits sent to the host",
        "llm",
        "many rows",
        "plugins/llm/sampler.py; bench",
        NATIVE,
    ),
    "llm.steps-ahead": Optimisation(
        "steps begun before the answers of the one before are out",
        "llm",
        "many streams: the host takes as long as the card",
        "plugins/llm/step_launcher.py; steps_ahead",
        "native.py --part serve",
    ),
    "llm.quantized-cache": Optimisation(
        "keys and values in fp8",
        "llm",
        "the cache's memory is the limit: it holds twice as many tokens; answers change",
        "plugins/llm/kv_layer.py, triton_kernels.py; quantization of kv_cache",
        NATIVE,
    ),
    "llm.guessed-tokens": Optimisation(
        "n-gram guesses verified several at a time",
        "llm",
        "few sequences, text that repeats",
        "plugins/llm/speculation.py; speculation",
        NATIVE,
    ),
    "vllm.collector": Optimisation(
        "outputs taken where vLLM puts them, not through its generators",
        "llm/vllm",
        "hundreds of streams of a small model",
        "plugins/llm/vllm_engine.py",
        "vllm_overhead.py (two versions of the code)",
    ),
}
