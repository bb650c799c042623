"""``sixfold manifests``; imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sixfold.core.hookspecs import Command

KINDS = ("deployment", "gateway-api", "kserve", "kuberay", "leaderworkerset")


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sixfold manifests``."""
    parser.add_argument("config", type=Path, help="YAML file as of 'sixfold up'")
    parser.add_argument("--kind", choices=KINDS, default="deployment", help="what shall run the servers")
    parser.add_argument("--image", required=True, help="container image with Sixfold and the models' extras")
    parser.add_argument("--namespace", default="default", help="of all objects")
    parser.add_argument(
        "--cache-claim", metavar="NAME", help="PersistentVolumeClaim for model files, shared by all servers"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the manifests.

    Raises:
        ConfigError: The configuration is wrong, or can't be said in this kind.
    """
    from sixfold.scaling.manifests.kinds import render
    from sixfold.scaling.manifests.objects import Target
    from sixfold.scaling.up.settings import load_site

    site = load_site(args.config)
    for name, entry in site.settings.models.items():
        if entry.source.startswith("file:"):
            print(f"sixfold: models.{name}.source: {entry.source} must be in the image, at this path.", file=sys.stderr)
    target = Target(site=site, image=args.image, namespace=args.namespace, cache_claim=args.cache_claim)
    print(render(args.kind, target), end="")
    return 0


COMMAND = Command(
    name="manifests",
    summary="Print the objects of Kubernetes that serve a configuration file.",
    configure=configure,
    run=run,
)
"""For the plugin."""
