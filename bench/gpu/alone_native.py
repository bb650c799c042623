"""The native language family: each optimisation of its steps alone, in turns, Llama-3.2-1B's shape; see `alone.py`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from alone_timing import Notes, Way, interleave
from vllm_overhead import load_native, make_model

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


def measure(notes: Notes, *, tiny: bool) -> None:
    """All of it."""
    from sixfold.core.runtime.quantization.policy import QuantizationPolicy

    folder = Path(tempfile.mkdtemp(prefix="alone-")) / "llama"
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
    measure_sampling(notes, tiny=tiny)
    for model in models.values():
        model.close()
