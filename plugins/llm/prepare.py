"""From a request to sequences: render, tokenize, check against the context, resolve the sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest
from sixfold.core.messages import Usage
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.detokenizer import Detokenizer
from sixfold.plugins.llm.generation import ChatInput, CompletionInput, SamplingParams
from sixfold.plugins.llm.image_placer import ImagePlacer, PlacedPrompt
from sixfold.plugins.llm.lora_adapter import Adapter
from sixfold.plugins.llm.lora_table import AdapterTable
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.reasoning import CLOSES, OPENS, num_reasoning_tokens, opens_in_reasoning
from sixfold.plugins.llm.sampling import SamplingDefaults, resolve_sampling
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.stop import StopMatcher
from sixfold.plugins.llm.text_codec import TextCodec

# English text has about four characters per token; a chat template adds a few tokens per turn.
_CHARS_PER_TOKEN = 4
_TOKENS_PER_TURN = 8
# What an answer of unknown length is taken for in admission.
_TYPICAL_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """One prompt of a completion request."""

    index: int
    prompt: str | tuple[int, ...]


def split_input(request_input: ChatInput | CompletionInput) -> Sequence[object]:
    """One piece per prompt; a conversation is one piece."""
    if isinstance(request_input, ChatInput):
        return (request_input,)
    return tuple(PromptPiece(index, prompt) for index, prompt in enumerate(request_input.prompts))


def estimate_tokens(request_input: ChatInput | CompletionInput, max_model_len: int, tokens_per_image: int = 0) -> int:
    """Guesses prompt and answer tokens of all choices from lengths alone."""
    if isinstance(request_input, ChatInput):
        tools = sum(len(str(tool.parameters)) // _CHARS_PER_TOKEN for tool in request_input.tools)
        text = sum(len(m.content) // _CHARS_PER_TOKEN + _TOKENS_PER_TURN for m in request_input.messages)
        images = tokens_per_image * sum(len(m.images) for m in request_input.messages)
        sizes = [tools + text + images]
    else:
        sizes = [len(p) // _CHARS_PER_TOKEN + 1 if isinstance(p, str) else len(p) for p in request_input.prompts]
    wanted = request_input.params.max_tokens
    answer = _TYPICAL_ANSWER_TOKENS if wanted is None else wanted
    return max(1, sum(min(size + answer, max_model_len) for size in sizes) * request_input.num_choices)


class Preparer:
    """Makes the sequences of one model. Called by several pool threads at once; holds no state that changes.

    Args:
        codec: The model's tokenizer.
        conversations: Writes prompts of chats, and grammars.
        defaults: The model's sampling defaults.
        eos_ids: The model's end tokens.
        vocab_size: Rows of the output head; larger token ids are refused.
        max_model_len: Longest prompt plus answer.
        prefix: Who shares cache blocks with whom.
        images: Puts images into prompts; None if the model reads text only.
        adapters: Of the native runtime; None where the engine has them, or there are none.
    """

    def __init__(
        self,
        *,
        codec: TextCodec,
        conversations: ConversationWriter,
        defaults: SamplingDefaults,
        eos_ids: tuple[int, ...],
        vocab_size: int,
        max_model_len: int,
        prefix: PrefixSharing,
        images: ImagePlacer | None = None,
        adapters: AdapterTable | None = None,
    ) -> None:
        self._codec = codec
        self._conversations = conversations
        self._defaults = defaults
        self._eos_ids = eos_ids
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._prefix = prefix
        self._images = images
        self._adapters = adapters

    def prepare(self, request_input: ChatInput | CompletionInput, piece: object, *, tenant: str) -> list[SequenceState]:
        """The sequences of one piece: one per choice.

        Args:
            request_input: The request's.
            piece: See `split_input`.
            tenant: Identity of the API key.

        Raises:
            ContextLengthExceeded: Prompt and answer do not fit.
            InvalidRequest: The template rejects the conversation, a token id is out of range, a grammar is wrong, or an
                image can't be read.
            ModelNotFound: The adapter was unloaded meanwhile.
        """
        if isinstance(request_input, ChatInput):
            text = self._conversations.render(request_input)
            prompt_ids = self._codec.encode(text, add_special_tokens=False)
            opens = self._conversations.thinks and opens_in_reasoning(text)
            parts = [image for message in request_input.messages for image in message.images]
            prompt = PlacedPrompt(token_ids=prompt_ids)
            if parts and self._images is not None:
                prompt = self._images.place(prompt_ids, parts, num_holders=request_input.num_choices)
            return self._sequences(request_input, prompt, tenant=tenant, param="messages", opens_in_reasoning=opens)
        assert isinstance(piece, PromptPiece)
        if isinstance(piece.prompt, str):
            prompt_ids = self._codec.encode(piece.prompt, add_special_tokens=True)
            echo_text = piece.prompt
        else:
            prompt_ids = list(piece.prompt)
            self._check_ids(prompt_ids, "prompt")
            echo_text = self._codec.decode(prompt_ids) if request_input.echo else ""
        return self._sequences(
            request_input,
            PlacedPrompt(token_ids=prompt_ids),
            tenant=tenant,
            param="prompt",
            first_choice=piece.index * request_input.num_choices,
            echo_text=echo_text if request_input.echo else "",
        )

    def usage(self, sequences: Sequence[SequenceState]) -> Usage:
        """The counted tokens of a request's finished sequences."""
        first_of_prompts = [sequence for sequence in sequences if sequence.counts_prompt]
        reasoning = (
            self.num_reasoning_tokens(s.output_ids, opens_in_reasoning=s.opens_in_reasoning) for s in sequences
        )
        counts = {
            "prompt_tokens": sum(s.num_prompt_tokens for s in first_of_prompts),
            "completion_tokens": sum(s.num_output_tokens for s in sequences),
            "cached_tokens": sum(s.num_cached or 0 for s in first_of_prompts),
            "reasoning_tokens": sum(reasoning),
        }
        return Usage(counts=counts)

    def num_reasoning_tokens(self, token_ids: Sequence[int], *, opens_in_reasoning: bool) -> int:
        """How many of an answer's tokens are reasoning."""
        if not self._conversations.thinks:
            return 0
        return num_reasoning_tokens(
            token_ids,
            self._codec.token_id(CLOSES),
            opens_in=opens_in_reasoning,
            opening_id=self._codec.token_id(OPENS),
        )

    def _sequences(
        self,
        request_input: ChatInput | CompletionInput,
        prompt: PlacedPrompt,
        *,
        tenant: str,
        param: str,
        first_choice: int = 0,
        echo_text: str = "",
        opens_in_reasoning: bool = False,
    ) -> list[SequenceState]:
        params, prompt_ids = request_input.params, prompt.token_ids
        self._check_ids([token for token, _ in params.logit_bias], "logit_bias")
        self._check_ids(params.stop_token_ids, "stop_token_ids")
        max_output_tokens = self._output_limit(params, len(prompt_ids), param)
        is_echo = isinstance(request_input, CompletionInput) and request_input.echo
        scores_prompt = is_echo and params.num_top_logprobs is not None
        adapter = self._adapter(request_input)
        identity = None if adapter is None else adapter.identity
        # What is found in the cache has no logits: a prompt that is judged is computed whole.
        salt = None if scores_prompt else self._prefix.salt(tenant, request_input.cache_salt, identity)
        block_hashes = self._prefix.hashes(prompt_ids, salt, prompt.images)
        decode = self._codec.decode_with(self._conversations.kept_markers(request_input))
        sequences = [
            SequenceState(
                choice=first_choice + place,
                prompt_ids=prompt_ids,
                sampling=resolve_sampling(params, self._defaults, eos_ids=self._eos_ids, choice=first_choice + place),
                max_output_tokens=max_output_tokens,
                detokenizer=Detokenizer(decode, prompt_ids, self._codec.piece),
                stop=StopMatcher(params.stop),
                counts_prompt=place == 0,
                stream=request_input.stream,
                echo_text=echo_text,
                salt=salt,
                block_hashes=block_hashes,
                images=prompt.images,
                rope=prompt.rope,
                adapter=adapter,
                grammar=self._conversations.grammar(request_input, opens_in_reasoning=opens_in_reasoning),
                opens_in_reasoning=opens_in_reasoning,
            )
            for place in range(request_input.num_choices)
        ]
        if scores_prompt:
            for sequence in sequences:
                sequence.num_scored = len(prompt_ids)
        return sequences

    def _adapter(self, request_input: ChatInput | CompletionInput) -> Adapter | None:
        wanted = request_input.adapter
        return None if wanted is None or self._adapters is None else self._adapters.find(wanted)

    def _output_limit(self, params: SamplingParams, num_prompt: int, param: str) -> int:
        limit = self._max_model_len
        if num_prompt == 0:
            raise InvalidRequest("The prompt has no tokens. Send at least one.", param=param)
        if num_prompt >= limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens, but the {param} resulted in {num_prompt} "
                f"tokens. Reduce the length of the {param}.",
                param=param,
            )
        if params.max_tokens is None:
            return limit - num_prompt
        if num_prompt + params.max_tokens > limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens, but you requested "
                f"{num_prompt + params.max_tokens} ({num_prompt} in the {param}, {params.max_tokens} in the "
                f"completion). Reduce the length of the {param} or max_tokens.",
                param=param,
            )
        return params.max_tokens

    def _check_ids(self, token_ids: Sequence[int], param: str) -> None:
        if token_ids and not (0 <= min(token_ids) and max(token_ids) < self._vocab_size):
            raise InvalidRequest(
                f"{param} holds a token id outside of this model's vocabulary of {self._vocab_size}.", param=param
            )
