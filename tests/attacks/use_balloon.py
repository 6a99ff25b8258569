"""How the scripted victim uses a balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.balloon import CMD_ID_STOP, CONFIG, PAGE_SIZE, STAT, pack_pfns

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)


def use(victim: Victim) -> None:
    """Inflate and deflate, answer statistics, hint and report."""
    driver = victim.driver
    start = -(-driver.place(16 * PAGE_SIZE) // PAGE_SIZE) * PAGE_SIZE
    pages = pack_pfns(start + i * PAGE_SIZE for i in range(8))
    victim.request(STATS, [STAT.pack(4, 1)], [])
    for action in ("inflate", "deflate"):
        victim.device.host_action(action)
        victim.device.read_config(CONFIG["num_pages"].offset, 4)
    for _ in range(3):
        victim.request(INFLATE, [pages], [])
        victim.request(DEFLATE, [pages], [])
        victim.device.write_config(CONFIG["actual"].offset, bytes(4))
    for _ in range(3):
        victim.device.host_action("statistics")
        victim.collect(STATS)
        victim.request(STATS, [STAT.pack(4, 2)], [])
    victim.device.host_action("hint")
    command = victim.device.read_config(CONFIG["free_page_hint_cmd_id"].offset, 4)
    victim.request(HINT, [command], [])
    for _ in range(3):
        victim.request(HINT, [], [PAGE_SIZE])
        victim.request(REPORT, [], [PAGE_SIZE])
    victim.request(HINT, [CMD_ID_STOP.to_bytes(4, "little")], [])
