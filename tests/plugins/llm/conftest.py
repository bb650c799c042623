"""Tiny models with random weights and a byte tokenizer, and a driver that stands for the batch manager."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sixfold.core.batching.model import Finish, Granted
from sixfold.core.errors import RequestError
from sixfold.core.family import LoadContext
from sixfold.core.messages import Request
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.source_ref import resolve_refs
from sixfold.plugins.llm.generation import ChatInput, CompletionInput, Generation, TextDelta
from sixfold.plugins.llm.loader import load
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.sequence import SequenceState

EOS_ID = 257
VOCAB_SIZE = 260
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{{ opening or '' }}{% endif %}"
)

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,  # far apart logits: greedy choices are no toss-ups
    "bos_token_id": 256,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}

_LONG: dict[str, Any] = _SMALL | {"max_position_embeddings": 4096}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_SMALL),
    "llama-long": lambda: transformers.LlamaConfig(**_LONG),
    "llama-tied-bias": lambda: transformers.LlamaConfig(
        **_SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "qwen2": lambda: transformers.Qwen2Config(**_SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**_SMALL),
    "mistral": lambda: transformers.MistralConfig(**_SMALL, sliding_window=None),
    "mistral-sliding": lambda: transformers.MistralConfig(**_SMALL, sliding_window=11),
    "gemma": lambda: transformers.GemmaConfig(**_SMALL),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_SMALL,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
    ),
    "phi3": lambda: transformers.Phi3Config(**_SMALL),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=48,
        n_layer=3,
        n_head=6,
        n_positions=256,
        initializer_range=0.5,
        bos_token_id=256,
        eos_token_id=EOS_ID,
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **_SMALL,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
        attn_logit_softcapping=3.0,  # low enough to change the scores of random weights
        final_logit_softcapping=5.0,
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **_SMALL, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 3
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_SMALL, num_local_experts=4, num_experts_per_tok=2),
}


# Typed in part.
_FAST: Any = PreTrainedTokenizerFast
_MODELS: Any = transformers.AutoModelForCausalLM


def byte_tokenizer() -> Any:
    """Every byte is a token, so characters beyond ASCII are always cut into several."""
    vocab = {char: place for place, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = _FAST(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    assert fast.eos_token_id == EOS_ID
    return fast


def write_model(folder: Path, name: str) -> Path:
    """Saves a random model of one of `CONFIGS`, the same in every run."""
    transformers.set_seed(7)
    config = CONFIGS[name]()
    model = _MODELS.from_config(config)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny model by its name in `CONFIGS`."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_model(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load_folder(path: Path, *, quantization: object = None, **options: Any) -> TransformersModel:
    """Loads a folder in float32 with a small cache."""
    chosen = TransformersOptions.model_validate({"dtype": "float32", "kv_cache_bytes": 1 << 20} | options)
    local = resolve_refs(chosen, lambda ref: Path(ref.source.removeprefix("file:")))
    policy = None if quantization is None else QuantizationPolicy.model_validate(quantization)
    return load(
        LoadContext(model_name="tiny", path=path, device="cpu", num_threads=1, options=local, quantization=policy)
    )


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What a driver run gave for one request."""

    finish: Finish[TextDelta | Generation]
    deltas: tuple[TextDelta, ...]

    @property
    def texts(self) -> list[str]:
        """Texts of the choices."""
        assert isinstance(self.finish.result, Generation)
        return [choice.text for choice in self.finish.result.choices]

    @property
    def generation(self) -> Generation:
        """The result."""
        assert isinstance(self.finish.result, Generation)
        return self.finish.result


def numbered(number: int, item: ChatInput | CompletionInput) -> Request[ChatInput | CompletionInput]:
    """A request of its own id."""
    return Request(request_id=str(number), input=item, arrived_s=0.0)


