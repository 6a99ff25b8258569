"""How the scripted victim uses SCSI disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.scsi import (
    AN_REQUEST,
    CONTROL_QUEUE,
    EVENT_QUEUE,
    REQUEST_QUEUE,
    TASK_MANAGEMENT,
    Address,
    ControlType,
    TaskFunction,
)
from chamber.wire.scsi import COMMAND as HEADER
from chamber.wire.scsi_commands import UNMAP_DESCRIPTOR, UNMAP_HEADER, Opcode, ServiceAction, VpdPage, build_cdb
from chamber.wire.split import DESC_F_INDIRECT, DESC_F_WRITE

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

FIRST, SECOND = Address(0, 0), Address(0, 1)
RESPONSE = 108


def command(victim: Victim, cdb: bytes, room: int = 0, out: bytes = b"", at: Address = FIRST) -> None:
    header = HEADER.pack(at.pack(), 1, 0, 0, 0) + cdb.ljust(32, b"\0")
    victim.request(REQUEST_QUEUE, [header, *([out] if out else [])], [RESPONSE, *([room] if room else [])])
    victim.collect(EVENT_QUEUE)


def indirect_read(victim: Victim) -> None:
    driver = victim.driver
    header = HEADER.pack(FIRST.pack(), 1, 0, 0, 0) + build_cdb(Opcode.READ_10, length=1).ljust(32, b"\0")
    parts = [(driver.place(len(header)), len(header), 0), (driver.place(RESPONSE), RESPONSE, DESC_F_WRITE),
             (driver.place(512), 512, DESC_F_WRITE)]
    driver.memory.write(parts[0][0], header)
    queue = driver.queues[REQUEST_QUEUE]
    table = queue.table(parts)
    address = driver.place(len(table))
    driver.memory.write(address, table)
    head = queue.add([(address, len(table), DESC_F_INDIRECT)])
    queue.buffers[head] = [part[:2] for part in parts[1:]]
    driver.notify(REQUEST_QUEUE)
    victim.collect(REQUEST_QUEUE)


def look(victim: Victim) -> None:
    """Ask each unit what it is."""
    for at in (FIRST, SECOND):
        command(victim, build_cdb(Opcode.TEST_UNIT_READY), at=at)
        for _ in range(2):
            command(victim, build_cdb(Opcode.INQUIRY, length=96), 96, at=at)
        for page in VpdPage:
            command(victim, build_cdb(Opcode.INQUIRY, flags=1, b2=page, length=255), 255, at=at)
        command(victim, build_cdb(Opcode.READ_CAPACITY_10), 8, at=at)
        command(victim, build_cdb(Opcode.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16, length=32), 32, at=at)
        command(victim, build_cdb(Opcode.REPORT_LUNS, length=264), 264, at=at)
        command(victim, build_cdb(Opcode.MODE_SENSE_6, b2=0x3F, length=255), 255, at=at)


def use(victim: Victim) -> None:
    """Look for disks, read, write, discard, manage; look again."""
    for _ in range(8):
        victim.driver.add(EVENT_QUEUE, [], [16])
    victim.driver.notify(EVENT_QUEUE)
    look(victim)
    for lba in (0, 8, 16, 24):
        command(victim, build_cdb(Opcode.READ_10, lba=lba, length=8), 4096)
    for _ in range(4):
        indirect_read(victim)
    for letter in (b"a", b"b", b"c"):
        command(victim, build_cdb(Opcode.WRITE_16, lba=8, length=1), out=letter * 512)
        command(victim, build_cdb(Opcode.READ_16, lba=8, length=1), 512)
        command(victim, build_cdb(Opcode.SYNCHRONIZE_CACHE_10))
    row = UNMAP_DESCRIPTOR.pack(16, 8)
    for _ in range(2):
        command(victim, build_cdb(Opcode.UNMAP, length=24), out=UNMAP_HEADER.pack(22, 16) + row)
        command(victim, build_cdb(Opcode.WRITE_SAME_16, lba=32, length=8), out=bytes(512))
    for function in (TaskFunction.QUERY_TASK, TaskFunction.LOGICAL_UNIT_RESET) * 2:
        victim.request(CONTROL_QUEUE, [TASK_MANAGEMENT.pack(ControlType.TMF, function, FIRST.pack(), 1)], [1])
        victim.request(CONTROL_QUEUE, [AN_REQUEST.pack(ControlType.AN_QUERY, FIRST.pack(), 0x7E)], [5])
    for action in ("plug", "unplug", "reset"):
        victim.device.host_action(action)
        victim.collect(EVENT_QUEUE)
        victim.driver.add(EVENT_QUEUE, [], [16])
        victim.driver.notify(EVENT_QUEUE)
    look(victim)
    for lba in (0, 8, 16, 24):
        header = HEADER.pack(FIRST.pack(), lba, 0, 0, 0) + build_cdb(Opcode.READ_10, lba=lba, length=1).ljust(32, b"\0")
        victim.driver.add(REQUEST_QUEUE, [header], [RESPONSE, 512])
    victim.driver.notify(REQUEST_QUEUE)
    victim.collect(REQUEST_QUEUE)
