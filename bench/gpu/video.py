"""Wan 2.1 1.3B on one GPU, clips of 17 and of 81 frames at 832x480: see bench/video.py, whose work this runs.

    python bench/gpu/video.py --rounds 1 --out result.json      # about 8 minutes on an H100
    python bench/gpu/video.py --tiny                            # on a CPU, to try it

A machine without Sixfold needs these wheels beside torch and transformers: diffusers, av, ftfy, wcwidth, msgspec, pydantic,
pydantic_core, annotated-types, typing-inspection.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from video import WAN_1_3B, main

if __name__ == "__main__":
    main(WAN_1_3B, ((17, 12), (81, 4)), "cuda")
