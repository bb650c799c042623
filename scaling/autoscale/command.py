"""``sixfold scaled-object``: a service's scaling as a manifest for KEDA."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sixfold.core.hookspecs import Command


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sixfold scaled-object``."""
    parser.add_argument("service", type=Path, help="YAML file with 'model:' and 'scaling:'")
    parser.add_argument("--name", required=True, help="the Kubernetes object that is scaled")
    parser.add_argument("--kind", default="Deployment", choices=("Deployment", "StatefulSet"), help="what it is")
    parser.add_argument(
        "--prometheus", default="http://prometheus-operated:9090", metavar="URL", help="as KEDA reaches it"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the manifest.

    Raises:
        ConfigError: The service's file is wrong.
    """
    from sixfold.core.validation import validate
    from sixfold.core.yaml_document import read_document
    from sixfold.scaling.autoscale.keda import scaled_object
    from sixfold.scaling.spec import ServiceSpec

    document = read_document(args.service, os.environ)
    service = validate(ServiceSpec, document.root, where=document.where)
    print(scaled_object(service, name=args.name, prometheus=args.prometheus, kind=args.kind), end="")
    return 0


COMMAND = Command(
    name="scaled-object",
    summary="Print the KEDA manifest that scales a service on Kubernetes.",
    configure=configure,
    run=run,
)
"""For the plugin."""
