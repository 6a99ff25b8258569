"""What lasts after an attack, as a runner sees it; its guests are played here."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from chamber.lab.observation import Evidence, Harm, Observation, Scenario
from chamber.lab.uml_runner import UmlRunner
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

SILENT = Evidence(Harm.DENIAL, "no answer: use: type", "0 of 10 events came")
WARNS = Evidence(Harm.DENIAL, "WARNING: f", "saw it", complaint=True)


class Played(UmlRunner):
    """A runner whose guests show what it is told."""

    shows: tuple[Evidence, ...] = ()

    def _stimulate(self, *_arguments: object, **_more: object) -> None:
        """Nothing runs."""

    def _finish(self, _guest: object, observation: Observation) -> None:
        observation.evidence += self.shows
        observation.served = all(e.complaint for e in self.shows)


@pytest.fixture
def runner() -> Iterator[Played]:
    with closing(Played(cast("Any", None), options=())) as made:
        yield made


@pytest.mark.parametrize(("during", "after", "lasting"), [
    ((), (), []),
    ((), (SILENT,), ["afterwards: no answer: use: type"]),
    ((SILENT,), (SILENT,), ["afterwards: no answer: use: type"]),
    ((SILENT,), (), []),
    ((WARNS,), (WARNS,), []),
    ((), (WARNS,), ["afterwards: WARNING: f"]),
    ((replace(SILENT, signature="hang in f"),), (SILENT,), []),
])
def test_what_an_honest_device_meets_after_an_attack(runner: Played, during: tuple[Evidence, ...],
                                                     after: tuple[Evidence, ...], lasting: list[str]) -> None:
    observation = Observation(evidence=list(during))
    runner.shows = after
    runner._aftercare(cast("Any", None), Scenario(DeviceType.INPUT), observation, b"")
    assert [e.signature for e in observation.evidence] == [*(e.signature for e in during), *lasting]


@pytest.mark.parametrize(("answer", "used_up"), [
    ({"pool": [512, 2048]}, False), ({"pool": [513, 2048]}, True), ({"pool": []}, False), ({"pool": ["a", 1]}, False),
    ({}, False), (None, False)])
def test_a_guest_whose_pool_is_used_up_is_replaced(runner: Played, answer: dict[str, Any] | None,
                                                   used_up: bool) -> None:
    runner._read_check(answer)
    assert runner._used_up is used_up
