"""``junit.xml``: what continuous integration shows."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from chamber.assess.verdict import FAILURES, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chamber.assess.result import Report, Result

__all__ = ("junit_xml",)


def junit_xml(report: Report) -> str:
    """One suite per column; what a guest lost is a failure, denial of service a remark, inconclusive is skipped."""
    root = Element("testsuites", name="chamber")
    for column in report.columns:
        _suite(root, column, [r for r in report.results if r.column == column], report)
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True)


def _suite(root: Element, column: str, results: Iterable[Result], report: Report) -> None:
    results = list(results)
    suite = SubElement(
        root, "testsuite", name=column, timestamp=report.started, tests=str(len(results)), errors="0",
        failures=str(sum(r.verdict in FAILURES for r in results)),
        skipped=str(sum(r.verdict is Verdict.INCONCLUSIVE for r in results)),
        time=f"{sum(r.seconds for r in results):.3f}")
    for result in results:
        spec = result.attack
        name = spec.name if result.seed == report.seed else f"{spec.name} (seed {result.seed})"
        case = SubElement(suite, "testcase", name=name, time=f"{result.seconds:.3f}",
                          classname=f"chamber.{column.replace(' ', '-')}.{result.device}.{spec.surface.value}")
        properties = SubElement(case, "properties")
        for key, value in (("verdict", result.verdict.value), ("spec", spec.spec), ("replay", result.replay)):
            SubElement(properties, "property", name=key, value=value)
        if result.verdict in FAILURES:
            failure = SubElement(case, "failure", type=result.verdict.value, message=result.signature)
            failure.text = f"{spec.summary}\n\n{result.evidence}\n\n{result.replay}"
        elif result.verdict is Verdict.INCONCLUSIVE:
            SubElement(case, "skipped", message=result.note)
        elif result.verdict is Verdict.DENIED:
            SubElement(case, "system-out").text = f"denied: {result.signature}\n{result.evidence}\n\n{result.replay}"
