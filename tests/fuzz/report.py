"""What a run of the fuzzer says: figures and findings of each part, and the sum that others read."""

from __future__ import annotations

import msgspec


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must not be.

    Attributes:
        what: The exception and where it came from, or what was broken.
        kept: The file with the input, if there is one.
    """

    what: str
    kept: str | None = None


class Progress(msgspec.Struct):
    """What a reader's process has done so far; written every second, since it may be killed."""

    cases: int = 0
    taken: int = 0
    slowest_s: float = 0.0
    rss_before_mib: float = 0.0
    rss_mib: float = 0.0
    findings: list[Found] = msgspec.field(default_factory=list[Found])


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One reader, or the API.

    Attributes:
        name: Its own.
        cases: Inputs that were read, or requests that were answered.
        seconds: That were spent on it.
        taken: Inputs that were not refused; None where that is not counted.
        edges: Of the code's graph that were seen, of those that the fuzzer follows; None where it follows none.
        slowest_s: Of one case.
        rss_growth_mib: Of the process, from when all seeds were read twice to the end.
        server_errors: Operations that answered with 500 or more, by status, of those that are not declared.
        findings: What must not be.
    """

    name: str
    cases: int
    seconds: float
    taken: int | None = None
    edges: int | None = None
    slowest_s: float
    rss_growth_mib: float
    server_errors: int = 0
    findings: tuple[Found, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run.

    Attributes:
        findings: How many, in all parts.
        cases: Of all parts.
        slowest_s: Of all cases.
        rss_growth_mib: The largest of all parts.
        parts: Each by itself.
    """

    findings: int
    cases: int
    slowest_s: float
    rss_growth_mib: float
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, parts: tuple[Part, ...]) -> Report:
        """The sum."""
        return cls(
            findings=sum(len(part.findings) for part in parts),
            cases=sum(part.cases for part in parts),
            slowest_s=max((part.slowest_s for part in parts), default=0.0),
            rss_growth_mib=max((part.rss_growth_mib for part in parts), default=0.0),
            parts=parts,
        )


def table(report: Report) -> str:
    """The report for a terminal."""
    lines = [f"{'part':24}{'cases':>10}{'taken':>10}{'edges':>8}{'slowest':>10}{'RSS grew':>10}{'findings':>10}"]
    for part in report.parts:
        taken, edges = ("-" if figure is None else str(figure) for figure in (part.taken, part.edges))
        lines.append(
            f"{part.name:24}{part.cases:>10}{taken:>10}{edges:>8}{part.slowest_s:>8.2f} s"
            f"{part.rss_growth_mib:>6.0f} MiB{len(part.findings):>10}"
        )
        lines += [f"    {found.what}{f'  [{found.kept}]' if found.kept else ''}" for found in part.findings]
    lines.append(
        f"{report.cases} cases, {report.findings} findings, the slowest {report.slowest_s:.2f} s, at most "
        f"{report.rss_growth_mib:.0f} MiB more"
    )
    return "\n".join(lines)
