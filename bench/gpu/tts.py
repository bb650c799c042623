"""Speech synthesis on one GPU: VITS (MMS's size) and SpeechT5, random weights, beside the stock models one sentence at a time.

    python bench/gpu/tts.py           # a minute on an H200, and never more than --seconds (90)
    python bench/gpu/tts.py --tiny    # on a CPU, to try it

Requests of one sentence each (60 to 120 letters) go through the plugin's model and the batch manager, all at once, then a few
alone. The peer is the same network in the same process, as its documentation calls it: ``VitsModel(...)``, ``generate_speech``
with a vocoder; it speaks as many of the same sentences as it can within some seconds (how many is said). Sixfold comes first,
and the figures are written after each side. Random weights know no end, so the length of the sound is fixed on both sides:
about four frames a letter in VITS (durations are computed and overruled), and SpeechT5 ends where its greatest ratio of frames
to letters says (5.5, as people speak).

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
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stand_ins import AUDIO, stand_in
from vllm_overhead import import_sixfold

PEAK_FLOPS = 798e12  # bfloat16 products of 8,192 cubed, measured on an H200
BYTES_PER_S = 4.3e12  # a copy in an H200's memory, measured
TOGETHER = 64
PEER_S = 10.0  # of each network
WARM_S = 12.0  # of turns that are not counted; one at least
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


BEGAN_S = time.monotonic()


def say(what: str) -> None:
    """A line of progress."""
    print(f"[{time.monotonic() - BEGAN_S:5.1f} s] {what}", flush=True)


async def serve_ours(model: Any, texts: Sequence[str]) -> dict[str, float]:
    """Sound a second when all come at once, and the latency of sentences alone."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    async def together(turn: int) -> tuple[float, list[tuple[float, float, float]]]:
        began_s = time.monotonic()
        found = await asyncio.gather(*(ask(replica, 1000 * turn + i, text) for i, text in enumerate(texts)))
        elapsed_s = time.monotonic() - began_s
        say(f"turn {turn}: {len(texts)} sentences together in {elapsed_s:.2f} s")
        return elapsed_s, found

    limits = Limits(max_queue_units=1 << 30, max_running_sequences=4096)
    replica = LocalReplica(model, limits=limits, num_pool_threads=4)
    try:
        began_s = time.monotonic()
        for turn in range(3):  # not counted: lengths are recorded, the step budget finds its place
            await together(turn)
            if time.monotonic() - began_s > WARM_S:
                break
        elapsed_s, found = await together(10)
        alone = [await ask(replica, 20_000 + i, text) for i, text in enumerate(texts[:5])]
    finally:
        await replica.close()
    return {
        "sound_per_s": sum(sound for _, _, sound in found) / elapsed_s,
        "sentences_per_s": len(texts) / elapsed_s,
        "alone_s": statistics.median(end for _, end, _ in alone),
    }


