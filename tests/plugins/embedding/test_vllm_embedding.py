"""What the vLLM family makes of embedding requests and of a model's files, with a fake in the engine's place."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from sixfold.core.batching.model import DeviceLost, Finish, ModelInfo
from sixfold.core.errors import ConfigError, ContextLengthExceeded, InvalidRequest, SourceError, StepFailed
from sixfold.core.family import ModelFiles
from sixfold.core.messages import Request
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput, ImageItem
from sixfold.plugins.embedding.tokenizing import Prompts
from sixfold.plugins.embedding.vllm_loader import (
    engine_arguments,
    normalizes_vectors,
    read_prompts,
    read_tokenizer,
    refuse_unpooled_prompts,
)
from sixfold.plugins.embedding.vllm_model import VllmEmbeddingModel
from sixfold.plugins.embedding.vllm_options import VllmEmbeddingOptions

WORDS = "[unk] query: a b c d".split()


class Dead(Exception):
    """The engine is gone."""


class Refused(Exception):
    """The engine refuses a request."""


class FakeEmbedder:
    """The vector of an input is its length, its first id, and 0; ``trouble`` is raised for inputs of one token."""

    def __init__(self) -> None:
        self.asked: dict[str, list[int]] = {}
        self.trouble: Exception | None = None
        self.held = False
        self.aborted: list[str] = []

    async def embed(self, token_ids: list[int], request_id: str) -> NDArray[np.float32]:
        self.asked[request_id] = token_ids
        if self.trouble is not None and len(token_ids) == 1:
            raise self.trouble
        if self.held or self.trouble is not None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.aborted.append(request_id)
                raise
        return np.array([len(token_ids), token_ids[0], 0], dtype=np.float32)

    def is_dead(self, error: BaseException) -> bool:
        return isinstance(error, Dead)

    def is_refusal(self, error: BaseException) -> bool:
        return isinstance(error, Refused)

    def shutdown(self) -> None:
        self.aborted.append("all")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An embedder's folder without weights."""
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    own = {"prompts": {"query": "query: ", "document": ""}, "similarity_fn_name": "cosine"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(own))
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    return tmp_path


@pytest.fixture
def engine() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def model(folder: Path, engine: FakeEmbedder) -> VllmEmbeddingModel:
    files = ModelFiles(folder)
    return VllmEmbeddingModel(
        engine=engine,
        info=ModelInfo(),
        tokenizer=read_tokenizer(files, None, max_model_len=100, vocabulary_size=len(WORDS)),
        prompts=read_prompts(files, None),
        max_inputs=3,
        dimension=3,
        normalizes=True,
        max_running_requests=4,
    )


async def run(model: VllmEmbeddingModel, **wanted: Any) -> tuple[NDArray[np.float32], Finish[EmbeddingOutput]]:
    """The vectors of a request and its end."""
    asked = Request(request_id="r", input=EmbeddingInput(**wanted), arrived_s=0.0)
    (end,) = [output async for output in model.generate(asked, model.prepare(asked))]
    return np.frombuffer(end.result.vectors, "<f4").reshape(-1, end.result.dimension), end


async def test_vectors_come_in_the_order_of_the_texts_and_tokens_are_counted(model: VllmEmbeddingModel) -> None:
    vectors, end = await run(model, texts=("a b", "c"))
    assert vectors.tolist() == [[2, 2, 0], [1, 4, 0]]
    assert end.usage.counts == {"prompt_tokens": 3}
    assert model.stats() == {"embedding_inputs_total": 2, "embedding_tokens_total": 3}


async def test_a_prompt_goes_before_the_text(model: VllmEmbeddingModel, engine: FakeEmbedder) -> None:
    await run(model, texts=("a",), input_type="query")
    assert engine.asked == {"r-0": [1, 2]}


async def test_token_ids_are_taken_as_they_are(model: VllmEmbeddingModel, engine: FakeEmbedder) -> None:
    await run(model, token_ids=((5, 4),))
    assert engine.asked == {"r-0": [5, 4]}


async def test_cut_vectors_have_length_1_again(model: VllmEmbeddingModel) -> None:
    vectors, _ = await run(model, texts=("a b",), dimensions=1)
    assert vectors.tolist() == [[1.0]]


