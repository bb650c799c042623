"""What ``sixfold up`` refuses of a configuration before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.errors import ConfigError
from sixfold.core.plugins import load_plugins
from sixfold.scaling.up.service import check_site
from sixfold.scaling.up.settings import Site, load_site


def site(tmp_path: Path, **entry: Any) -> Site:
    path = tmp_path / "config.yaml"
    roles = {"max_replicas": 6, "ttft_s": 1.0, "inter_token_s": 0.05}
    disaggregation = {"prefill_tokens_per_s": 1000, "kv_bytes_per_token": 1000}
    cluster = {"services": {"tiny": {"roles": roles}}, "gateway": {"disaggregation": disaggregation}}
    path.write_text(yaml.safe_dump({"models": {"tiny": {"source": "file:x", **entry}}, "cluster": cluster}))
    return load_site(path, environ={})


def test_roles_of_a_model_that_exchanges_no_prompts_are_named_as_what_is_wrong(tmp_path: Path) -> None:
    found = site(tmp_path, family="embedding/sentence-transformers")
    with pytest.raises(ConfigError, match=r"(?s)^cluster\.services\.tiny\.roles: .*kv_transfer.* Remove roles"):
        check_site(found, load_plugins())


def test_what_is_wrong_with_a_model_itself_is_not_put_down_to_its_roles(tmp_path: Path) -> None:
    found = site(tmp_path, source="hree:x")
    with pytest.raises(ConfigError, match=r"^models\.tiny\.source: "):
        check_site(found, load_plugins())


def test_a_language_model_may_have_roles(tmp_path: Path) -> None:
    check_site(site(tmp_path, family="llm/transformers"), load_plugins())
