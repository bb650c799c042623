"""Decoders whose long prompts several ranks compute, beside the same decoders in one process; runs in every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from sixfold.core.errors import SixfoldError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.loader import load
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.rank_loader import load_rank
from tests.core.parallel.orders import FakeLeader, follow
from tests.plugins.llm.conftest import Driver

MIN_TOKENS = 24
FIRST = Degrees(context=2)
CACHE_OF_BYTES = QuantizationPolicy.model_validate({"scheme": "int8", "what": "kv_cache"})
Case = Callable[[TransformersModel, FakeLeader], Any]


def context_of(path: Path, leader: FakeLeader | None, quantization: QuantizationPolicy | None) -> LoadContext:
    parallel: Any = leader
    return LoadContext(
        model_name="tiny",
        path=path,
        device="cpu",
        num_threads=1,
        options=TransformersOptions(dtype="float32", kv_cache_bytes=1 << 20, parallel_prompt_tokens=MIN_TOKENS),
        quantization=quantization,
        parallel=parallel,
    )


def run_case(
    path: Path,
    case: Case,
    mesh: Mesh,
    *,
    followers_path: Path | None = None,
    quantization: QuantizationPolicy | None = None,
) -> Any:
    """What the case gives in rank 0; None in the others, which follow. An error of loading is given as its text."""
    if mesh.rank > 0:
        follow(mesh, load_rank(context_of(followers_path or path, None, quantization)))
        return None
    leader = FakeLeader(mesh)
    try:
        model = load(context_of(path, leader, quantization))
        return case(model, leader)
    except SixfoldError as error:
        return str(error)
    finally:
        leader.close()


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def asked(length: int, seed: int, max_tokens: int = 6, **more: Any) -> CompletionInput:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return CompletionInput(prompts=(prompt(length, seed),), params=params, stream=True, **more)


def head_of(item: CompletionInput, length: int) -> CompletionInput:
    """A prompt that is the begin of another's."""
    tokens = item.prompts[0][:length]
    return msgspec.structs.replace(item, prompts=(tokens,))


COMPANY = [asked(150, 1), asked(7, 2, 20), asked(90, 3), asked(3, 4, 20), asked(40, 5), asked(150, 1)]

# The first is too short to be divided, and fills a block with which the second begins in the same step; the last is the second.
TOGETHER = [head_of(asked(150, 6), 20), asked(150, 6), asked(5, 7, 20), asked(110, 8), asked(150, 6)]


def answers_in_company(model: TransformersModel, leader: FakeLeader) -> Any:
    """Answers of prompts long and short, in one large step and in random ones; how many were divided, and what else happened."""
    before = leader.num_orders
    at_once = answers_alone(model, TOGETHER)
    num_at_once = leader.num_orders - before
    driver = WideDriver(model, seed=3)
    texts = [driven.texts for driven in driver.run(COMPANY)]
    num_found = model.stats()["prefix_cache_hits_total"]
    return at_once, num_at_once, texts, leader.num_orders - num_at_once - before, driver.num_preemptions, num_found


def answers_alone(model: TransformersModel, company: Sequence[CompletionInput]) -> list[list[str]]:
    return [driven.texts for driven in Driver(model).run(company)]


class WideDriver(Driver):
    """Steps of enough tokens for a divided chunk beside decodes."""

    budgets = (30, 80)


def logits_of_chunks(model: TransformersModel, leader: FakeLeader) -> Any:
    """Logits after a prompt that is cut in several ways."""
    decoder: Any = model._decoder
    tokens = list(prompt(131, 9))
    return [decoder.run([tokens], chunks).tolist() for chunks in CUTS]


CUTS = ((131,), (60, 71), (25, 31, 1, 74), (33, 33, 33, 32), (130, 1))


def facts(model: TransformersModel, leader: FakeLeader) -> Any:
    """What loading says, where loading is the point: ranks were tried, then."""
    assert leader.num_orders > 0
    return model.info.details["kv_cache_tokens"]


def all_cases(folders: dict[str, Path], mesh: Mesh) -> dict[str, Any]:
    """What every case of this mesh gives."""

    def run(name: str, case: Case, **more: Any) -> Any:
        return run_case(folders[name], case, mesh, **more)

    name = "llama" if mesh.degrees.context == 2 else "qwen3"
    found = {"company": run(name, answers_in_company), "logits": run(name, logits_of_chunks)}
    if mesh.degrees == FIRST:
        found["window"] = run("mistral-sliding", facts)
        found["other weights"] = run("llama", facts, followers_path=folders["qwen3"])
        found["cache of bytes"] = run("llama", logits_of_chunks, quantization=CACHE_OF_BYTES)
    return found
