"""How the scripted victim uses an input device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.input import CONFIG, EVENT, STATUS_QUEUE, Abs, EventType, InputEvent, Select

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

EVENT_QUEUE = 0
SELECTIONS = ((Select.ID_NAME, 0), (Select.ID_DEVIDS, 0), *((Select.EV_BITS, kind) for kind in EventType),
              (Select.ABS_INFO, Abs.X), (Select.ABS_INFO, Abs.MT_SLOT))


def use(victim: Victim) -> None:
    """Select everything, twice; lend buffers, have the host type, move and touch; switch lamps."""
    device = victim.device
    for _ in range(2):
        for select, subsel in SELECTIONS:
            device.write_config(0, bytes((select, subsel)))
            for name in ("size", "u"):
                device.read_config(CONFIG[name].offset, CONFIG[name].size)
    for action in ("type", "move", "touch"):
        for _ in range(25):
            victim.driver.add(EVENT_QUEUE, [], [EVENT.size])
        victim.driver.notify(EVENT_QUEUE)
        device.host_action(action)
        victim.collect(EVENT_QUEUE)
        victim.wait()
    for lit in (1, 0, 1):
        victim.request(STATUS_QUEUE, [InputEvent(EventType.LED, 0, lit).build()], [])
