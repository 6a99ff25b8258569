"""A guest that believes everything, survives everything, and uses each device long enough to be attacked."""

from __future__ import annotations

import heapq
import random
import struct
from typing import TYPE_CHECKING, Any

from chamber.attacks.config import LAYOUTS
from chamber.device.catalogue import make_device
from chamber.device.net import GUEST_MAC
from chamber.device.net_peer import GUEST_IP, PEER_IP
from chamber.wire import blk, net
from chamber.wire.blk import RequestType
from chamber.wire.console import CONTROL_RX_QUEUE, CONTROL_TX_QUEUE, ConsoleEvent, rx_queue, tx_queue
from chamber.wire.ethernet import BROADCAST, Arp, Ethernet, EtherType, IcmpEcho, IpProtocol, Ipv4
from chamber.wire.split import DESC_F_INDIRECT, DESC_F_WRITE
from chamber.wire.virtio import DeviceType, Feature
from tests.attacks import use_balloon, use_crypto, use_fs, use_input, use_p9, use_pmem, use_scsi, use_snd, use_vsock
from tests.device.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.attacks.attack import Attack

USES: dict[DeviceType, Callable[[Victim], None]] = {
    DeviceType.BALLOON: use_balloon.use,
    DeviceType.CRYPTO: use_crypto.use,
    DeviceType.PMEM: use_pmem.use,
    DeviceType.FS: use_fs.use,
    DeviceType.TRANSPORT_9P: use_p9.use,
    DeviceType.INPUT: use_input.use,
    DeviceType.SND: use_snd.use,
    DeviceType.SCSI: use_scsi.use,
    DeviceType.VSOCK: use_vsock.use,
}
"""How each device type is used, besides those that `Victim` itself uses."""