async def test_a_long_text_is_refused_or_cut_as_it_is_asked(model: VllmEmbeddingModel, engine: FakeEmbedder) -> None:
    with pytest.raises(ContextLengthExceeded):
        await run(model, texts=("a b c d a",))
    await run(model, texts=("a b c d a",), truncate_tokens=-1)
    assert engine.asked == {"r-0": [2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"items": (ImageItem(),)}, "input"),
        ({"texts": ("a",) * 4}, "input"),
        ({"texts": ("a",), "output_types": ("sparse",)}, "output_types"),
        ({"texts": ("a",), "dimensions": 4}, "dimensions"),
        ({"texts": ("a",), "prompt_name": "nope"}, "prompt_name"),
        ({"token_ids": ((99,),)}, "input"),
    ],
)
async def test_what_can_not_be_honoured_is_refused(
    model: VllmEmbeddingModel, wanted: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as failure:
        await run(model, **wanted)
    assert failure.value.param == param


@pytest.mark.parametrize(
    ("trouble", "expected"), [(Dead(), DeviceLost), (Refused("no"), InvalidRequest), (KeyError("bug"), KeyError)]
)
async def test_an_engines_trouble_is_told_apart_and_ends_the_other_inputs(
    model: VllmEmbeddingModel, engine: FakeEmbedder, trouble: Exception, expected: type[Exception]
) -> None:
    engine.trouble = trouble
    with pytest.raises(expected):
        await run(model, texts=("a b", "c"))
    await asyncio.sleep(0)
    assert engine.aborted == ["r-0"]


async def test_a_client_that_leaves_aborts_all_inputs(model: VllmEmbeddingModel, engine: FakeEmbedder) -> None:
    engine.held = True
    task = asyncio.create_task(run(model, texts=("a b", "c")))
    while len(engine.asked) < 2:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sorted(engine.aborted) == ["r-0", "r-1"]


async def test_a_vector_that_is_not_finite_fails_the_request(
    model: VllmEmbeddingModel, engine: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_token_ids: list[int], _request_id: str) -> NDArray[np.float32]:
        return np.full(3, np.nan, dtype=np.float32)

    monkeypatch.setattr(engine, "embed", broken)
    with pytest.raises(StepFailed):
        await run(model, texts=("a",))


# The model's files.


def test_the_folder_says_what_sentence_transformers_would(folder: Path) -> None:
    files = ModelFiles(folder)
    assert normalizes_vectors(files)
    assert read_prompts(files, "query") == Prompts(texts={"query": "query: ", "document": ""}, default_name="query")
    with pytest.raises(ConfigError, match="the model has: 'query', 'document'"):
        read_prompts(files, "nope")


def test_a_folder_without_normalize_does_not_normalize_and_one_without_modules_does(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    assert not normalizes_vectors(ModelFiles(folder))
    (folder / "modules.json").unlink()
    assert normalizes_vectors(ModelFiles(folder))


def test_a_model_that_leaves_its_prompt_out_of_pooling_is_refused(folder: Path) -> None:
    refuse_unpooled_prompts(ModelFiles(folder))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"include_prompt": false}')
    with pytest.raises(SourceError, match="native family"):
        refuse_unpooled_prompts(ModelFiles(folder))


def test_the_operators_limit_may_only_be_shorter(folder: Path) -> None:
    files = ModelFiles(folder)
    assert read_tokenizer(files, 3, max_model_len=100, vocabulary_size=9).max_tokens == 3
    with pytest.raises(ConfigError, match="at most 4 tokens"):
        read_tokenizer(files, 5, max_model_len=100, vocabulary_size=9)


def test_arguments_that_would_be_ignored_are_refused() -> None:
    known = "dtype seed runner block_size".split()

    def arguments(**engine_args: Any) -> dict[str, Any]:
        options = VllmEmbeddingOptions(engine_args=engine_args)
        return engine_arguments(options, Path("/m"), known, "m")

    assert arguments(seed=3)["seed"] == 3
    assert (arguments()["runner"], arguments()["convert"]) == ("pooling", "embed")
    with pytest.raises(ConfigError, match=r"is no argument of this vLLM\. Did you mean 'block_size'"):
        arguments(blok_size=1)
    with pytest.raises(ConfigError, match="is set by the family or an option"):
        arguments(dtype="float32")