class Driver:
    """Stands for the batch manager: steps sequences until all are done.

    Args:
        model: The model.
        seed: Of the random schedule; None runs all at once with a large budget.

    Attributes:
        budgets: Fewest and most tokens of a step of a random schedule.
    """

    budgets = (1, 40)

    def __init__(self, model: TransformersModel, seed: int | None = None) -> None:
        self.model = model
        self.random = None if seed is None else random.Random(seed)
        self.deltas: dict[int, list[TextDelta]] = {}
        self.num_preemptions = 0
        self.largest_batch = 0

    def run(self, inputs: Sequence[ChatInput | CompletionInput]) -> list[Driven]:
        """Runs the requests together.

        Raises:
            RequestError: What one of them failed with.
        """
        requests = [numbered(i, item) for i, item in enumerate(inputs)]
        prepared = [[s for piece in self.model.split(r) for s in self.model.prepare(r, piece)] for r in requests]
        owner = {id(s): i for i, sequences in enumerate(prepared) for s in sequences}
        waiting = [s for sequences in prepared for s in sequences]
        running: list[SequenceState] = []
        while waiting or running:
            self._admit(waiting, running)
            self._step(running, owner)
        assert self.model.stats()["kv_blocks_used"] == 0
        return [
            Driven(finish=self.model.finish(r, s), deltas=tuple(self.deltas.get(i, ())))
            for i, (r, s) in enumerate(zip(requests, prepared, strict=True))
        ]

    def _admit(self, waiting: list[SequenceState], running: list[SequenceState]) -> None:
        if self.random is None:
            running.extend(waiting)
            waiting.clear()
        elif waiting and (not running or self.random.random() < 0.4):
            running.append(waiting.pop(self.random.randrange(len(waiting))))
        if self.random is not None and running and self.random.random() < 0.08:
            self._preempt(running)

    def _preempt(self, running: list[SequenceState]) -> None:
        assert self.random is not None
        self.model.preempt(self.random.choice(running))
        self.num_preemptions += 1

    def _step(self, running: list[SequenceState], owner: dict[int, int]) -> None:
        budget = 10_000 if self.random is None else self.random.randint(*self.budgets)
        batch: list[Granted[SequenceState]] = []
        away = 0
        for sequence in running:
            cost = self.model.cost(sequence)
            if cost is None:
                away += 1
                continue
            wanted = min(cost.units, budget)
            if wanted < 1:
                break
            got = self.model.reserve(sequence, wanted)
            if got >= 1:
                batch.append(Granted(sequence, got))
                budget -= got
        if not batch and away:
            self._await_image(running)
            return
        if not batch:  # the cache is full of sequences that all want more
            self.model.preempt(running[-1])
            running.insert(0, running.pop())
            self.num_preemptions += 1
            return
        self.largest_batch = max(self.largest_batch, len(batch))
        for granted, outcome in zip(batch, self.model.step(batch), strict=True):
            if isinstance(outcome.output, TextDelta):
                self.deltas.setdefault(owner[id(granted.sequence)], []).append(outcome.output)
            if outcome.done:
                self.model.release(granted.sequence)
                running.remove(granted.sequence)
            if outcome.error is not None:
                raise outcome.error

    def _await_image(self, running: Sequence[SequenceState]) -> None:
        """Until the model says that a sequence is back."""
        woken = threading.Event()
        self.model.attach(woken.set)
        if all(self.model.cost(sequence) is None for sequence in running):  # or it was back before we listened
            assert woken.wait(60)


@pytest.fixture(scope="session")
def llama(model_folder: Callable[[str], Path]) -> TransformersModel:
    """A tiny loaded model; sequences of several tests may use it one after another."""
    return load_folder(model_folder("llama"))


@pytest.fixture
def run() -> Callable[..., list[Driven]]:
    """Runs requests on a model: ``run(model, inputs, seed=None)``."""

    def run_all(
        model: TransformersModel, inputs: Sequence[ChatInput | CompletionInput], seed: int | None = None
    ) -> list[Driven]:
        return Driver(model, seed).run(inputs)

    return run_all


@pytest.fixture
def error_of() -> Callable[..., RequestError]:
    """Runs one request that must fail."""

    def failing(model: TransformersModel, item: ChatInput | CompletionInput) -> RequestError:
        with pytest.raises(RequestError) as caught:
            Driver(model).run([item])
        return caught.value

    return failing


@pytest.fixture(scope="session")
def load_tiny() -> Callable[..., TransformersModel]:
    """Loads a folder: ``load_tiny(path, **options)``."""
    return load_folder


@pytest.fixture
def driver() -> type[Driver]:
    """The driver's class."""
    return Driver
