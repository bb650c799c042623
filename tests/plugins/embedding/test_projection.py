"""The playground's map: the same two principal components as by a library, however long the vectors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from sixfold.plugins.embedding.api import EmbeddingAPI
from tests.browser import WHY_SKIPPED, find_chromium, open_page, start_browser
from tests.core.serving.fake_replica import FakeModel
from tests.core.serving.server_thread import ServerThread

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=WHY_SKIPPED)


def in_page(vectors: Any) -> Any:
    """What the page makes of the vectors."""
    with (
        ServerThread(FakeModel("parrot"), apis=[EmbeddingAPI()]) as served,
        sync_playwright() as playwright,
        open_page(start_browser(playwright), served.url) as (page, _seen),
    ):
        asked = f"import('/playground/embedding/projection.js').then((module) => module.project({json.dumps(vectors)}))"
        return np.array(page.evaluate(asked))


def test_the_map_shows_the_two_directions_in_which_texts_differ_most() -> None:
    vectors = np.random.default_rng(3).normal(size=(9, 300)) * np.linspace(3.0, 0.1, 300)
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _right = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * sizes[:2]
    found = in_page(vectors.tolist())
    signs = np.sign((found * expected).sum(axis=0))
    assert np.allclose(found * signs, expected, atol=1e-2 * sizes[0])
