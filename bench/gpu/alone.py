"""What each optimisation gives, switched on alone, beside the same without it, in turns, random weights, one GPU.

    python bench/gpu/alone.py image               # SDXL's size at 512 and 1024 pixels: README.md says how long each takes
    python bench/gpu/alone.py flux                # Flux.1-dev's size at 1024 pixels
    python bench/gpu/alone.py video               # Wan 2.1 1.3B's denoiser
    python bench/gpu/alone.py embedding           # Qwen3-Embedding-0.6B and bge-large
    python bench/gpu/alone.py tts                 # VITS and SpeechT5
    python bench/gpu/alone.py native              # Llama-3.2-1B's shape
    python bench/gpu/alone.py image --tiny        # on a CPU, to try it
    python bench/gpu/alone.py embedding --part traffic    # some of it; its figures stand in a file of their own

Figures go to ``alone-NAME.json`` in the folder that ``OUT`` names, after each; ``optimisations.py`` makes the table of them.
What the product has no switch for is replaced from here, in the names of its modules. Speech recognition is in `asr.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PARTS = {
    "image": ("engine", "encoders", "decodes", "forwards"),
    "flux": ("caches", "forwards"),
    "video": ("clips",),
    "embedding": ("steps", "traffic"),
    "tts": ("speech",),
    "native": ("steps", "sampling", "guesses"),
}


def measure(name: str, out: Path, *, tiny: bool, parts: Sequence[str]) -> None:
    """Runs one, or some of its parts; imports follow the choice, since each has libraries of its own."""
    import torch
    from alone_timing import Notes

    torch.set_float32_matmul_precision("highest")
    card = "cpu" if tiny else torch.cuda.get_device_name()
    notes = Notes(out, {"card": card, "torch": torch.__version__, "weights": "random", "tiny": tiny})
    print(f"{name}, random weights, {card}, torch {torch.__version__}", flush=True)
    if name in ("image", "flux", "video"):
        import alone_image
        import alone_video

        if name == "video":
            alone_video.measure_clips(notes, tiny=tiny)
        elif tiny:
            arch = {"image": "sdxl", "flux": "flux"}[name]
            alone_image.measure_pictures(arch, notes, tiny=True, rows={64: (2, 4)}, parts=parts)
        elif name == "image":
            alone_image.measure_pictures("sdxl", notes, tiny=False, rows={512: (2, 8), 1024: (2, 4)}, parts=parts)
        else:
            alone_image.measure_pictures("flux", notes, tiny=False, rows={1024: (1, 2)}, parts=parts)
    elif name == "embedding":
        import alone_embedding

        alone_embedding.measure(notes, tiny=tiny, parts=parts)
    elif name == "tts":
        from stand_ins import AUDIO, stand_in

        stand_in(AUDIO)
        import alone_speech

        alone_speech.measure(notes, tiny=tiny)
    else:
        import alone_native

        alone_native.measure(notes, tiny=tiny, parts=parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(PARTS))
    parser.add_argument(
        "--part", nargs="+", help="some of: " + "; ".join(f"{n}: {' '.join(p)}" for n, p in PARTS.items())
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    parts = args.part or PARTS[args.name]
    if unknown := set(parts) - set(PARTS[args.name]):
        parser.error(f"{args.name} has no part {', '.join(sorted(unknown))}; its parts: {', '.join(PARTS[args.name])}")
    if args.tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is made
    from vllm_overhead import import_sixfold

    import_sixfold(args.site)
    sys.path.insert(0, str(Path(__file__).parent))  # bench/ has scripts of the same names
    began_s = time.monotonic()
    file = "-".join(["alone", args.name, *(args.part or [])]) + ".json"
    measure(args.name, args.out or Path(os.environ.get("OUT", ".")) / file, tiny=args.tiny, parts=parts)
    print(f"{args.name}: {time.monotonic() - began_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
