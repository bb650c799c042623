"""``sixfold new-plugin``: writes a package that is a working plugin, with tests, for its author to put a model into."""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import re
import string
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sixfold.core.errors import UsageError
from sixfold.core.plugins import Plugins

NEW = "new"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME_CHARACTERS = 40

CORE_PATHS = frozenset(("/v1/batches", "/v1/files", "/v1/models"))
"""Routes of one word below ``/v1`` that every server has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """What is written for a modality.

    Attributes:
        summary: What the model does that is written, as a sentence.
        requirements: Of pip: what the written model imports, and Sixfold with the extra that it or the modality's HTTP face
            needs, if any.
        example: A call of it, as a line of a shell.
        needs: What the call needs that is not written, in parentheses.
    """

    summary: str
    requirements: tuple[str, ...]
    example: str
    needs: str = ""


_JSON = "curl http://127.0.0.1:8000/v1/{} -H 'content-type: application/json' -d '{{\"model\": \"$name\", {}}}'"

_FACE_ROWS = """\
| `{package}/messages.py` | what crosses between the two processes |
| `{package}/api.py` | the HTTP face |
"""

SKELETONS: Mapping[str, Skeleton] = {
    "llm": Skeleton(
        summary="Repeats the prompt.",
        requirements=("sixfold",),
        example=_JSON.format("chat/completions", '"messages": [{"role": "user", "content": "Say it again."}]'),
    ),
    "embedding": Skeleton(
        summary="Counts letters.",
        requirements=("sixfold",),
        example=_JSON.format("embeddings", '"input": ["a text"]'),
    ),
    "asr": Skeleton(
        summary="Writes whether sound is loud.",
        requirements=("numpy", "sixfold[asr]"),
        example="curl http://127.0.0.1:8000/v1/audio/transcriptions -F model=$name -F file=@speech.wav",
        needs=" (bring a recording of your own: speech.wav)",
    ),
    "tts": Skeleton(
        summary="Beeps for each word.",
        requirements=("numpy", "sixfold[tts]"),
        example=_JSON.format("audio/speech", '"input": "Three short words"') + " -o beeps.mp3",
    ),
    "image": Skeleton(
        summary="Draws plain colours.",
        requirements=("pillow", "sixfold[image]"),
        example=_JSON.format("images/generations", '"prompt": "a colour"'),
    ),
    "video": Skeleton(
        summary="Films a moving bar.",
        requirements=("numpy", "sixfold[video]"),
        example=_JSON.format("videos", '"prompt": "a bar"'),
    ),
    NEW: Skeleton(
        summary="Counts words.",
        requirements=("sixfold",),
        example=_JSON.format("$name", '"input": ["a text"]'),
    ),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("name", help="of the plugin, such as my-model: small letters, digits and hyphens")
    parser.add_argument(
        "--modality", required=True, choices=SKELETONS, help=f"what its models do; {NEW!r} for a modality of its own"
    )
    parser.add_argument("--path", type=Path, default=Path(), help="where the folder NAME is made (default: here)")


def run(plugins: Plugins, args: argparse.Namespace) -> int:
    """Writes the package and says what to do next.

    Raises:
        UsageError: The name can't be one, is taken, or the folder is there.
    """
    name: str = args.name
    _check_name(name, args.modality, plugins)
    folder: Path = args.path / name
    if folder.exists():
        raise UsageError(f"{folder} is there already. Choose another name, another --path, or remove it.")
    for place, text in skeleton_files(name, args.modality).items():
        _write(folder, place, text)
    print(
        f"{folder} is a plugin that works. Go on with:\n\n"
        f"    cd {folder}\n    pip install -e '.[test]'\n    pytest\n    sixfold serve config.yaml\n"
    )
    return 0


def skeleton_files(name: str, modality: str) -> Mapping[str, str]:
    """The text of each file of a new plugin, by its path in the plugin's folder.

    Args:
        name: Of the plugin; as `run` checks it.
        modality: One of `SKELETONS`.
    """
    skeleton = SKELETONS[modality]
    package = f"sixfold_{name.replace('-', '_')}"
    words: dict[str, str] = {
        "name": name,
        "package": package,
        "distribution": f"sixfold-{name}",
        "class_name": "".join(part.capitalize() for part in name.split("-")) + "Model",
        "modality": name if modality == NEW else modality,
        "operation": name,
        "summary": skeleton.summary,
        "requirements": ", ".join(f'"{requirement}"' for requirement in skeleton.requirements),
        "needs": skeleton.needs,
        "face_rows": _FACE_ROWS.format(package=package) if modality == NEW else "",
    }
    words["example"] = string.Template(skeleton.example).substitute(words)
    places = {
        "__init__.py": f"{package}/__init__.py",
        "model.json": f"model/{name}.json",
        "test_plugin.py": f"tests/test_{package}.py",
    }
    root = importlib.resources.files("sixfold.core.cli") / "templates"
    found: dict[str, str] = {}
    for part in ("common", modality):
        for template in sorted((root / part).iterdir(), key=lambda file: file.name):
            file = template.name.removesuffix(".txt")
            place = places.get(file, f"{package}/{file}" if file.endswith(".py") else file)
            found[place] = string.Template(template.read_text(encoding="utf-8")).substitute(words)
    return found


def _check_name(name: str, modality: str, plugins: Plugins) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_CHARACTERS:
        raise UsageError(
            f"{name!r} is no name for a plugin: it has small letters, digits and single hyphens, begins with a letter, and has "
            f"at most {_MAX_NAME_CHARACTERS} characters."
        )
    taken = next((record for record in plugins.records if record.name == name), None)
    if taken is not None:
        raise UsageError(f"The plugin {name!r} is installed ({taken.distribution}). Choose another name.")
    if modality == NEW:
        _check_modality(name, plugins)
    elif (family := f"{modality}/{name}") in plugins.families:
        owner = plugins.origin[f"family {family}"]
        raise UsageError(f"The plugin {owner!r} has a family {family!r}. Choose another name.")


def _check_modality(name: str, plugins: Plugins) -> None:
    """Its name is that of the modality, and of its route, as well."""
    if name in plugins.apis:
        owner = plugins.origin[f"api {name}"]
        raise UsageError(
            f"The plugin {owner!r} serves a modality {name!r}. Choose another name, or --modality {name} to add a family to it."
        )
    path = f"/v1/{name}"
    server = next((server for server, paths in _paths(plugins) if path in paths), None)
    if server is not None:
        raise UsageError(f"{server} serves {path}, the route that the plugin would have. Choose another name.")


def _paths(plugins: Plugins) -> Iterator[tuple[str, Collection[str]]]:
    """Who serves which routes; but for those whose libraries are not installed: they serve nothing here."""
    from sixfold.core.runtime.loading import imported  # not before it is needed: every command imports this file

    yield "Sixfold itself", CORE_PATHS
    for modality, api in plugins.apis.items():
        with contextlib.suppress(ImportError, AttributeError):
            yield (
                f"The plugin {plugins.origin[f'api {modality}']!r}",
                {route.path for route in imported(api.factory)().routes()},
            )


def _write(folder: Path, place: str, text: str) -> None:
    path = folder / place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}. Choose another folder with --path.") from error
