"""Program that turns one GGUF file of a decoder into a folder with safetensors, tokenizer and chat template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sixfold.plugins.llm.gguf import UNKNOWN_ARCHITECTURE
from sixfold.plugins.llm.gguf_header import BoundedGgufReader

# ``general.file_type``: files that are not quantized keep their type; of quantized ones bfloat16 keeps all that is there.
_UNQUANTIZED = {0: torch.float32, 1: torch.float16}


def is_decoder(architecture: str) -> bool:
    """Whether transformers has a causal language model of this GGUF architecture; GGUF writes names without separators."""
    plain = {name.replace("_", "").replace("-", "") for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    encoders = {"bert", "nomicbert", "jinabertv2", "roberta", "xlmroberta"}
    name = architecture.replace("_", "").replace("-", "")
    return (name in plain or f"{name}text" in plain) and name not in encoders


def convert(source: Path, target: Path) -> bool:
    """Writes the converted model into an existing folder; False if the file holds no decoder."""
    reader: Any = BoundedGgufReader(source)
    architecture = str(reader.get_field("general.architecture").contents())
    if not is_decoder(architecture):
        return False
    file_type = reader.get_field("general.file_type")
    dtype = _UNQUANTIZED.get(file_type.contents() if file_type is not None else -1, torch.bfloat16)
    folder, name = source.parent, source.name
    tokenizers: Any = AutoTokenizer  # typed in part
    models: Any = AutoModelForCausalLM
    tokenizer = tokenizers.from_pretrained(folder, gguf_file=name, local_files_only=True)
    # transformers keeps GGUF weights packed unless told otherwise, and can't save packed ones.
    model = models.from_pretrained(
        folder,
        gguf_file=name,
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
    return True


if __name__ == "__main__":
    sys.exit(0 if convert(Path(sys.argv[1]), Path(sys.argv[2])) else UNKNOWN_ARCHITECTURE)
