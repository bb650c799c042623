"""The native language family: each optimisation of its steps alone, in turns, Llama-3.2-1B's shape; see `alone.py`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from alone_timing import Notes, Way, interleave
from vllm_overhead import Load, load_native, make_model, run_local

NAME = "Llama-3.2-1B"


@contextlib.contextmanager
def running(decoder: Any, *, tiled: bool, graphs: Any) -> Generator[None]:
    """A decoder by kernels (`tiled`) or over gathered contexts, with these graphs."""
    kept = decoder._is_tiled, decoder._graphs
    decoder._is_tiled, decoder._graphs = tiled, graphs
    try:
        yield
    finally:
        decoder._is_tiled, decoder._graphs = kept


def _rows(decoder: Any, count: int, num_tokens: int, num_computed: int) -> list[Any]:
    from sixfold.plugins.llm.cached_tokens import CachedTokens

    rows = [CachedTokens([300 + (i + place) % 100 for place in range(num_tokens)]) for i in range(count)]
    for row in rows:
        assert decoder.cache.reserve(row, num_tokens) == num_tokens, "the cache is too small"
        row.num_computed = num_computed
    return rows


def step_ways(decoder: Any, rows: Sequence[Any], units: int, *, recorded: bool) -> dict[str, Way]:
    """A whole step, laid out and computed: over gathered contexts, by the paged kernel, replayed."""
    graphs = decoder._graphs

    def run() -> object:
        return decoder.forward(decoder.lay_out(rows, [units] * len(rows)))

    found = {"gathered": Way(run, lambda: running(decoder, tiled=False, graphs=None))}
    found["paged"] = Way(run, lambda: running(decoder, tiled=True, graphs=None))
    if recorded:
        found["paged graphs"] = Way(run, lambda: running(decoder, tiled=True, graphs=graphs))
    return found


PAIRS = (
    ("llm.paged-decode", "gathered", "paged"),
    ("llm.graphs", "paged", "paged graphs"),
    ("llm.merged-layers", "stock layers paged", "paged"),
    ("llm.merged-layers", "stock layers paged graphs", "paged graphs"),
    ("llm.quantized-cache", "paged graphs", "fp8 cache paged graphs"),
)


def measure_steps(notes: Notes, models: dict[str, Any], *, tiny: bool) -> None:
    """Decoding by rows, and prompts; of the model as it is served ("") and of others that differ in one thing."""
    rounds, context = (1, 20) if tiny else (7, 640)
    decoders = {name: model._decoder for name, model in models.items()}
    for count in (1, 2) if tiny else (1, 32, 256):
        every = {name: _rows(decoder, count, context, context - 1) for name, decoder in decoders.items()}
        ways: dict[str, Way] = {}
        for name, decoder in decoders.items():
            made = step_ways(decoder, every[name], 1, recorded=True)
            ways |= {f"{name} {way}".strip(): each for way, each in made.items() if not name or way != "gathered"}
        with torch.inference_mode():
            found = interleave(ways, rounds=rounds, calls=1 if tiny else 4, warms=not tiny)
        place = f"{NAME}, a step of {count} rows, contexts of {context}"
        notes.keep(place, found)
        notes.pairs(place, found, PAIRS)
        for name, rows in every.items():
            for row in rows:
                decoders[name].cache.free(row)
    decoder = decoders[""]
    for count, tokens in ((2, 6),) if tiny else ((16, 512), (1, 4096)):
        rows = _rows(decoder, count, tokens, 0)
        with torch.inference_mode():
            found = interleave(step_ways(decoder, rows, tokens, recorded=False), rounds=rounds, warms=not tiny)
        place = f"{NAME}, {count} prompts of {tokens} tokens"
        notes.keep(place, found)
        notes.pairs(place, found, [("llm.paged-prompts", "gathered", "paged")])
        for row in rows:
            decoder.cache.free(row)


@dataclass(frozen=True, slots=True)
class Row:
    """See `sampler.SampledRow`."""

    sampling: Any
    num_before: int = 5
    token_counts: Any = None
    has_unknown: bool = False


def measure_sampling(notes: Notes, *, tiny: bool) -> None:
    """The next tokens of some rows, chosen where the logits are or on the host."""
    from sixfold.plugins.llm.generation import SamplingParams
    from sixfold.plugins.llm.sampler import sample
    from sixfold.plugins.llm.sampling import SamplingDefaults, resolve_sampling

    device = "cpu" if tiny else "cuda:0"
    kinds = {"greedy": {"temperature": 0.0}, "temperature 0.7, top_p 0.9": {"temperature": 0.7, "top_p": 0.9}}
    for count in (2,) if tiny else (32, 256):
        # Peaked as a trained model's: else top_p keeps half of the vocabulary.
        logits = 4 * torch.randn(count, 500 if tiny else 128_256, device=device).to(torch.bfloat16)
        for kind, given in kinds.items():
            params = SamplingParams(**given)
            rows = [
                Row(resolve_sampling(params, SamplingDefaults(), eos_ids=(1,), choice=0, seed=i)) for i in range(count)
            ]
            ways = {
                "host": Way(lambda rows=rows, logits=logits: sample(logits.cpu(), rows)),
                "card": Way(lambda rows=rows, logits=logits: sample(logits, rows)),
            }
            with torch.inference_mode():
                found = interleave(ways, rounds=1 if tiny else 3)
            place = f"{count} rows, {kind}"
            notes.keep(f"sampling, {place}", found)
            notes.pairs(place, found, [("llm.sampling", "host", "card")])


@dataclass(frozen=True, slots=True)
class Repeating(Load):
    """Prompts that say a phrase again and again, another one each."""

    phrase_tokens: int = 16

    def prompts(self, seed: int) -> list[tuple[int, ...]]:
        source = random.Random(seed)
        draw = range(300, self.vocab - 300)
        found: list[tuple[int, ...]] = []
        for _ in range(self.requests):
            phrase = source.choices(draw, k=self.phrase_tokens)
            found.append(tuple((phrase * (self.prompt_tokens // self.phrase_tokens + 1))[: self.prompt_tokens]))
        return found


def measure_guesses(notes: Notes, folder: Path, *, tiny: bool) -> None:
    """Tokens a second of few streams with n-gram guesses and without, both replayed."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    vocab = make_model(folder, tiny)
    methods = ("off", "ngram")
    models: dict[str, Any] = {}
    for method in methods:
        # Steps of more sequences than `max_sequences` have none by default: here its limit is part of the question.
        speculation = {"method": method, "max_sequences": 64}
        models[method] = load_native(
            folder, tiny, cache_bytes=(8 << 20) if tiny else (4 << 30), speculation=speculation
        )
        models[method].warm_up()

    async def measure() -> None:
        limits = Limits(max_queue_units=1 << 30, max_running_sequences=64)
        replicas = {method: LocalReplica(model, limits=limits) for method, model in models.items()}
        for count in (1, 2) if tiny else (1, 4, 16, 64):
            load = Repeating(count, 32 if tiny else 256, 8 if tiny else 256, vocab)
            rates: dict[str, list[float]] = {method: [] for method in methods}
            before = dict(replicas["ngram"].snapshot.metrics)
            for number in range(2 if tiny else 4):
                for method, replica in replicas.items():
                    made = await run_local(replica, load, f"{method}-{count}", number)
                    if number:  # kernels are built in the first
                        rates[method].append(made.figures()["tok_s"])
            after = replicas["ngram"].snapshot.metrics
            drafts, right = (
                after[name] - before.get(name, 0.0)
                for name in ("spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total")
            )
            off, on = (statistics.median(rates[method]) for method in methods)
            note = (
                f"{right / max(1.0, drafts):.0%} of {drafts:.0f} guesses right: what a random model says repeats itself"
            )
            notes.add("llm.guessed-tokens", f"{NAME}, {count} streams", off=off, on=on, unit="tokens/s", note=note)
        for replica in replicas.values():
            await replica.close()

    asyncio.run(measure())


