"""What compiled blocks of a video model can't do is refused; that their clips are right: test_video_equality."""

from __future__ import annotations

import pytest

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.plugins.video.loader import load
from sixfold.plugins.video.options import VideoOptions
from tests.plugins.video.conftest import Folder, Load


def test_blocks_that_are_compiled_are_not_cached(load_tiny: Load) -> None:
    with pytest.raises(ConfigError, match="compiled blocks can't be cached"):
        load_tiny("wan", compile=True, row_cache_threshold=0.1)


def test_blocks_that_are_quantized_on_a_cpu_are_not_compiled(folder: Folder) -> None:
    context = LoadContext(
        model_name="m",
        path=folder("wan"),
        device="cpu",
        num_threads=1,
        options=VideoOptions(compile=True),
        quantization=QuantizationPolicy(scheme="int8"),
    )
    with pytest.raises(ConfigError, match="quantized on a CPU can't be compiled"):
        load(context)
