"""How inputs are varied, as a custom mutator of AFL++: by whole lies, so that every input means something.

AFL++ calls the functions of this module (its ``docs/custom_mutators.md``), and no other mutation of its own.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Final

from chamber.fuzz.avoidance import Avoidance, kinds_of
from chamber.fuzz.costs import Costs
from chamber.fuzz.lies import (
    ANY_QUEUE,
    HEADER,
    NOTHING_ASKED,
    READ_WHEN_PLUGGED_IN,
    RECORD,
    Change,
    Lie,
    Moment,
    Point,
    Program,
    Start,
)
from chamber.fuzz.occasions import KnownOccasions, Occasions

__all__ = ("COSTS", "FINDINGS", "OCCASIONS", "PCI", "REPORTS", "deinit", "fitted", "fuzz", "fuzz_count", "init",
           "init_trim", "mutate", "post_trim", "random_lie", "shortened", "trim")

_MOST: Final = 8
"""Lies that a varied input has at most: a finding is to be understood."""
_WEIGHTS: Final = {
    Point.FEATURES: 3, Point.CONFIG: 5, Point.RESPONSE: 14, Point.SIZE: 5, Point.USED_LENGTH: 9, Point.USED_ID: 1,
    Point.USED_AGAIN: 1, Point.USED_AHEAD: 1, Point.DESCRIPTOR: 1, Point.WITHHELD: 3, Point.MESSAGE: 9,
    Point.INTERRUPT: 2, Point.CONFIG_INTERRUPT: 3, Point.SILENCE: 1, Point.ACTION: 3,
}
"""What leaves a driver without an answer for good costs a guest, and is no news."""
_PCI_WEIGHTS: Final = {Point.CONFIG_SPACE: 12, Point.REGISTER: 16, Point.WRITE_LOST: 2, Point.VECTOR: 3}
"""The same where a function tells lies too."""
_TURNS: Final = 64
_AHEAD: Final = 16
_COSTLY: Final = frozenset({Point.FEATURES, Point.USED_ID, Point.USED_AGAIN, Point.USED_AHEAD, Point.DESCRIPTOR,
                            Point.WITHHELD, Point.SILENCE, Point.CONFIG_SPACE, Point.REGISTER, Point.WRITE_LOST,
                            Point.VECTOR})
"""Lies after which the driver has to be brought back, or waits: ten sessions' time and more."""
_COSTLY_INPUTS: Final = 0.06
_COSTLY_PCI_INPUTS: Final = 0.3
"""Inputs that may have them, or begin with a probe. Others are left without, whatever they come from. Most of what a
PCI function tells is told when it is found."""
_EVER: Final = 0xFF
"""How often a lie is told that is told as often as can be."""
_FLOODS: Final = 0.1
"""Of inputs that are not costly otherwise: those that may have such lies. A hundred answers take their time."""
_SOME: Final = 4
_ROW: Final = 8
"""So many of them come in a row, all with the same beginning."""
_STARTS, _PCI_STARTS = (2, 2, 1), (1, 2, 2)
"""How often that is a session, a probe, or a connection, which takes longest: features and configuration space are read
then."""
_NUMBERS: Final = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 127, 128, 255, 256, 511, 512, 1023, 1024, 4095, 4096, 4097,
                   0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1,
                   1 << 63, (1 << 64) - 1)
_SHOWS_AGAIN: Final = 0.004
FINDINGS: Final = "CHAMBER_FINDINGS"
"""Names the environment's word for where confirmed findings are."""
REPORTS: Final = "CHAMBER_REPORTS"
"""Names the environment's word for where reports are."""
PCI: Final = "CHAMBER_PCI"
"""Is in the environment where a function tells lies."""
COSTS: Final = "CHAMBER_COSTS"
"""Names the environment's word for what sessions cost."""
OCCASIONS: Final = "CHAMBER_OCCASIONS"
"""Names the environment's word for what comes up to lie about."""
_KNOWN: Final[list[Avoidance]] = []
_COSTS: Final[list[Costs]] = []
_OCCASIONS: Final[list[KnownOccasions]] = []
_UNFITTED: Final = 0.1
"""Lies left as they are although nobody saw what they are about come up: other lies may bring it about."""
_ATTEMPTS: Final = 8
_DICE: Final = random.Random()  # noqa: S311 - seeded by AFL++
_FEATURE_BITS: Final = 42
"""Bits of device types and of rings and transports that Linux knows, about."""


def _value(dice: random.Random) -> int:
    match dice.randrange(4):
        case 0:
            return dice.choice(_NUMBERS)
        case 1:
            return dice.randrange(64)
        case 2:
            return -dice.randrange(1, 64) & (1 << 64) - 1
        case _:
            return dice.getrandbits(dice.choice((8, 16, 32, 64)))


def _over_pci() -> bool:
    return PCI in os.environ


