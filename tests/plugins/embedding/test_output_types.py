"""Sparse and token vectors equal sentence-transformers' SparseEncoder and MultiVectorEncoder, and BGE-M3's formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM

from sixfold.core.batching.model import Granted
from sixfold.core.errors import InvalidRequest, SourceError, StepFailed
from sixfold.core.messages import Request
from sixfold.plugins.embedding.encoder import Encoder, EncoderInput, Outputs
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.rerank.schema import ScoreInput
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput
from sixfold.plugins.embedding.sequence import EmbeddingSequence
from tests.plugins.embedding import rerank_models as tiny


def save_base(folder: Path, architecture: str, auto: Any) -> Path:
    torch.default_generator.manual_seed(7)
    network = auto.from_config(tiny.CLASSIFIERS[architecture]())
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    network.save_pretrained(folder)
    tiny.tokenizer(architecture).save_pretrained(folder)
    return folder


def save_sparse(folder: Path, architecture: str = "bert", **pooling: Any) -> Path:
    library: Any = SparseEncoder(str(save_base(folder, architecture, AutoModelForMaskedLM)), device="cpu")
    SparseEncoder(modules=[library[0], SpladePooling(**pooling)], device="cpu").save(str(folder / "saved"))
    return folder / "saved"


def save_multi_vector(folder: Path, architecture: str = "bert", **knobs: Any) -> Path:
    library: Any = MultiVectorEncoder(str(save_base(folder, architecture, AutoModel)), device="cpu")
    for name, value in knobs.items():
        setattr(library[0], name, value)
    library.save(str(folder / "saved"))
    return folder / "saved"


def run(model: EmbeddingModel, wanted: EmbeddingInput) -> EmbeddingOutput:
    request: Request[Any] = Request(request_id="r", input=wanted, arrived_s=0.0)
    sequences = [s for piece in model.split(request) for s in model.prepare(request, piece)]
    assert all(outcome.done and outcome.error is None for outcome in model.step([Granted(s, 1) for s in sequences]))
    result = model.finish(request, sequences).result
    assert isinstance(result, EmbeddingOutput)
    return result


def densified(output: EmbeddingOutput, size: int) -> Any:
    rows = np.zeros((len(output.sparse), size), dtype=np.float32)
    for row, vector in zip(rows, output.sparse, strict=True):
        row[np.frombuffer(vector.indices, "<i4")] = np.frombuffer(vector.values, "<f4")
    return rows


def token_vectors(output: EmbeddingOutput) -> list[Any]:
    return [np.frombuffer(rows, "<f4").reshape(-1, output.multi_dimension) for rows in output.multi_vectors]


@pytest.mark.parametrize(
    ("architecture", "pooling", "mode"),
    [
        ("bert", {}, "fused"),
        ("bert", {"pooling_strategy": "sum"}, "fused"),
        ("distilbert", {"activation_function": "log1p_relu"}, "packed"),
        ("modernbert", {}, "packed"),
        ("mpnet", {}, "grouped"),
    ],
)
def test_sparse_vectors_equal_the_librarys(
    architecture: str, pooling: dict[str, str], mode: str, tmp_path: Path, load_folder: Any, texts: list[str]
) -> None:
    path = save_sparse(tmp_path, architecture, **pooling)
    model = load_folder(path)
    assert model.info.details["execution"] == mode
    assert model.info.details["output_types"] == "sparse"
    output = run(model, EmbeddingInput(texts=tuple(texts), output_types=("sparse",)))
    library: Any = SparseEncoder(str(path), device="cpu")
    expected = library.encode(texts, convert_to_sparse_tensor=False, show_progress_bar=False).numpy()
    np.testing.assert_allclose(densified(output, 94), expected, atol=2e-5, rtol=1e-5)
    assert output.vectors == b""


@pytest.mark.parametrize(("architecture", "mode"), [("bert", "fused"), ("modernbert", "packed"), ("mpnet", "grouped")])
@pytest.mark.parametrize("task", [None, "query", "document"])
def test_token_vectors_equal_the_librarys(
    architecture: str, mode: str, task: Any, tmp_path: Path, load_folder: Any, texts: list[str]
) -> None:
    path = save_multi_vector(tmp_path, architecture)
    model = load_folder(path)
    assert model.info.details["execution"] == mode
    wanted = EmbeddingInput(texts=tuple(texts), output_types=("multi_vector",), input_type=task)
    library: Any = MultiVectorEncoder(str(path), device="cpu")
    encode = {None: library.encode, "query": library.encode_query, "document": library.encode_document}[task]
    for found, expected in zip(token_vectors(run(model, wanted)), encode(texts, show_progress_bar=False), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_text_that_shared_a_tile_with_a_broken_one_is_computed_again(
    tmp_path: Path, load_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_folder(save_multi_vector(tmp_path))
    model._encoder.forward.model.get_input_embeddings().weight.data[5] = float("nan")
    sequences = [EmbeddingSequence(np.array(ids), 0, ("multi_vector",)) for ids in ([0, 4, 2], [0, 5, 2], [0, 6, 2])]
    encode, broken = Encoder.encode, Outputs(dense=np.full(1, np.nan, np.float32))

    def encode_in_one_tile(encoder: Encoder, inputs: Sequence[EncoderInput]) -> list[Outputs]:
        found = encode(encoder, inputs)
        return found if all(each.is_finite for each in found) else [broken] * len(found)

    monkeypatch.setattr(Encoder, "encode", encode_in_one_tile)
    outcomes = model.step([Granted(sequence, 3) for sequence in sequences])

    assert [type(outcome.error) for outcome in outcomes] == [type(None), StepFailed, type(None)]
    assert [sequence.outputs.is_finite for sequence in sequences] == [True, False, True]


def test_queries_are_expanded_and_cut_as_in_the_library(tmp_path: Path, load_folder: Any, texts: list[str]) -> None:
    knobs = {"strategy": "fixed", "attend": True, "length": 12, "token": "w9"}
    path = save_multi_vector(tmp_path, query_expansion=knobs, document_length=10)
    model = load_folder(path)
    library: Any = MultiVectorEncoder(str(path), device="cpu")
    for task, encode in (("query", library.encode_query), ("document", library.encode_document)):
        wanted: Any = {"output_types": ("multi_vector",), "input_type": task, "truncate_tokens": -1}
        found = token_vectors(run(model, EmbeddingInput(texts=tuple(texts), **wanted)))
        for mine, expected in zip(found, encode(texts, show_progress_bar=False), strict=True):
            np.testing.assert_allclose(mine, expected, atol=1e-5)
    with pytest.raises(InvalidRequest, match="takes 12"):
        run(model, EmbeddingInput(texts=("w1 " * 20,), output_types=("multi_vector",), input_type="query"))


def test_expansion_that_others_do_not_see_is_refused(tmp_path: Path, load_folder: Any) -> None:
    knobs = {"strategy": "fixed", "attend": False, "length": 12, "token": "w9"}
    with pytest.raises(SourceError, match="attend=False"):
        load_folder(save_multi_vector(tmp_path, query_expansion=knobs))


def test_late_interaction_scores_equal_the_librarys(tmp_path: Path, load_folder: Any, texts: list[str]) -> None:
    path = save_multi_vector(tmp_path)
    model = load_folder(path)
    library: Any = MultiVectorEncoder(str(path), device="cpu")
    assert model.info.details["reranks"] is True
    found = tiny.scores_of(model, ScoreInput(queries=("w3 w5",), documents=tuple(texts)))
    queries = library.encode_query(["w3 w5"])
    expected = library.similarity(queries, library.encode_document(texts))
    np.testing.assert_allclose(found, expected[0].numpy(), atol=2e-5, rtol=1e-5)


def test_sparse_scores_equal_the_librarys(tmp_path: Path, load_folder: Any, texts: list[str]) -> None:
    path = save_sparse(tmp_path)
    model = load_folder(path)
    assert model.info.details["reranks"] is False
    library: Any = SparseEncoder(str(path), device="cpu")
    expected = library.similarity(library.encode_query(["w3 w5"]), library.encode_document(texts))
    found = tiny.scores_of(model, ScoreInput(queries=("w3 w5",), documents=tuple(texts)))
    np.testing.assert_allclose(found, expected.to_dense()[0].numpy(), rtol=1e-4)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_dense_scores_equal_the_librarys(
    similarity: Any, save_model: Any, load_folder: Any, texts: list[str], tmp_path: Path
) -> None:
    library: Any = SentenceTransformer(
        str(save_model("bert", normalize=False, prompts={"query": "w1 w2 ", "passage": "w3 "})), device="cpu"
    )
    library.similarity_fn_name = similarity
    library.save(str(tmp_path / "saved"))
    model = load_folder(tmp_path / "saved", rerank_by_similarity=True)
    assert model.info.details["reranks"] is True
    found = tiny.scores_of(model, ScoreInput(queries=("w3 w5",), documents=tuple(texts), truncate_tokens=-1))
    expected = library.similarity(library.encode_query(["w3 w5"]), library.encode_document(texts))
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def m3_path(save_model: Any) -> Path:
    path: Path = save_model("xlm-roberta", pooling="cls")
    torch.default_generator.manual_seed(3)
    torch.save(nn.Linear(32, 1).state_dict(), path / "sparse_linear.pt")
    torch.save(nn.Linear(32, 24).state_dict(), path / "colbert_linear.pt")
    return path


def test_a_model_with_all_three_gives_them_from_one_pass(m3_path: Path, load_folder: Any, texts: list[str]) -> None:
    model = load_folder(m3_path)
    assert model.info.details["output_types"] == "dense,sparse,multi_vector"
    everything = EmbeddingInput(texts=tuple(texts), output_types=("sparse", "dense", "multi_vector"))
    output = run(model, everything)
    library: Any = SentenceTransformer(str(m3_path), device="cpu")
    dense = np.frombuffer(output.vectors, "<f4").reshape(len(texts), -1)
    np.testing.assert_allclose(dense, library.encode(texts, show_progress_bar=False), atol=1e-5)
    sparse_linear, colbert_linear = (
        torch.load(m3_path / name, weights_only=True) for name in ("sparse_linear.pt", "colbert_linear.pt")
    )
    sparse, multi = densified(output, 94), token_vectors(output)
    for index, text in enumerate(texts):
        tokens = library.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = library[0].auto_model(**tokens).last_hidden_state[0]
        weights = (hidden @ sparse_linear["weight"].T + sparse_linear["bias"]).relu()[:, 0]
        expected = np.zeros(94, dtype=np.float32)
        for token, weight in zip(tokens["input_ids"][0].tolist(), weights.tolist(), strict=True):
            if token > 3:  # no special token
                expected[token] = max(expected[token], weight)
        np.testing.assert_allclose(sparse[index], expected, atol=1e-5)
        vectors = nn.functional.normalize(hidden[1:] @ colbert_linear["weight"].T + colbert_linear["bias"], dim=-1)
        np.testing.assert_allclose(multi[index], vectors.numpy(), atol=1e-5)


def test_what_a_model_lacks_is_refused_by_name(bert: EmbeddingModel, tmp_path: Path, load_folder: Any) -> None:
    lacking: Any
    for model, lacking in ((bert, "sparse"), (bert, "multi_vector"), (load_folder(save_sparse(tmp_path)), "dense")):
        wanted: Any = EmbeddingInput(texts=("w1",), output_types=(lacking,))
        with pytest.raises(InvalidRequest, match=f"has no {lacking} vectors") as caught:
            run(model, wanted)
        assert caught.value.param == "output_types"


def test_dimensions_cut_dense_vectors_alone(m3_path: Path, load_folder: Any) -> None:
    with pytest.raises(InvalidRequest, match="dense vectors alone"):
        run(load_folder(m3_path), EmbeddingInput(texts=("w1",), output_types=("dense", "sparse"), dimensions=8))


def test_a_head_that_is_no_linear_layer_is_refused(m3_path: Path, load_folder: Any) -> None:
    (m3_path / "sparse_linear.pt").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"sparse_linear\.pt"):
        load_folder(m3_path)
