"""``sixfold new-plugin``: writes a package that is a working plugin, with tests, for its author to put a model into."""

from __future__ import annotations

import argparse
import importlib.resources
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sixfold.core.errors import UsageError
from sixfold.core.plugins import Plugins

NEW = "new"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """What is written for a modality.

    Attributes:
        summary: What the model does that is written, as a sentence.
        requirement: Of pip, with the extra that the modality's HTTP face needs.
        example: A call of it, as a line of a shell.
    """

    summary: str
    requirement: str
    example: str


_JSON = "curl http://127.0.0.1:8000/v1/{} -H 'content-type: application/json' -d '{{\"model\": \"$name\", {}}}'"

SKELETONS: Mapping[str, Skeleton] = {
    "llm": Skeleton(
        summary="Repeats the prompt.",
        requirement="sixfold[llm]",
        example=_JSON.format("chat/completions", '"messages": [{"role": "user", "content": "Say it again."}]'),
    ),
    "embedding": Skeleton(
        summary="Counts letters.",
        requirement="sixfold[embedding]",
        example=_JSON.format("embeddings", '"input": ["a text"]'),
    ),
    "asr": Skeleton(
        summary="Writes whether sound is loud.",
        requirement="sixfold[asr]",
        example="curl http://127.0.0.1:8000/v1/audio/transcriptions -F model=$name -F file=@speech.wav",
    ),
    "tts": Skeleton(
        summary="Beeps for each word.",
        requirement="sixfold[tts]",
        example=_JSON.format("audio/speech", '"input": "Three short words"') + " -o beeps.mp3",
    ),
    "image": Skeleton(
        summary="Draws plain colours.",
        requirement="sixfold[image]",
        example=_JSON.format("images/generations", '"prompt": "a colour"'),
    ),
    "video": Skeleton(
        summary="Films a moving bar.",
        requirement="sixfold[video]",
        example=_JSON.format("videos", '"prompt": "a bar"'),
    ),
    NEW: Skeleton(
        summary="Counts words.",
        requirement="sixfold",
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
    _check_name(name, plugins)
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
        "requirement": skeleton.requirement,
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


def _check_name(name: str, plugins: Plugins) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_CHARACTERS:
        raise UsageError(
            f"{name!r} is no name for a plugin: it has small letters, digits and single hyphens, begins with a letter, and has "
            f"at most {_MAX_NAME_CHARACTERS} characters."
        )
    taken = next((record for record in plugins.records if record.name == name), None)
    if taken is not None:
        raise UsageError(f"The plugin {name!r} is installed ({taken.distribution}). Choose another name.")


def _write(folder: Path, place: str, text: str) -> None:
    path = folder / place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}. Choose another folder with --path.") from error