def serve_peer(speak: Callable[[str], Any], rate_hz: int, texts: Sequence[str]) -> dict[str, float]:
    """The stock model, one sentence after another, until its time is used."""
    speak("warm.")
    times: list[float] = []
    sound_s = 0.0
    for text in texts:
        began_s = time.perf_counter()
        sound_s += speak(text).cpu().numel() / rate_hz
        times.append(time.perf_counter() - began_s)
        if sum(times) > PEER_S:
            break
    say(f"stock: {len(times)} sentences in {sum(times):.2f} s")
    return {
        "texts": len(times),
        "sound_per_s": sound_s / sum(times),
        "sentences_per_s": len(times) / sum(times),
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


def graphs_of(kind: str, model: Any) -> dict[str, float]:
    """How many graphs were recorded, and how far from the computed ones their answers are, over the greatest of these."""
    import torch

    ids = torch.as_tensor(model._tokenizer(sentence(0, shortest=60, longest=120), return_tensors="np")["input_ids"])
    owner = model._text if kind == "vits" else model._decoder
    answers: list[Any] = []
    capture = owner._capture
    with torch.inference_mode():
        for owner._capture in (capture, None):
            if kind == "vits":
                noise = torch.randn(1, 2, ids.shape[1], generator=torch.Generator().manual_seed(0))
                places = [value.to(model._network.device) for value in (ids, noise)]
                for _ in range(2):  # a length is recorded when it comes again
                    stats = owner(*places, None)
                answers.append(torch.cat([stats.means.flatten(), stats.log_durations.flatten()]).clone())
            else:
                row = owner.begin(ids.to(model._network.device), model._speaker(""), 0)
                for _ in range(100):
                    owner.step([row])
                    row.num_frames += 1
                answers.append(owner.spectrogram(row, row.num_frames).clone())
                owner.end(row)
    owner._capture = capture
    error = (answers[0] - answers[1]).abs().max() / answers[1].abs().max()
    return {"graphs": len(owner._recorded if kind == "vits" else owner._steps), "graphs_error": float(error)}


class Peer:
    """The stock network, loaded anew; texts and voices are those of our model."""

    def __init__(self, kind: str, folder: Path, device: str, model: Any) -> None:
        import transformers

        library: Any = transformers
        self._device, self._model, self._is_vits = device, model, kind == "vits"
        found = library.VitsModel if self._is_vits else library.SpeechT5ForTextToSpeech
        self.network = found.from_pretrained(folder).to(device).eval()

    def speak(self, text: str, ratio: float = RATIO) -> Any:
        """Sound; VITS knows no ratio."""
        ids = self.ids(text)
        if self._is_vits:
            return self.network(input_ids=ids).waveform
        speaker = self._model._speakers["anna"][None]
        return self.network.generate_speech(
            ids, speaker, vocoder=self._model._vocoder, minlenratio=0.0, maxlenratio=ratio
        )

    def ids(self, text: str) -> Any:
        """[1, tokens]."""
        import torch

        return torch.as_tensor(self._model._tokenizer(text, return_tensors="np")["input_ids"]).to(self._device)

    def floor_s(self, text: str) -> tuple[float, float]:
        """Seconds that a sentence takes at least, and its samples."""
        if self._is_vits:
            return flops_of(lambda: self.speak(text)) / PEAK_FLOPS, self.speak(text).numel()
        # Counting is slow: all frames cost as much as some, but for what reads the text.
        num_tokens, ratios = len(self.ids(text)[0]), (RATIO / 8, RATIO / 4)
        low, high = (flops_of(partial(self.speak, text, ratio)) for ratio in ratios)
        few, some, num_frames = (
            int(num_tokens * ratio / self.network.config.reduction_factor) for ratio in (*ratios, RATIO)
        )
        flops = low + (high - low) * (num_frames - few) / (some - few)
        weights = sum(weight.nbytes for weight in self.network.speecht5.decoder.parameters())
        samples_a_frame = self.speak(text, RATIO / 8).numel() / few
        return flops / PEAK_FLOPS + num_frames * weights / BYTES_PER_S / TOGETHER, num_frames * samples_a_frame


def measure(
    kind: str, found: dict[str, Any], note: Callable[[str], None], *, tiny: bool, device: str, count: int
) -> None:
    """One architecture: ours, the peer and the floor, in sound a second; each is noted when it is there."""
    import torch

    from sixfold.plugins.tts.speecht5_decoder import SpeechT5Decoder

    SpeechT5Decoder.MAX_RATIO = RATIO
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
    torch.manual_seed(0)
    {"vits": save_vits, "speecht5": save_speecht5}[kind](folder, tiny)
    model = load_ours(folder, device)
    texts = [sentence(i, shortest=20 if tiny else 60, longest=40 if tiny else 120) for i in range(count)]
    found["texts"] = count
    say(f"{kind} is loaded")
    model.warm_up()
    say("and warm")
    found["ours"] = asyncio.run(serve_ours(model, texts))
    found["ours"] |= graphs_of(kind, model)
    note(kind)
    peer = Peer(kind, folder, device, model)
    with torch.no_grad():
        found["peer"] = serve_peer(peer.speak, model._rate_hz, texts)
        note(kind)
        floor_s, num_samples = peer.floor_s(texts[0])
    found["floor_sound_per_s"] = num_samples / model._rate_hz / floor_s
    note(kind)


def table(results: dict[str, Any]) -> str:
    """Markdown, of what is there."""
    lines = [
        "| model | who | sentences | seconds of sound a second | x | of the floor | one sentence alone, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, found in results.items():
        stock, floor = found.get("peer", {}).get("sound_per_s", math.nan), found.get("floor_sound_per_s", math.nan)
        for who, row in (("stock, one by one", found.get("peer")), ("Sixfold", found.get("ours"))):
            if row:
                rate = row["sound_per_s"]
                lines.append(
                    f"| {kind} | {who} | {row.get('texts', found['texts'])} | {rate:.1f} | {rate / stock:.2f} | "
                    f"{rate / floor:.2%} | {row['alone_s']:.3f} |"
                )
        lines.append(f"| {kind} | floor | | {floor:.0f} | | | |")
    return "\n".join(lines)


def _stop(_signal: int, _frame: Any) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=("vits", "speecht5"), default=["vits", "speecht5"])
    parser.add_argument("--count", type=int, default=TOGETHER, help="requests at once")
    parser.add_argument("--seconds", type=int, default=90, help="after which the figures so far are all")
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

    def note(kind: str) -> None:
        report = {"card": card, "torch": torch.__version__, "models": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        say(json.dumps(results[kind]))

    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(max(1, args.seconds - int(time.monotonic() - BEGAN_S)))
    is_whole = False
    try:
        for kind in args.kinds:
            count = 4 if args.tiny else args.count
            measure(kind, results.setdefault(kind, {}), note, tiny=args.tiny, device=device, count=count)
        is_whole = True
    except TimeoutError:
        say(f"stopped after {args.seconds} s")
    finally:
        signal.alarm(0)
        print(f"\n{table(results)}\n", flush=True)
    if not is_whole:
        os._exit(1)  # without waiting for what still computes


if __name__ == "__main__":
    main()
