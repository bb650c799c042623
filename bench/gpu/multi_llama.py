"""Makes the folder of a Llama-shaped model with random weights, as a user would have it; part of multi.py.

python bench/gpu/multi_llama.py --folder FOLDER [--tiny]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vllm_overhead import make_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    import torch
    import transformers

    make_model(args.folder, args.tiny)
    config = transformers.AutoConfig.from_pretrained(args.folder)
    dtype = torch.float32 if args.tiny else torch.bfloat16
    with torch.device("meta"):  # what it draws by itself is drawn anew
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    model.to_empty(device="cpu").tie_weights()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:  # the embeddings are small beside what layers add: answers depend on all of the prompt
            parameter.normal_(0, 0.02 if "embed" in name else parameter.shape[1] ** -0.5)
    model.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
