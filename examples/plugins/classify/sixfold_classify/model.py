"""The model: runs in the worker process, one padded batch a step."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sixfold.core import ContextLengthExceeded, Finish, ForwardModel, LoadContext, Request, Usage
from sixfold_classify.plugin import Labels, Texts


class Classifier(ForwardModel[list[int], list[float], Texts, Labels]):
    """A network with its tokenizer."""

    def __init__(self, context: LoadContext) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(context.path)
        self.network = AutoModelForSequenceClassification.from_pretrained(context.path).to(context.device).eval()
        positions = getattr(self.network.config, "max_position_embeddings", 1 << 30)  # T5 and its like have none
        self.max_tokens = min(self.tokenizer.model_max_length, positions)  # RoBERTa has 2 positions for no token

    def estimate_units(self, request: Request[Texts]) -> int:
        """A unit is a token; about four letters make one."""
        return sum(len(text) // 4 + 2 for text in request.input.texts)

    def items(self, request: Request[Texts]) -> list[list[int]]:
        """An item is a tokenized text."""
        rows = self.tokenizer(request.input.texts)["input_ids"] if request.input.texts else []
        if any(len(row) > self.max_tokens for row in rows):
            raise ContextLengthExceeded("A text of 'input' is too long for the model. Send it in parts.", param="input")
        return rows

    def units(self, item: list[int]) -> int:
        """Its tokens."""
        return len(item)

    @torch.inference_mode()
    def forward(self, items: list[list[int]]) -> list[list[float]]:
        """The probabilities of each text."""
        batch = self.tokenizer.pad({"input_ids": items}, return_tensors="pt").to(self.network.device)
        return self.network(**batch).logits.softmax(-1).tolist()

    def result(self, request: Request[Texts], rows: list[list[float]]) -> Finish[Labels]:
        """The labels in order."""
        named = [dict(zip(self.network.config.id2label.values(), row, strict=True)) for row in rows]
        return Finish(result=Labels(named), usage=Usage(counts={"texts": len(rows)}))
