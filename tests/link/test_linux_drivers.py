"""Stock Linux drivers over PCI: what is typed is read back by evdev, random bytes by hwrng."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from chamber.device.input import EVERYTHING, InputDevice
from chamber.device.input_actions import ACTIONS
from chamber.device.rng import RngDevice
from chamber.wire.input import Abs, EventType, InputEvent, bitmap
from tests.link.frontend import Served
from tests.link.linux_guest import NEEDED, run_linux

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

pytestmark = NEEDED

SENT = [event for action in ("type", "move", "touch") for sequence in ACTIONS[action] for event in sequence]
RECORD = struct.Struct("<qqHHi")
_REPEAT = 2


def _told() -> list[InputEvent]:
    """What Linux tells its users of it: a contact is named when another one is meant than before, first number 0."""
    told, slot = [], 0
    for event in SENT:
        if (event.type, event.code) == (EventType.ABS, Abs.MT_SLOT):
            if event.value == slot:
                continue
            slot = event.value
        told.append(event)
    return told


class Answering(InputDevice):
    """Types, moves and touches when the guest switches a lamp on."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        super().handle(queue, chain)
        if self.states.get((EventType.LED, 1)):
            for action in ("type", "move", "touch"):
                self.host_action(action)
            self.states.clear()


def _octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


def test_events_are_read_back_by_evdev(tmp_path: Path) -> None:
    lamp = b"".join(RECORD.pack(0, 0, *event) for event in ((EventType.LED, 1, 1), (EventType.SYN, 0, 0)))
    # The reader is there before the lamp is lit; evdev gives events to who has the node open.
    told = _told()
    script = f"""
own=$(dirname $(dirname $(grep -l Chamber /sys/class/input/event*/device/name)))
cat $own/device/name $own/device/capabilities/rel
(timeout 10 dd if=/dev/input/$(basename $own) bs=24 count={len(told) + 2} 2>/dev/null > /tmp/events) &
sleep 1
printf '{_octal(lamp)}' > /dev/input/$(basename $own)
wait
od -An -v -tx1 /tmp/events"""
    device = Answering()
    path = tmp_path / "socket"
    with Served(device, path):
        name, rel, *dump = run_linux(tmp_path, path, "vhost-user-input-pci", ("evdev", "virtio_input"),
                                     script)[1:]
    assert name == EVERYTHING.name
    assert int(rel, 16) == int.from_bytes(bitmap(EVERYTHING.codes[EventType.REL]), "little")
    came = [InputEvent(*entry[2:]) for entry in RECORD.iter_unpack(bytes.fromhex("".join(dump).replace(" ", "")))]
    # The device answers as soon as it hears of the lamp: before the guest is done with what ends its event, perhaps.
    # Then that end stands somewhere among the answer, or takes the place of one of the answer's own (input.c flushes
    # at the first, and drops the other, which is alone). Who reads on for one more gets a key that repeats by then.
    came = [event for event in came if (event.type, event.value) != (EventType.KEY, _REPEAT)]
    asked = [InputEvent(EventType.LED, 1, 1), *told]
    end = InputEvent(EventType.SYN, 0, 0)
    without = [came[:at] + came[at + 1:] for at, event in enumerate(came) if event == end]
    assert asked in [came, *without], came
    assert not device.dropped
    assert not device.violations


def test_random_bytes_are_read_back_by_hwrng(tmp_path: Path) -> None:
    given = bytearray()
    dice = random.Random(3)

    def source(size: int) -> bytes:
        data = dice.randbytes(size)
        given.extend(data)
        return data

    device = RngDevice(source=source)
    path = tmp_path / "socket"
    with Served(device, path):
        name, *dump = run_linux(tmp_path, path, "vhost-user-rng-pci", ("virtio-rng",), """
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng bs=16 count=8 2>/dev/null | od -An -v -tx1""")[1:]
    assert name.startswith("virtio_rng")
    read = bytes.fromhex("".join(dump).replace(" ", ""))
    assert len(read) == 128
    # The kernel hands what it has been given on in an order of its own, and feeds its pool from it as well.
    places = [given.find(read[start:start + 16]) for start in range(0, len(read), 16)]
    assert min(places) >= 0
    assert len(set(places)) == len(places)
    assert not device.violations
