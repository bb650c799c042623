"""Speech synthesis on one GPU: VITS (MMS's size) and SpeechT5, random weights, beside the stock models one sentence at a time.

    python bench/gpu/tts.py           # a minute on an H200
    python bench/gpu/tts.py --tiny    # on a CPU, to try it

Requests of one sentence each (60 to 120 letters) go through the plugin's model and the batch manager, all at once, then a few
alone. The peer is the same network in the same process, as its documentation calls it: ``VitsModel(...)``, ``generate_speech``
with a vocoder. Random weights know no end, so the length of the sound is fixed on both sides: about four frames a letter in
VITS (durations are computed and overruled), and SpeechT5 ends where its greatest ratio of frames to letters says (5.5, as
people speak).

Floor: the operations of a sentence over the rate of a large bfloat16 product, and for SpeechT5 the decoder's weights over the
memory's rate for each step, at 64 sentences together. Both models compute in float32, as they are published: the floor is far
away by that alone. Kokoro runs in onnxruntime on processors only, so it has no row. Wheels beside transformers and
sentencepiece: num2words, those of ``embedding.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
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
TOGETHER = 64
RATIO = 5.5  # spectrogram frames a letter
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sentence(number: int, *, shortest: int, longest: int) -> str:
    """Words of random letters."""
    chance = random.Random(number)
    length, text = chance.randint(shortest, longest), ""
    while len(text) < length:
        text += "".join(chance.choices(LETTERS, k=chance.randint(2, 9))) + " "
    return text.strip()[:length].strip() + "."


def save_vits(folder: Path, tiny: bool) -> None:
    """VITS as MMS has it."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    letters = "-" + LETTERS + "' "
    (folder / "letters.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    tokenizer: Any = VitsTokenizer
    tokenizer(
        str(folder / "letters.json"), language="eng", phonemize=False, pad_token="-", unk_token=" "
    ).save_pretrained(folder)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "ffn_dim": 24,
        "flow_size": 16,
        "spectrogram_bins": 9,
        "upsample_initial_channel": 32,
        "upsample_rates": [4, 4],
        "upsample_kernel_sizes": [8, 8],
        "prior_encoder_num_wavenet_layers": 2,
    }
    config: Any = VitsConfig(vocab_size=len(letters), **(small if tiny else {}))
    library: Any = VitsModel
    network = library(config)
    fix_durations(network)
    network.save_pretrained(folder)


def save_speecht5(folder: Path, tiny: bool) -> None:
    """SpeechT5 with its vocoder and a voice."""
    import sentencepiece
    from transformers import (
        SpeechT5Config,
        SpeechT5ForTextToSpeech,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        SpeechT5Tokenizer,
    )

    text = folder / "letters.txt"
    text.write_text(f"{LETTERS} the quick brown fox jumps over the lazy dog.\n" * 3)
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        input=str(text),
        model_prefix=str(folder / "spm_char"),
        model_type="char",
        vocab_size=36,
        character_coverage=1.0,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    words: Any = SpeechT5Tokenizer
    tokenizer = words(str(folder / "spm_char.model"))
    tokenizer.save_pretrained(folder)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
        "speech_decoder_prenet_units": 12,
        "speech_decoder_postnet_units": 8,
    }
    config: Any = SpeechT5Config(vocab_size=max(81, len(tokenizer)), **(small if tiny else {}))
    library: Any = SpeechT5ForTextToSpeech
    network = library(config)
    network.speech_decoder_postnet.prob_out.weight.data.zero_()
    network.speech_decoder_postnet.prob_out.bias.data.fill_(-20.0)  # it never ends by itself
    network.save_pretrained(folder)
    vocoder: Any = SpeechT5HifiGan
    vocoder(SpeechT5HifiGanConfig(**({"upsample_initial_channel": 32} if tiny else {}))).save_pretrained(
        folder / "vocoder"
    )
    voice: Any = np.random.default_rng(0).normal(size=config.speaker_embedding_dim).astype(np.float32)
    np.savez(folder / "voices.npz", anna=voice)


def fix_durations(network: Any) -> None:
    """Two frames a token, whatever the predictor finds: its last layer passes next to nothing on."""
    affine = network.duration_predictor.flows[0]
    affine.log_scale.data.fill_(20.0)
    affine.translate.data.fill_(-math.log(1.9) * math.exp(20.0))  # 1.9 is rounded up


async def ask(replica: Any, number: int, text: str) -> tuple[float, float, float]:
    """Seconds to the first sound and to the end, and seconds of sound."""
    from sixfold.core.messages import Failed, Increment, Request
    from sixfold.plugins.tts.schema import SpeechInput

    began_s, first_s, sound_s = time.monotonic(), 0.0, 0.0
    request = Request(request_id=str(number), input=SpeechInput(text=text, seed=number), arrived_s=began_s)
    async with replica.submit(request) as stream:
        while events := await stream.next_events():
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Increment):
                    first_s = first_s or time.monotonic() - began_s
                    output: Any = event.output
                    sound_s += len(output.pcm) / 2 / output.rate_hz
    return first_s, time.monotonic() - began_s, sound_s


