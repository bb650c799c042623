"""Makes items of pytest out of a plugin and a configuration file: ``FILE::MODEL::CHECK``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sixfold.core.config import ModelEntry, Settings, load_config
from sixfold.core.errors import SixfoldError, UsageError
from sixfold.core.plugins import Plugins, load_plugins
from sixfold.core.registry import resolve_entry
from sixfold.core.testing import served_checks
from sixfold.core.testing.cancellation import cancellation_frees
from sixfold.core.testing.checks import ModelUnderTest, ServedModel
from sixfold.core.testing.client import UnexpectedAnswer
from sixfold.core.testing.failure import CheckFailed, DoesNotLoad, NotApplicable
from sixfold.core.testing.plugin_checks import imports_nothing_heavy
from sixfold.core.testing.source_checks import SOURCE_CHECKS, SourceUnderTest
from sixfold.core.testing.subject_checks import (
    bounds_answer_429,
    operations_are_known,
    plan_counts_its_memory,
    unknown_options_are_refused,
)
from sixfold.core.validation import did_you_mean

CheckT = TypeVar("CheckT")

SUBJECT_CHECKS = (operations_are_known, unknown_options_are_refused, plan_counts_its_memory, bounds_answer_429)
"""Of a model that is not served; these come first, so that one model at a time is in memory."""

SERVED_CHECKS = (
    served_checks.is_in_the_registry,
    served_checks.answers_alike_alone_and_beside_others,
    served_checks.streams_are_framed,
    served_checks.errors_have_one_shape,
    cancellation_frees,
    served_checks.metrics_are_those_declared,
    served_checks.what_crosses_processes_is_declared,
)
"""Of a model while it is served."""


class Conformance:
    """The plugin of pytest that collects the kit's items.

    Args:
        plugin_name: Of the plugin under test.
        config_file: That the options name; None if it is among the arguments.
    """

    def __init__(self, plugin_name: str, config_file: Path | None) -> None:
        self._plugin_name = plugin_name
        self._config_file = config_file

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Takes the configuration file, and no other YAML that lies about."""
        is_named = parent.session.isinitpath(file_path) and file_path.suffix in (".yaml", ".yml")
        if not is_named and file_path != self._config_file:
            return None
        file: ConformanceFile = ConformanceFile.from_parent(parent, path=file_path)  # pyright: ignore[reportUnknownMemberType]  # pytest leaves it untyped
        file.plugin_name = self._plugin_name
        return file


class ConformanceFile(pytest.File):
    """A configuration file whose models, or their sources, are the plugin's."""

    plugin_name: str

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """The checks of the plugin, and a group for each of its models and sources."""
        try:
            settings = load_config(self.path)
            plugins = load_plugins()
            yield from self._collected(plugins, settings)
        except UsageError as error:
            raise self.CollectError(str(error)) from error

    def _collected(self, plugins: Plugins, settings: Settings) -> Iterator[pytest.Item | pytest.Collector]:
        record = next((record for record in plugins.records if record.name == self.plugin_name), None)
        if record is None:
            names = did_you_mean(self.plugin_name, [record.name for record in plugins.records])
            raise UsageError(f"No plugin {self.plugin_name!r} is installed. {names} Install yours: pip install -e .")
        if record.error is not None:
            raise UsageError(f"The plugin {self.plugin_name!r} does not load: {record.error}")
        if record.hint is not None:
            raise UsageError(f"The plugin {self.plugin_name!r} is loaded, but {record.hint}")
        groups = [
            *self._models(plugins, settings),
            *(source for entry in settings.models.values() for source in self._sources(plugins, entry)),
        ]
        if not groups:
            raise UsageError(
                f"{self.path.name} has no model of the plugin {self.plugin_name!r}: none is served by a family of it, and none "
                f"comes from a source of it. Add one. It offers: {', '.join(self._offers(plugins)) or 'nothing'}."
            )
        yield ConformanceItem.made(self, imports_nothing_heavy, partial(imports_nothing_heavy, record))
        yield from groups

    def _offers(self, plugins: Plugins) -> list[str]:
        return [offer for offer, owner in plugins.origin.items() if owner == self.plugin_name]

    def _models(self, plugins: Plugins, settings: Settings) -> Iterator[pytest.Collector]:
        offers = self._offers(plugins)
        if not any(offer.startswith("family ") for offer in offers):
            return
        for entry in settings.models.values():
            if entry.family is not None and f"family {entry.family}" not in offers:
                continue
            resolved = resolve_entry(entry, plugins, settings.cache_dir, lambda _what, _done, _total: None)
            if f"family {resolved.family.name}" in offers:
                group: ModelGroup = ModelGroup.from_parent(self, name=entry.name)  # pyright: ignore[reportUnknownMemberType]  # pytest leaves it untyped
                group.make_subject = partial(ModelUnderTest, resolved=resolved, plugins=plugins)
                yield group

    def _sources(self, plugins: Plugins, entry: ModelEntry) -> Iterator[pytest.Collector]:
        scheme, _, reference = entry.source.partition(":")
        if f"source {scheme}" in self._offers(plugins):
            group: SourceGroup = SourceGroup.from_parent(self, name=f"{entry.name}.source")  # pyright: ignore[reportUnknownMemberType]
            group.make_subject = partial(SourceUnderTest, source=plugins.sources[scheme], reference=reference)
            yield group


