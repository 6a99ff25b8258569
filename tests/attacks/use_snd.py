"""How the scripted victim uses a sound device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.snd import (
    CHMAP_INFO,
    CONTROL_QUEUE,
    CTL_INFO,
    ENUM_ITEM,
    EVENT,
    EVENT_QUEUE,
    HDR,
    ITEM_HDR,
    JACK_INFO,
    PCM_INFO,
    QUERY,
    RX_QUEUE,
    STATUS,
    TX_QUEUE,
    VALUE_SIZE,
    XFER,
    Params,
    PcmFormat,
    SndCode,
)

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

PERIOD = 480


def use(victim: Victim) -> None:
    """Ask for everything, play, record, turn knobs, move a plug."""
    driver = victim.driver
    for _ in range(16):
        driver.add(EVENT_QUEUE, [], [EVENT.size])
    driver.notify(EVENT_QUEUE)
    for code, layout, count in ((SndCode.JACK_INFO, JACK_INFO, 2), (SndCode.PCM_INFO, PCM_INFO, 2),
                                (SndCode.CHMAP_INFO, CHMAP_INFO, 2), (SndCode.CTL_INFO, CTL_INFO, 3)) * 2:
        victim.request(CONTROL_QUEUE, [QUERY.pack(code, 0, count, layout.size)], [HDR.size + count * layout.size])
    victim.request(CONTROL_QUEUE, [ITEM_HDR.pack(SndCode.CTL_ENUM_ITEMS, 2)], [HDR.size + 3 * ENUM_ITEM.size])
    for value in (70, 80):
        raw = (value.to_bytes(4, "little") * 2).ljust(VALUE_SIZE, b"\0")
        victim.request(CONTROL_QUEUE, [ITEM_HDR.pack(SndCode.CTL_WRITE, 0) + raw], [HDR.size])
        victim.request(CONTROL_QUEUE, [ITEM_HDR.pack(SndCode.CTL_READ, 0)], [HDR.size + VALUE_SIZE])
    for room in (16, 64):
        victim.request(CONTROL_QUEUE, [ITEM_HDR.pack(SndCode.CTL_TLV_READ, 0)], [HDR.size + room])
    params = Params(4 * PERIOD, PERIOD, 2, PcmFormat.S16, 7)
    for stream, queue in ((0, TX_QUEUE), (1, RX_QUEUE)):
        victim.request(CONTROL_QUEUE, [params.build(stream)], [HDR.size])
        for code in (SndCode.PCM_PREPARE, SndCode.PCM_START):
            victim.request(CONTROL_QUEUE, [ITEM_HDR.pack(code, stream)], [HDR.size])
        for _ in range(4):
            frames = b"\1\2" * (PERIOD // 2)
            if queue == TX_QUEUE:
                victim.request(queue, [XFER.pack(stream) + frames], [STATUS.size])
            else:
                victim.request(queue, [XFER.pack(stream)], [PERIOD, STATUS.size])
            victim.wait()
        for code in (SndCode.PCM_STOP, SndCode.PCM_RELEASE):
            victim.request(CONTROL_QUEUE, [ITEM_HDR.pack(code, stream)], [HDR.size])
    for action in ("unplug", "plug", "volume"):
        victim.device.host_action(action)
        victim.collect(EVENT_QUEUE)