@functools.cache
def _points(*, pci: bool) -> tuple[tuple[Point, ...], tuple[int, ...]]:
    """What a lie may be about, and how often each and all before it are chosen."""
    weights = _WEIGHTS | _PCI_WEIGHTS if pci else _WEIGHTS
    return tuple(weights), tuple(itertools.accumulate(weights.values()))


def _small(dice: random.Random) -> int:
    """A count: mostly none, few, now and then many."""
    return int(dice.expovariate(0.4)) & 0x7F


def random_lie(dice: random.Random) -> Lie:
    """Make a lie up."""
    points, weights = _points(pci=_over_pci())
    point = dice.choices(points, cum_weights=weights)[0]
    queue = ANY_QUEUE if dice.random() < 0.3 else dice.randrange(8)
    offset = dice.choice((dice.randrange(16), dice.randrange(64), dice.randrange(512)))
    value = _value(dice)
    if point is Point.FEATURES:
        value = dice.randrange(_FEATURE_BITS)
    elif point is Point.CONFIG_SPACE:
        offset = dice.choice((dice.randrange(64), dice.randrange(0x40, 0x100), dice.randrange(0x1000)))
    elif point in {Point.REGISTER, Point.WRITE_LOST}:
        # A BAR's structures have a page each, and few registers; the message table is another BAR's.
        queue = dice.choice((0, 0, 0, 1))
        offset = dice.randrange(4) << 12 & 0xF000 | dice.randrange(64)
    elif point in NOTHING_ASKED:
        offset = dice.randrange(len(Moment)) | dice.choice((0, dice.randrange(40), dice.randrange(8))) << 8
        if point is Point.MESSAGE:
            # Which queue and which message stand in its upper bytes.
            value = value & 0xFFFFFFFF | dice.randrange(24) << 48 | dice.randrange(4) << 56
        else:
            value = dice.randrange(8)
    return Lie(point, queue, _small(dice), dice.choice((1, 1, 2, _SOME, _EVER)), offset,
               Change(dice.randrange(len(Change))), dice.choice((1, 2, 4, 4, 8)), value)


def _varied(lie: Lie, dice: random.Random) -> Lie:
    """Change one thing about a lie."""
    match dice.randrange(8):
        case 0:
            return lie._replace(value=_value(dice))
        case 1:
            return lie._replace(value=lie.value + dice.choice((-8, -4, -2, -1, 1, 2, 4, 8)) & (1 << 64) - 1)
        case 2:
            return lie._replace(when=_small(dice))
        case 3:
            return lie._replace(offset=(lie.offset + dice.choice((-256, -8, -4, -2, -1, 1, 2, 4, 8, 256))) & 0xFFFF)
        case 4:
            return lie._replace(change=Change(dice.randrange(len(Change))), width=dice.choice((1, 2, 4, 8)))
        case 5:
            return lie._replace(queue=ANY_QUEUE if dice.random() < 0.3 else dice.randrange(8))
        case 6:
            return lie._replace(times=dice.choice((1, 2, _SOME, _EVER)))
        case _:
            return lie._replace(value=lie.value ^ 1 << dice.randrange(64))


class _Phases:
    """Whose turn it is: sessions mostly, and for a few inputs in a row something that costs more.

    A probe is dear because the driver has to be removed before and brought back after it; so is not a row of them.
    """

    def __init__(self) -> None:
        self._left = 0
        self._start: Start | None = None

    def next(self, dice: random.Random) -> Start | None:
        """Return where the next input begins, if it may have costly lies; None for a session without."""
        if self._left:
            self._left -= 1
            return self._start
        share = _COSTLY_PCI_INPUTS if _over_pci() else _COSTLY_INPUTS
        # So that of all inputs that share is in such rows.
        if dice.random() >= share / (share + _ROW * (1 - share)):
            return None
        self._left = _ROW - 1
        self._start = dice.choices(list(Start), _PCI_STARTS if _over_pci() else _STARTS)[0]
        return self._start


def mutate(program: Program, other: Program, dice: random.Random, begin: Start | None = None) -> Program:
    """Vary an input.

    Args:
        program: the input.
        other: one from the same corpus, to take lies from.
        dice: what happens to it.
        begin: where it is to begin, if it may have costly lies; None for a session without.

    """
    lies = list(program.lies)
    use, ring = program.use, program.ring
    for _ in range(1 + min(int(dice.expovariate(0.7)), 5)):
        match dice.randrange(10):
            case 0 | 1 | 2 if len(lies) < _MOST:
                lies.insert(dice.randint(0, len(lies)), random_lie(dice))
            case 3 if lies:
                del lies[dice.randrange(len(lies))]
            case 4 if other.lies and len(lies) < _MOST:
                lies.append(dice.choice(other.lies))
            case 5:
                use = dice.randrange(16)
            case 6 if dice.random() < 0.1:
                ring = dice.randrange(4)
            case _ if lies:
                at = dice.randrange(len(lies))
                lies[at] = _varied(lies[at], dice)
            case _:
                lies.append(random_lie(dice))
    if begin is None:
        lies = [lie for lie in lies if lie.point not in _COSTLY] or [_cheap_lie(dice)]
        if dice.random() >= _FLOODS:
            lies = [lie._replace(times=_SOME) if lie.times == _EVER else lie for lie in lies]
    elif begin is not Start.CONNECT:
        lies = [lie for lie in lies if lie.point not in READ_WHEN_PLUGGED_IN]
    return Program(begin or Start.SESSION, use, ring, tuple(lies[:_MOST]))


