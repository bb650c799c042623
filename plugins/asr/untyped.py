"""The libraries that ship no types, imported as what they are to a checker: Any. Imported in the worker process only."""

from __future__ import annotations

import importlib
from typing import Any

ctranslate2: Any = importlib.import_module("ctranslate2")
faster_whisper_features: Any = importlib.import_module("faster_whisper.feature_extractor")
faster_whisper_tokenizer: Any = importlib.import_module("faster_whisper.tokenizer")
faster_whisper_transcribe: Any = importlib.import_module("faster_whisper.transcribe")
onnxruntime: Any = importlib.import_module("onnxruntime")
scipy_hierarchy: Any = importlib.import_module("scipy.cluster.hierarchy")
scipy_ndimage: Any = importlib.import_module("scipy.ndimage")
scipy_signal: Any = importlib.import_module("scipy.signal")
