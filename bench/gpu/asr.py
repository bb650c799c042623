"""Speech recognition on one GPU: Whisper large-v3's size in transformers' form, random weights, half precision.

    python bench/gpu/asr.py           # two minutes on an H200; --beams 1 leaves the default search with 5 beams out
    python bench/gpu/asr.py --tiny    # on a CPU, to try it

Requests of one window of 29 s each (noise) go through the plugin's model and the batch manager: voice detection, spectrogram,
encoder, text. The peer is the same model in the same process and type: ``generate`` of transformers over spectrograms that are
ready, one window at a time and in batches. Random weights never end a text, so all texts have the same number of tokens on all
sides (ours takes the end out of what may come, the peer gets ``min_new_tokens``); what was heard in noise by random weights
says nothing, so Sixfold's is replaced by one phrase that fills the window (no other temperature is tried, nothing is heard
twice), and its detector, which runs, is overruled: all is speech. The peer neither detects voices nor obeys timestamps' rules.

Floor: the encoder's operations over the rate of a large product, and for each token the decoder's weights and the keys and
values of what is heard over the memory's rate. Wheels beside transformers: faster-whisper, scipy and onnxruntime (there), those
of ``embedding.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stand_ins import AUDIO, stand_in
from vllm_overhead import import_sixfold

PEAK_FLOPS = 798e12  # bfloat16 products of 8,192 cubed, measured on an H200
BYTES_PER_S = 4.3e12  # a copy in an H200's memory, measured
RATE_HZ = 16_000
WINDOW_S = 29
LANGUAGES = ("en", "de")


def sizes(tiny: bool) -> dict[str, Any]:
    """large-v3's, or small ones."""
    wide = {"d_model": 1280, "layers": 32, "heads": 20, "inner": 5120, "mels": 128, "words": 50_257}
    return {"d_model": 64, "layers": 2, "heads": 4, "inner": 128, "mels": 80, "words": 400} if tiny else wide


def save(folder: Path, size: dict[str, Any], device: str, dtype: Any) -> None:
    """A folder of transformers: weights, generation settings, a tokenizer whose words are numbers, an extractor."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    special = [
        *("endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev"),
        *("nospeech", "notimestamps", *(f"{n * 0.02:.2f}" for n in range(1501))),
    ]
    names = [*(f"Ġw{n}" for n in range(size["words"])), *(f"<|{name}|>" for name in special)]
    ids = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="Ġw0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in special])
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>").save_pretrained(folder)
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config: Any = WhisperConfig(
        vocab_size=len(names),
        d_model=size["d_model"],
        encoder_layers=size["layers"],
        decoder_layers=size["layers"],
        encoder_attention_heads=size["heads"],
        decoder_attention_heads=size["heads"],
        encoder_ffn_dim=size["inner"],
        decoder_ffn_dim=size["inner"],
        num_mel_bins=size["mels"],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            library: Any = WhisperForConditionalGeneration
            network = library(config)
    finally:
        torch.set_default_dtype(before)
    settings: Any = GenerationConfig
    network.generation_config = settings(
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        is_multilingual=True,
        max_length=448,
        max_initial_timestamp_index=50,
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        lang_to_id={f"<|{name}|>": ids[f"<|{name}|>"] for name in LANGUAGES},
        alignment_heads=[[0, 0]],
    )
    network.save_pretrained(folder)
    extractor: Any = WhisperFeatureExtractor
    extractor(feature_size=size["mels"]).save_pretrained(folder)


class FixedAnswers:
    """A backend that computes texts of a fixed length and answers with one phrase over the whole window."""

    def __init__(self, backend: Any, num_tokens: int) -> None:
        self._backend = backend
        self._end: int = backend.tokenizer.token_to_id("<|endoftext|>")
        self._first_time: int = backend.tokenizer.token_to_id("<|0.00|>")
        self._num_tokens = num_tokens
        self.max_length_tokens = backend.max_length_tokens
        backend.max_length_tokens = 3 + num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def generate(self, rows: Any, prompts: Any, *, temperature: float, suppressed: Sequence[int]) -> list[Any]:
        from sixfold.plugins.asr.backend import Hypothesis

        found = self._backend.generate(rows, prompts, temperature=temperature, suppressed=(*suppressed, self._end))
        assert all(len(one.token_ids) == self._num_tokens for one in found), "a text ended"
        whole = (self._first_time, *range(10, 20), self._first_time + 1500)
        return [Hypothesis(whole, -0.1, 0.0) for _ in found]


class AllSpeech:
    """The detector; what it finds is overruled."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector

    def get(self) -> Any:
        return self

    def probabilities(self, samples: Any, state: Any) -> Any:
        values, after = self._detector.get().probabilities(samples, state)
        return np.ones_like(values), after