def _cheap_lie(dice: random.Random) -> Lie:
    """Make up a lie that a session gets over."""
    while (lie := random_lie(dice)).point in _COSTLY:
        pass
    return lie


_PHASES: Final = _Phases()


# What AFL++ calls.

def init(seed: int) -> None:
    """Begin."""
    _DICE.seed(seed)
    _VARIED.begin()
    if FINDINGS in os.environ:
        _KNOWN[:] = [Avoidance(Path(os.environ[FINDINGS]), Path(os.environ[REPORTS]))]
    if COSTS in os.environ:
        _COSTS[:] = [Costs(Path(os.environ[COSTS]))]
    if OCCASIONS in os.environ:
        _OCCASIONS[:] = [KnownOccasions(Path(os.environ[OCCASIONS]))]


class _Varied:
    """Varied inputs, made some at a time: what else runs between two of them would have this code fetched anew.

    Attributes:
        turns: how many are wanted of the input that comes next.

    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was made."""
        self.turns = 1
        self._of = b""
        self._others: deque[Program] = deque(maxlen=_AHEAD)
        self._made: list[bytearray] = []

    def next(self, data: bytes, other: bytes, max_size: int) -> bytearray:
        """Return a varied input; `other` is one to take lies from, now or for one of the next."""
        self._others.append(Program.parse(other))
        if data != self._of or not self._made:
            self._of = data
            self._made = [self._vary(Program.parse(data), max_size) for _ in range(min(self.turns, _AHEAD))]
        return self._made.pop()

    def _vary(self, program: Program, max_size: int) -> bytearray:
        program = mutate(program, _DICE.choice(self._others), _DICE, _PHASES.next(_DICE))
        for occasions in _OCCASIONS:
            program = fitted(program, occasions.of(program.start, program.use), _DICE)
        for known in _KNOWN:
            program = _without(program, known, _DICE)
        room = (max_size - HEADER.size) // RECORD.size
        return bytearray(replace(program, lies=program.lies[:room]).build())


_VARIED: Final = _Varied()


def fuzz(data: bytearray, other: bytearray | None, max_size: int) -> bytearray:
    """Return a varied input."""
    return _VARIED.next(bytes(data), bytes(other or b""), max_size)


def fitted(program: Program, occasions: Occasions | None, dice: random.Random) -> Program:
    """Have most lies be about what comes up; None where that is not known."""
    if occasions is None:
        return program
    lies = [fit for lie in program.lies
            if (fit := lie if dice.random() < _UNFITTED else occasions.fit(lie, dice)) is not None]
    for _ in range(_ATTEMPTS):
        if lies:
            break
        fit = occasions.fit(_cheap_lie(dice), dice)
        lies = [] if fit is None else [fit]
    return replace(program, lies=tuple(lies))


def _without(program: Program, known: Avoidance, dice: random.Random) -> Program:
    """Leave lies out until an input does not show any more what is known; now and then not, as it may hide more."""
    if dice.random() < _SHOWS_AGAIN:
        return program
    while kinds := known.shows(program):
        out = dice.choice(sorted(kinds))
        program = replace(program, lies=tuple(lie for lie in program.lies if out not in kinds_of(lie)))
    return program


def fuzz_count(data: bytearray) -> int:
    """Return how often to vary an input before it is another's turn; AFL++ would dwell on each for a thousand times."""
    use = Program.parse(bytes(data)).use
    _VARIED.turns = round(_TURNS * _COSTS[0].share(use)) if _COSTS else _TURNS
    return _VARIED.turns


class _Trim:
    """An input that AFL++ has shortened: lies before `at` are needed."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.at = 0
        self.attempts = 0

    def without(self) -> Program:
        """The input without the lie that is looked at."""
        lies = self.program.lies
        return replace(self.program, lies=lies[:self.at] + lies[self.at + 1:])


_TRIMS: Final[list[_Trim]] = []
"""The one at work, if there is one."""


def init_trim(data: bytearray) -> int:
    """Begin to shorten an input; return how many attempts there will be."""
    _TRIMS[:] = [_Trim(Program.parse(bytes(data)))]
    return len(_TRIMS[0].program.lies)


def trim() -> bytearray:
    """Leave one lie out."""
    return bytearray(_TRIMS[0].without().build())


def post_trim(success: bool) -> int:
    """Keep what covers the same; return how many attempts were made."""
    current = _TRIMS[0]
    if success:
        current.program = current.without()
    else:
        current.at += 1
    current.attempts += 1
    return current.attempts


def shortened() -> Program:
    """What the last shortening has come to."""
    return _TRIMS[0].program


def deinit() -> None:
    """End."""