async def serve_ours(model: Any, texts: Sequence[str]) -> dict[str, float]:
    """Sound a second when all come at once, and the latency of sentences alone."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    limits = Limits(max_queue_units=1 << 30, max_running_sequences=4096)
    replica = LocalReplica(model, limits=limits, num_pool_threads=4)
    try:
        for turn in range(3):  # not counted: lengths are recorded, the step budget finds its place
            await asyncio.gather(*(ask(replica, 1000 * turn + i, text) for i, text in enumerate(texts)))
        began_s = time.monotonic()
        found = await asyncio.gather(*(ask(replica, 10_000 + i, text) for i, text in enumerate(texts)))
        elapsed_s = time.monotonic() - began_s
        alone = [await ask(replica, 20_000 + i, text) for i, text in enumerate(texts[:5])]
    finally:
        await replica.close()
    return {
        "sound_per_s": sum(sound for _, _, sound in found) / elapsed_s,
        "sentences_per_s": len(texts) / elapsed_s,
        "alone_s": statistics.median(end for _, end, _ in alone),
    }


def serve_peer(speak: Callable[[str], Any], rate_hz: int, texts: Sequence[str]) -> dict[str, float]:
    """The stock model, one sentence after another."""
    speak(texts[0])
    times: list[float] = []
    sound_s = 0.0
    for text in texts:
        began_s = time.perf_counter()
        sound_s += speak(text).cpu().numel() / rate_hz
        times.append(time.perf_counter() - began_s)
    return {
        "sound_per_s": sound_s / sum(times),
        "sentences_per_s": len(texts) / sum(times),
        "alone_s": statistics.median(times),
    }


def flops_of(run: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def load_ours(folder: Path, device: str) -> Any:
    from sixfold.core.family import LoadContext
    from sixfold.plugins.tts.options import TransformersSpeechOptions
    from sixfold.plugins.tts.transformers_loader import load

    options = TransformersSpeechOptions()
    return load(LoadContext(model_name="speak", path=folder, device=device, num_threads=4, options=options))


def load_peer(kind: str, folder: Path, device: str, model: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The stock network, loaded anew, and what makes sound of ids with it; texts and voices are those of our model."""
    import transformers

    library: Any = transformers
    if kind == "vits":
        network = library.VitsModel.from_pretrained(folder).to(device).eval()
        return network, lambda ids: network(input_ids=ids).waveform
    network = library.SpeechT5ForTextToSpeech.from_pretrained(folder).to(device).eval()
    vocoder, speaker = model._vocoder, model._speakers["anna"][None]

    def speak(ids: Any) -> Any:
        return network.generate_speech(ids, speaker, vocoder=vocoder, minlenratio=0.0, maxlenratio=RATIO)

    return network, speak


def measure(kind: str, *, tiny: bool, device: str, count: int) -> dict[str, Any]:
    """One architecture: ours, the peer and the floor, in sound a second."""
    import torch

    from sixfold.plugins.tts.speecht5_decoder import SpeechT5Decoder

    SpeechT5Decoder.MAX_RATIO = RATIO
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
    torch.manual_seed(0)
    {"vits": save_vits, "speecht5": save_speecht5}[kind](folder, tiny)
    model = load_ours(folder, device)
    network, say = load_peer(kind, folder, device, model)
    texts = [sentence(i, shortest=20 if tiny else 60, longest=40 if tiny else 120) for i in range(count)]

    def ids(text: str) -> Any:
        return torch.as_tensor(model._tokenizer(text, return_tensors="np")["input_ids"]).to(device)

    def speak(text: str) -> Any:
        return say(ids(text))

    model.warm_up()
    found: dict[str, Any] = {"texts": count}
    with torch.no_grad():
        rate_hz = model._rate_hz
        found["peer"] = serve_peer(speak, rate_hz, texts[: max(2, count // 12)])
        sound_s = speak(texts[0]).numel() / rate_hz
        floor_s = flops_of(lambda: speak(texts[0])) / PEAK_FLOPS
    if kind == "speecht5":
        weights = sum(weight.nbytes for weight in network.speecht5.decoder.parameters())
        steps = len(ids(texts[0])[0]) * RATIO / network.config.reduction_factor
        floor_s += steps * weights / BYTES_PER_S / TOGETHER
    found["floor_sound_per_s"] = sound_s / floor_s
    found["ours"] = asyncio.run(serve_ours(model, texts))
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| model | who | seconds of sound a second | x | of the floor | one sentence alone, s |",
        "|---|---|---|---|---|---|",
    ]
    for kind, found in results.items():
        for who, row in (("stock, one by one", found["peer"]), ("Sixfold", found["ours"])):
            rate = row["sound_per_s"]
            lines.append(
                f"| {kind} | {who} | {rate:.1f} | {rate / found['peer']['sound_per_s']:.2f} | "
                f"{rate / found['floor_sound_per_s']:.2%} | {row['alone_s']:.3f} |"
            )
        lines.append(f"| {kind} | floor | {found['floor_sound_per_s']:.0f} | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=("vits", "speecht5"), default=["vits", "speecht5"])
    parser.add_argument("--count", type=int, default=TOGETHER, help="requests at once")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "tts.json")
    args = parser.parse_args()
    import_sixfold(args.site)
    stand_in(AUDIO)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = "cpu" if args.tiny else "cuda:0"
    card = "cpu" if args.tiny else torch.cuda.get_device_name()
    print(f"random weights, float32, {card}, torch {torch.__version__}", flush=True)
    results: dict[str, Any] = {}
    for kind in args.kinds:
        results[kind] = measure(kind, tiny=args.tiny, device=device, count=4 if args.tiny else args.count)
        print(json.dumps({kind: results[kind]}), flush=True)
        report = {"card": card, "torch": torch.__version__, "models": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{table(results)}\n", flush=True)


if __name__ == "__main__":
    main()