class ModelGroup(pytest.Collector):
    """The checks of one model. Loads it for the first check that needs it, and ends it after the last."""

    make_subject: Callable[..., ModelUnderTest]

    def setup(self) -> None:
        """Makes what the checks share."""
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sixfold-conformance-")))
        self._subject = self.make_subject(data_dir=folder)
        self._served: ServedModel | None = None
        self._loads = True

    def teardown(self) -> None:
        """Ends the server, if one was started."""
        self._stack.close()

    def collect(self) -> Iterable[pytest.Item]:
        """All checks of models."""
        for subject_check in SUBJECT_CHECKS:
            yield ConformanceItem.made(self, subject_check, partial(self._once_loads, self._on_subject, subject_check))
        for served_check in SERVED_CHECKS:
            yield ConformanceItem.made(self, served_check, partial(self._once_loads, self._on_server, served_check))

    def _once_loads(self, run: Callable[[CheckT], None], check: CheckT) -> None:
        """Does a check; one that can't load the model is the last."""
        if not self._loads:
            raise NotApplicable("The model does not load.")
        try:
            run(check)
        except DoesNotLoad:
            self._loads = False
            raise

    def _on_subject(self, subject_check: Callable[[ModelUnderTest], None]) -> None:
        # What `setup` makes is not there yet when checks are collected.
        subject_check(self._subject)

    def _on_server(self, served_check: Callable[[ServedModel], None]) -> None:
        served_check(self._serve())

    def _serve(self) -> ServedModel:
        if self._served is None:
            server = self._stack.enter_context(self._subject.server())
            client = self._stack.enter_context(self._subject.client(server))
            self._served = ServedModel(subject=self._subject, server=server, client=client)
        return self._served


class SourceGroup(pytest.Collector):
    """The checks of one source, in a cache of its own."""

    make_subject: Callable[..., SourceUnderTest]

    def setup(self) -> None:
        """Makes the cache."""
        self._folder = tempfile.TemporaryDirectory(prefix="sixfold-conformance-")
        self._subject = self.make_subject(cache_dir=Path(self._folder.name))

    def teardown(self) -> None:
        """Removes the cache."""
        self._folder.cleanup()

    def collect(self) -> Iterable[pytest.Item]:
        """All checks of sources."""
        for check in SOURCE_CHECKS:
            yield ConformanceItem.made(self, check, partial(self._on_subject, check))

    def _on_subject(self, check: Callable[[SourceUnderTest], None]) -> None:
        check(self._subject)


class ConformanceItem(pytest.Item):
    """One check."""

    run: Callable[[], None]
    promise: str

    @classmethod
    def made(cls, parent: pytest.Collector, check: Callable[..., None], run: Callable[[], None]) -> ConformanceItem:
        """An item named after its check.

        Args:
            parent: Its group.
            check: Whose name and docstring it has.
            run: Does it.
        """
        item: ConformanceItem = cls.from_parent(parent, name=check.__name__)  # pyright: ignore[reportUnknownMemberType]  # pytest leaves it untyped
        item.run = run
        item.promise = (check.__doc__ or "").strip().splitlines()[0]
        item.extra_keyword_matches.add("conformance")
        return item

    def runtest(self) -> None:
        """Does the check."""
        try:
            self.run()
        except NotApplicable as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A broken promise in words; anything else with its traceback."""
        if isinstance(excinfo.value, DoesNotLoad):
            return str(excinfo.value)
        if isinstance(excinfo.value, CheckFailed | UnexpectedAnswer | SixfoldError):
            return f"{self.promise}\n\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it comes from, for reports."""
        assert self.parent is not None
        return self.path, None, f"{self.parent.name}: {self.name}"