class Victim:
    """Runs one attack against the scripted use of its device.

    Attributes:
        interrupts: how many the device sent.
        answers: what was written into completed buffers, as far as used.len goes and the buffer reaches.

    """

    def __init__(self, device_type: DeviceType, attack: Attack, *, event_idx: bool = False,
                 ring: str = "split", reset: bool = False) -> None:
        self.attack = attack
        self._reset = reset
        chance: dict[DeviceType, dict[str, Any]] = {
            DeviceType.RNG: {"source": random.Random(1).randbytes}, DeviceType.VSOCK: {"first_port": 1 << 30}}
        self.device = make_device(device_type, hooks=attack, ring=ring, **chance.get(device_type, {}))
        self._clock = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.device.schedule = self._schedule
        self.answers: list[tuple[int, bytes]] = []
        offered = self.device.offered_features()
        if not event_idx:
            offered &= ~(1 << Feature.RING_EVENT_IDX)
        self._read_config()
        self.driver = Driver(self.device, features=offered, memory=8 << 20)
        self._config_reads = 0
        self.config_interrupts = 0
        self.device.config_interrupt = self._config_changed

    @property
    def interrupts(self) -> int:
        interrupts: int = self.config_interrupts + sum(queue.interrupts for queue in self.driver.queues)
        return interrupts

    def run(self) -> None:
        """Use the device, let time pass, and remove it."""
        own = {DeviceType.BLOCK: self._use_blk, DeviceType.NET: self._use_net, DeviceType.CONSOLE: self._use_console,
               DeviceType.RNG: self._use_rng}.get(self.device.type)
        if own is None:
            USES[self.device.type](self)
        else:
            own()
        self._read_config()
        self.wait()
        if self._reset:
            for queue in self.device.queues:
                self.driver.reset_queue(queue.index)
            self.wait()
        for queue in reversed(self.device.queues):
            self.device.stop_queue(queue.index)
        self.wait()
        self.device.close()

    # Time.

    def _schedule(self, delay: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (self._clock + delay, self._count, call))

    def wait(self) -> None:
        """Let all timers fire; they must come to an end."""
        for _ in range(2000):
            if not self._timers:
                return
            self._clock, _, call = heapq.heappop(self._timers)
            call()
            for index in range(len(self.driver.queues)):
                self.collect(index)
        raise AssertionError("the attack never comes to an end")

    # Configuration.

    def _config_changed(self) -> None:
        self.config_interrupts += 1
        if self._config_reads < 50:
            self._config_reads += 1
            self._read_config()

    def _read_config(self) -> None:
        layout = LAYOUTS.get(self.device.type)
        if layout is None or self.device.type is DeviceType.CONSOLE:
            self.device.read_config(0, 12)
            self.device.read_config(4, 4)
            return
        for _ in range(2):
            for field in layout:
                self.device.read_config(field.offset, field.size)

    # Queues.

    def collect(self, index: int) -> None:
        """Take what was used, whatever it says."""
        queue = self.driver.queues[index]
        memory = self.driver.memory
        for _ in range(2 * queue.size):
            element = queue.take()
            if element is None:
                break
            at, head, length = element
            self.attack.guest_read(at, 8)
            for address, size in queue.buffers.pop(head, []):
                self.answers.append((index, memory.read(address, min(length, size))))
                self.attack.guest_read(address, size)

    def request(self, index: int, readable: list[bytes], writable: list[int]) -> None:
        """One chain, notified, and collected if it comes back at once."""
        self.driver.add(index, readable, writable)
        self.driver.notify(index)
        self.collect(index)

    # Stimuli.

    def _use_blk(self) -> None:
        def header(kind: RequestType, sector: int = 0) -> bytes:
            return blk.REQUEST_STRUCT.pack(kind, 0, sector)

        for sector in (0, 8, 16, 24):
            self.request(0, [header(RequestType.IN, sector)], [4096, 1])
        for _ in range(4):
            self._indirect_read()
        for letter in (b"a", b"b", b"c", b"d"):
            self.request(0, [header(RequestType.OUT, 8), letter * 512], [1])
            self.request(0, [header(RequestType.IN, 8)], [512, 1])
        segment = blk.SEGMENT_STRUCT.pack(16, 8, 0)
        for kind, data, room in ((RequestType.GET_ID, [], [20, 1]), (RequestType.FLUSH, [], [1]),
                                 (RequestType.DISCARD, [segment], [1]), (RequestType.WRITE_ZEROES, [segment], [1])) * 2:
            self.request(0, [header(kind), *data], room)
        for sector in (0, 8, 16, 24):
            self.driver.add(0, [header(RequestType.IN, sector)], [512, 1])
        self.driver.notify(0)
        self.collect(0)

    def _indirect_read(self) -> None:
        driver = self.driver
        parts = [(driver.place(16), 16, 0), (driver.place(512), 512, DESC_F_WRITE), (driver.place(1), 1, DESC_F_WRITE)]
        queue = driver.queues[0]
        table = queue.table(parts)
        address = driver.place(len(table))
        driver.memory.write(address, table)
        head = queue.add([(address, len(table), DESC_F_INDIRECT)])
        queue.buffers[head] = [parts[1][:2], parts[2][:2]]
        driver.notify(0)
        self.collect(0)

    def _use_rng(self) -> None:
        for _ in range(4):
            self.request(0, [], [64])
        self.driver.add(0, [], [64])
        self.request(0, [], [64])

    def _use_console(self) -> None:
        def say(port: int, event: ConsoleEvent) -> None:
            self.request(CONTROL_TX_QUEUE, [struct.pack("<IHH", port, event, 1)], [])
            self.collect(CONTROL_RX_QUEUE)

        for _ in range(32):
            self.driver.add(CONTROL_RX_QUEUE, [], [256])
        self.driver.notify(CONTROL_RX_QUEUE)
        say(0, ConsoleEvent.DEVICE_READY)
        for port in (0, 1):
            for _ in range(8):
                self.driver.add(rx_queue(port), [], [256])
            self.driver.notify(rx_queue(port))
            say(port, ConsoleEvent.PORT_READY)
            say(port, ConsoleEvent.PORT_OPEN)
            for _ in range(3):
                self.request(tx_queue(port), [b"hello"], [])
                self.collect(rx_queue(port))

    def _use_net(self) -> None:
        header = bytes(net.HDR_HASH.size if self.device.has(net.NetFeature.HASH_REPORT) else net.HDR.size)
        for _ in range(40):
            self.driver.add(0, [], [2048])
        self.driver.notify(0)
        control = [i for i in range(len(self.driver.queues)) if self.device.queue_role(i) == "ctrl"]
        if control and self.device.has(net.NetFeature.CTRL_VQ):
            for command in (b"\x00\x00\x01", b"\x00\x01\x00", b"\x01\x01" + GUEST_MAC):
                self.request(control[0], [command], [1])
        arp = Arp(Arp.REQUEST, GUEST_MAC, GUEST_IP, bytes(6), PEER_IP).build()
        frames = [Ethernet(BROADCAST, GUEST_MAC, EtherType.ARP, arp).build()]
        for i in range(4):
            echo = IcmpEcho(IcmpEcho.REQUEST, 1, i, b"ping" * 8).build()
            packet = Ipv4(GUEST_IP, PEER_IP, IpProtocol.ICMP, echo).build()
            frames.append(Ethernet(b"\x02\x00\x00\x00\x00\x01", GUEST_MAC, EtherType.IPV4, packet).build())
        for frame in frames:
            self.request(1, [header, frame], [])
            self.collect(0)