def measure(notes: Notes, *, tiny: bool, parts: Sequence[str]) -> None:
    """All of it, or some."""
    folder = Path(tempfile.mkdtemp(prefix="alone-")) / "llama"
    if "guesses" in parts:
        measure_guesses(notes, folder, tiny=tiny)
    if "sampling" in parts:
        measure_sampling(notes, tiny=tiny)
    if "steps" in parts:
        measure_all_steps(notes, folder, tiny=tiny)


def measure_all_steps(notes: Notes, folder: Path, *, tiny: bool) -> None:
    """Steps of the model as it is served, and of others that differ in one thing."""
    from sixfold.core.runtime.quantization.policy import QuantizationPolicy

    make_model(folder, tiny)
    models: dict[str, Any] = {}
    fp8 = QuantizationPolicy.model_validate({"scheme": "fp8", "what": "kv_cache"})
    forms: dict[str, dict[str, Any]] = {
        "": {},
        "stock layers": {"compute_packed": False},
        "fp8 cache": {"quantization": fp8},
    }
    for name, options in forms.items():
        models[name] = load_native(folder, tiny, cache_bytes=(8 << 20) if tiny else (8 << 30), **options)
        models[name].warm_up()
        print(f"{name or 'as served'}: ready", flush=True)
    measure_steps(notes, models, tiny=tiny)
    for model in models.values():
        model.close()
