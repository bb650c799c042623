"""Writes a tiny classifier with random weights to ``model/``, to try the plugin without a download."""

from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from transformers.utils import logging

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] so good bad day".split()


def main(folder: Path = Path(__file__).parent / "model") -> None:
    """Makes the folder."""
    logging.set_verbosity_error()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    labels = {0: "sad", 1: "neutral", 2: "glad"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, id2label=labels, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
