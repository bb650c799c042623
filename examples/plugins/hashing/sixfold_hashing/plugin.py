"""What Sixfold loads in every process: it names things and imports nothing heavy."""

from sixfold.core import Family, Plugin
from sixfold.plugins.embedding.contract import EmbeddingInput, EmbeddingOutput

PLUGIN = Plugin(
    families=[
        Family(
            name="embedding/hashing",
            summary="Vectors of hashed letter n-grams: texts that share parts of words are near.",
            operations=frozenset({"embed"}),
            loader="sixfold_hashing.model:HashingModel",
            input_type=EmbeddingInput,
            output_type=EmbeddingOutput,
            detect=lambda files: 100 if files.has("hashing.json") else 0,
        )
    ]
)