def load_ours(folder: Path, device: str, dtype: Any, beams: int, num_tokens: int) -> Any:
    """The plugin's model."""
    from sixfold.core.family import LoadContext
    from sixfold.plugins.asr.options import TransformersOptions
    from sixfold.plugins.asr.transformers_loader import load

    options = TransformersOptions(dtype=str(dtype).removeprefix("torch."), beam_size=beams, best_of=beams)
    model: Any = load(LoadContext(model_name="whisper", path=folder, device=device, num_threads=2, options=options))
    model._backend = FixedAnswers(model._backend, num_tokens)
    model._detector = AllSpeech(model._detector)
    model.warm_up()
    return model


def noise(number: int) -> Any:
    """16-bit samples of one window."""
    return (np.random.default_rng(number).normal(size=WINDOW_S * RATE_HZ) * 3000).astype("<i2")


async def ask(replica: Any, number: int, samples: Any) -> float:
    """Seconds from sending to the answer."""
    from sixfold.core.messages import Failed, Request
    from sixfold.plugins.asr.schema import TranscribeInput

    began_s = time.monotonic()
    wanted = TranscribeInput(audio=samples.tobytes(), pcm_hz=RATE_HZ, language="en")
    async with replica.submit(Request(request_id=str(number), input=wanted, arrived_s=began_s)) as stream:
        while events := await stream.next_events():
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
    return time.monotonic() - began_s


