"""Tiny sentence-transformers folders with random weights, and a driver that takes a request through a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from sixfold.core.batching.model import Finish, Granted
from sixfold.core.family import LoadContext
from sixfold.core.messages import Request
from sixfold.plugins.embedding.loader import load
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput

WORDS = [f"w{n}" for n in range(90)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # ids 0-3, as in RoBERTa
MAX_TOKENS = 60
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "vocab_size": 94}

ARCHITECTURES: dict[str, Any] = {
    "bert": BertConfig(**SMALL, **IDS, max_position_embeddings=64),
    "roberta": RobertaConfig(**SMALL, **IDS, max_position_embeddings=66, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SMALL, **IDS, max_position_embeddings=66, type_vocab_size=1),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, **IDS),
    "modernbert": ModernBertConfig(**SMALL, **IDS, local_attention=16),
    "mpnet": MPNetConfig(**SMALL, **IDS, max_position_embeddings=66),
    "llama": LlamaConfig(**SMALL, **IDS, num_key_value_heads=2, max_position_embeddings=64),
    "qwen2": Qwen2Config(**SMALL, **IDS, num_key_value_heads=2, max_position_embeddings=64),
    "qwen3": Qwen3Config(**SMALL, **IDS, num_key_value_heads=2, head_dim=8, max_position_embeddings=64),
}


def _tokenizer(architecture: str) -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "$A </s>" if architecture == "qwen3" else "<s> $A </s>"
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    backend: Any = PreTrainedTokenizerFast
    return backend(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


SaveModel = Callable[..., Path]


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Makes a folder: ``save_model("bert", pooling="cls", dense=16, normalize=False, prompts={...})``."""

    def save(
        architecture: str = "bert",
        *,
        pooling: Any = "mean",
        dense: int | None = None,
        normalize: bool = True,
        include_prompt: bool = True,
        prompts: dict[str, str] | None = None,
    ) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        torch.default_generator.manual_seed(7)
        auto: Any = AutoModel
        network = auto.from_config(ARCHITECTURES[architecture])
        for parameter in network.parameters():
            parameter.data.normal_(std=0.25)  # the library's own start is so flat that any two texts look alike
        network.save_pretrained(folder)
        _tokenizer(architecture).save_pretrained(folder)
        parts: list[Any] = [
            Transformer(str(folder), max_seq_length=MAX_TOKENS),
            Pooling(32, pooling_mode=pooling, include_prompt=include_prompt),
        ]
        if dense is not None:
            parts.append(Dense(parts[1].get_embedding_dimension(), dense))
        if normalize:
            parts.append(Normalize())
        saved = folder / "saved"
        SentenceTransformer(modules=parts, prompts=prompts, device="cpu").save(str(saved))
        return saved

    return save


@pytest.fixture(scope="session")
def bert_path(save_model: SaveModel) -> Path:
    return save_model("bert", prompts={"query": "w1 w2", "document": ""})


@pytest.fixture(scope="session")
def bert(bert_path: Path) -> Iterator[EmbeddingModel]:
    model = load_model(bert_path)
    yield model
    model.close()


@pytest.fixture
def drive() -> Callable[[EmbeddingModel, EmbeddingInput], Finish[EmbeddingOutput]]:
    return run_request


@pytest.fixture
def load_folder() -> Callable[..., EmbeddingModel]:
    return load_model


@pytest.fixture
def encode() -> Callable[..., NDArray[np.float32]]:
    """Vectors of texts: ``encode(model, texts, prompt_name=...)``."""

    def run(model: EmbeddingModel, texts: list[str], **wanted: Any) -> NDArray[np.float32]:
        result = run_request(model, EmbeddingInput(texts=tuple(texts), **wanted)).result
        return np.frombuffer(result.vectors, "<f4").reshape(len(texts), result.dimension)

    return run


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of 1 to 58 words, many of near-equal length, in no order."""
    random = np.random.default_rng(3)
    counts = [1, 58, 2, 2, 3, 17, 18, 19, 20, 40, 41, 44, 5, 30, 31, 58, 9]
    return [" ".join(random.choice(WORDS, size=count)) for count in counts]


def load_model(path: Path, **options: Any) -> EmbeddingModel:
    context = LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=EmbeddingOptions(**options))
    return load(context)


def run_request(model: EmbeddingModel, wanted: EmbeddingInput) -> Finish[EmbeddingOutput]:
    """What the batch manager does with a request, in one thread and one step."""
    request: Request[Any] = Request(request_id="r", input=wanted, arrived_s=0.0)
    sequences = [s for piece in model.split(request) for s in model.prepare(request, piece)]
    outcomes = model.step([Granted(s, len(s.token_ids)) for s in sequences])
    assert all(outcome.done and outcome.error is None for outcome in outcomes)
    for sequence in sequences:
        model.release(sequence)
    finished: Any = model.finish(request, sequences)
    found: Finish[EmbeddingOutput] = finished
    return found


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
