"""reference/options.md: every family with what it can and its options."""

from __future__ import annotations

from docs.generate.first_party import families
from docs.generate.markdown import NOTE
from docs.generate.models import Sections
from sixfold.core.family import Family
from sixfold.core.plugins import load_plugins


def page() -> str:
    """The whole page."""
    found = families(load_plugins())
    return "\n".join([NOTE, "# Families and their options\n", _INTRODUCTION, *map(_family, found)])


def _family(family: Family) -> str:
    sections = Sections({})
    sections.add(family.options, f"options of {family.name}", family.name)
    facts = [
        f"- **Operations:** {', '.join(f'`{each}`' for each in sorted(family.operations))}",
        f"- **Install:** `pip install 'sixfold[{family.extra}]'`",
        f"- **Queue:** {family.default_max_queue_units:,} units of work may wait unless `limits.max_queue_units` says otherwise",
    ]
    methods = sorted({f"`{each.scheme}` of {each.what}" for each in family.quantization})
    if methods:
        facts.append(f"- **Quantization:** {', '.join(methods)}")
    parallel = "yes" if family.parallel else "no: one process a replica"
    facts.append(f"- **Several GPUs on a step** (`parallel`): {parallel}")
    return f"## {family.name}\n\n{family.summary}\n\n" + "\n".join(facts) + "\n\n" + "\n".join(sections.parts)


_INTRODUCTION = """\
What `models.NAME.options` may hold, by family. `sixfold plugins` lists the families of your installation, those of
other packages included. What each option does for its modality is explained in the modality's own page.
"""