async def serve_ours(model: Any, count: int, rounds: int) -> dict[str, float]:
    """Windows a second when all come at once, and the latency of one alone."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    limits = Limits(max_queue_units=1 << 30, max_running_sequences=4096)
    replica = LocalReplica(model, limits=limits, num_pool_threads=12)
    sounds = [noise(number) for number in range(count)]
    try:
        seconds: list[float] = []
        for turn in range(rounds + 1):  # the first is not counted: the step budget finds its place
            began_s = time.monotonic()
            numbers = (turn * count + i for i in range(count))
            await asyncio.gather(*(ask(replica, number, each) for number, each in zip(numbers, sounds, strict=True)))
            seconds.append(time.monotonic() - began_s)
        alone = [await ask(replica, 1_000_000 + i, sounds[i % count]) for i in range(4)]
    finally:
        await replica.close()
    return {"windows_per_s": count / statistics.median(seconds[1:]), "alone_s": statistics.median(alone)}


def parts_of(backend: Any, device: str, counts: Sequence[int], num_tokens: int) -> list[dict[str, float]]:
    """Seconds of encoding and of a token by windows, without anything around them."""
    import torch

    mel = backend.features(noise(0).astype(np.float32) / 32768)
    prompt = [backend.tokenizer.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "en", "transcribe")]
    found: list[dict[str, float]] = []

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
        call()
        wait()
        began_s = time.perf_counter()
        result = call()
        wait()
        return time.perf_counter() - began_s, result

    def text_s(rows: Sequence[Any]) -> float:
        return seconds_of(lambda: backend.generate(rows, [prompt] * len(rows), temperature=0.0, suppressed=()))[0]

    for count in counts:
        encode_s, rows = seconds_of(lambda count=count: backend.encode([mel] * count))
        seconds = text_s(rows)
        found.append({"windows": count, "encode_s": encode_s, "text_s": seconds, "token_s": seconds / (num_tokens + 2)})
        if count == counts[-1]:  # every kernel started from Python: what the graphs alone give
            decoder = backend._decoder
            kept, decoder._capture = decoder._capture, None
            found[-1]["computed_text_s"] = text_s(rows)
            decoder._capture = kept
        print(json.dumps(found[-1]), flush=True)
    return found


def serve_peer(network: Any, extractor: Any, num_tokens: int, *, batch: int, count: int, beams: int) -> float:
    """Windows a second of ``generate`` over batches; their spectrograms are made before, for nothing."""
    import torch

    sounds = [noise(number).astype(np.float32) / 32768 for number in range(batch)]
    features = extractor(sounds, sampling_rate=RATE_HZ, return_tensors="pt").input_features
    features = features.to(network.device, network.dtype)

    def hear() -> None:
        found = network.generate(
            features,
            language="en",
            task="transcribe",
            num_beams=beams,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
        )
        found.cpu()

    with torch.inference_mode():
        if batch > 1:  # the first call of all is not counted
            hear()
        began_s = time.perf_counter()
        for _ in range(0, count, batch):
            hear()
        return count / (time.perf_counter() - began_s)


def floor_s(size: dict[str, Any], num_tokens: int, windows: int) -> dict[str, float]:
    """Seconds a window of the encoder and of the text, at so many windows together."""
    width, inner, layers, heard = size["d_model"], size["inner"], size["layers"], 1500
    products = layers * 2 * heard * (4 * width * width + 2 * width * inner)
    attention = layers * 4 * heard * heard * width
    convolutions = 2 * 3 * (2 * heard * size["mels"] * width + heard * width * width)
    memory = 2 * layers * 2 * heard * width * width  # keys and values of what is heard, for the decoder
    weights = 2 * (layers * (6 * width * width + 2 * width * inner) + size["words"] * width)
    each = 2 * layers * 2 * heard * width
    encode = (products + attention + convolutions) / PEAK_FLOPS
    token = (weights + windows * each) / BYTES_PER_S
    return {"encode_s": encode, "text_s": memory / PEAK_FLOPS + num_tokens * token / windows}


def table(result: dict[str, Any]) -> str:
    """Markdown, one row a way of serving."""
    lines = [
        "| beams | who | windows/s | seconds of sound a second | x the peer's best | of the floor | one alone, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for beams, found in result["beams"].items():
        peers = {name: value for name, value in found.items() if name.startswith("peer")}
        best = max(peers.values(), default=float("nan"))
        for name, rate in {**peers, "Sixfold": found["ours"]["windows_per_s"]}.items():
            alone = found["ours"]["alone_s"] if name == "Sixfold" else 1 / rate if name.endswith(" 1") else None
            lines.append(
                f"| {beams} | {name} | {rate:.2f} | {rate * WINDOW_S:.0f} | {rate / best:.2f} | "
                f"{rate * found['floor_s']:.0%} | {'' if alone is None else f'{alone:.3f}'} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--tokens", type=int, default=100, help="of a text; 29 s of speech have some 80 to 130")
    parser.add_argument("--count", type=int, default=96, help="requests at once")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--peer-count", type=int, default=32, help="windows of a peer's batched run")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "asr.json")
    args = parser.parse_args()
    import_sixfold(args.site)
    stand_in((*AUDIO, "ctranslate2"))  # CTranslate2 computes the other family
    import torch
    import transformers
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    transformers.logging.set_verbosity_error()
    device, dtype = ("cpu", torch.float32) if args.tiny else ("cuda:0", torch.float16)
    num_tokens, count = (8, 4) if args.tiny else (args.tokens, args.count)
    size = sizes(args.tiny)
    folder = Path(tempfile.mkdtemp(prefix="whisper-"))
    save(folder, size, device, dtype)
    card = "cpu" if args.tiny else torch.cuda.get_device_name()
    result: dict[str, Any] = {"card": card, "torch": torch.__version__, "tokens": num_tokens, "beams": {}}
    print(f"Whisper, {size}, random weights, {dtype}, {card}, torch {torch.__version__}", flush=True)
    peer: Any = WhisperForConditionalGeneration
    extractor: Any = WhisperFeatureExtractor
    for beams in args.beams:
        began_s = time.perf_counter()
        model = load_ours(folder, device, dtype, beams, num_tokens)
        windows = 2 if args.tiny else model._backend._decoder.max_windows
        floors = floor_s(size, num_tokens, windows)
        found: dict[str, Any] = {"load_s": time.perf_counter() - began_s, "windows": windows, "floors": floors}
        found["floor_s"] = sum(floors.values())
        print(f"beams {beams}: loaded in {found['load_s']:.1f} s, {windows} windows, floors {floors}", flush=True)
        result["beams"][beams] = found
        found["parts"] = parts_of(
            model._backend, device, sorted({1, 4, windows}) if not args.tiny else (1, 2), num_tokens
        )
        found["ours"] = asyncio.run(serve_ours(model, count, 1 if args.tiny else 2))
        print(json.dumps(found["ours"]), flush=True)
        del model
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        network = peer.from_pretrained(folder, dtype=dtype).to(device).eval()
        ears = extractor.from_pretrained(folder)
        for batch, total in ((windows, max(windows, 2 if args.tiny else args.peer_count)), (1, 2)):
            found[f"peer, batches of {batch}"] = serve_peer(
                network, ears, num_tokens, batch=batch, count=total, beams=beams
            )
        del network
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{table(result)}\n", flush=True)


if __name__ == "__main__":
    main()
