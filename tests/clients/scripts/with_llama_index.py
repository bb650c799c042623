"""LlamaIndex: chats and embeddings by its openai-like packages, reranking by those of Cohere and Jina."""

import json
import sys

from cells import ANN, DOCUMENTS, QUERY, TEXTS, answer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from person import Person

URL = sys.argv[1]
LLM = OpenAILike(
    model="chat",
    api_base=f"{URL}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    temperature=0,
    max_tokens=60,
    max_retries=0,
    timeout=300,
)
CAPITAL = [ChatMessage(role="user", content="Name the capital of France.")]
NODES = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"mild in {city}"


def chat() -> str:
    return LLM.chat(CAPITAL).message.content


def stream() -> str:
    return "".join(part.delta or "" for part in LLM.stream_chat(CAPITAL))


def tools() -> list:
    tool = FunctionTool.from_defaults(get_weather)
    found = LLM.chat_with_tools([tool], user_msg="What is the weather in Paris?", tool_required=True)
    return [[call.tool_name, json.dumps(call.tool_kwargs)] for call in LLM.get_tool_calls_from_response(found)]


def form() -> dict:
    found = LLM.as_structured_llm(Person).chat([ChatMessage(role="user", content=ANN)])
    return found.raw.model_dump()


def embed() -> list:
    model = OpenAILikeEmbedding(model_name="embed", api_base=f"{URL}/v1", api_key="none", max_retries=0)
    return model.get_text_embedding_batch(TEXTS)


def rerank() -> list:
    cohere = CohereRerank(model="embed", api_key="none", base_url=URL, top_n=2)
    jina = JinaRerank(model="embed", api_key="none", base_url=f"{URL}/v1", top_n=2)
    by_cohere, by_jina = (
        [DOCUMENTS.index(one.node.get_content()) for one in reranker.postprocess_nodes(NODES, query_str=QUERY)]
        for reranker in (cohere, jina)
    )
    if by_cohere != by_jina:
        raise ValueError(f"Cohere's package got {by_cohere}, Jina's {by_jina}.")
    return by_cohere


answer(chat, stream, tools, form, embed, rerank)
