"""From nothing to RUN: what a guest and a trusted device say, how long they take, and what of it is cryptography."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives import hashes

from chamber.device.catalogue import make_device
from chamber.device.spdm_identity import make_slot
from chamber.device.tdi import PLACES
from chamber.device.trusted_function import TrustedFunction
from chamber.device.virtio_pci import VirtioPci
from chamber.guest.spdm_requester import SpdmRequester
from chamber.guest.trust_policy import parse_trust
from chamber.guest.verifier import Verifier
from chamber.lab.observation import TargetError
from chamber.platform.ide import IdeStream
from chamber.platform.memory import GuestMemory
from chamber.wire.ide_km import INITIAL_IFV, KEY_SIZE, SubStream
from chamber.wire.tdisp import FunctionId
from chamber.wire.tlp import MemoryWrite
from chamber.wire.virtio import DeviceType

__all__ = ("attest_rows", "link_rows")

RUNS: Final = 15
_FUNCTION: Final = FunctionId(0x0100)
_PAYLOADS: Final = (64, 256, 4096)
_PACKETS: Final = 2000


def _openssl(*what: str) -> str:
    try:
        return subprocess.run(("openssl", "speed", "-seconds", "1", *what), capture_output=True, text=True, check=True,
                              timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise TargetError(f"openssl speed: {error}") from error


def attest_rows() -> list[str]:
    """One device, again and again: through the mailbox's registers, as over a bus that costs nothing."""
    slot = make_slot()
    memory = GuestMemory(1 << 16, private=False)
    device = TrustedFunction(VirtioPci(make_device(DeviceType.NET)), slot, shared=memory.host, private=memory.host,
                             routing_id=int(_FUNCTION))
    root = slot.certificates[0].fingerprint(hashes.SHA256()).hex()
    policy = parse_trust(f'schema = "chamber-trust/1"\nroots = ["{root}"]\n', "bench")
    device.tdi.place()
    said: list[tuple[int, int]] = []

    def exchange(data: bytes, secured: bool) -> bytes:
        answer = device.responder.handle(data, secured=secured)
        back = b"" if answer is None else answer[0]
        said.append((len(data), len(back)))
        return back

    times = []
    for _ in range(RUNS):
        said.clear()
        begin = time.perf_counter()
        verifier = Verifier(SpdmRequester(exchange, os.urandom), _FUNCTION, policy, now=datetime.now(UTC),
                            random=os.urandom, stream=IdeStream(0), mapped=PLACES)
        verifier.attest()
        times.append((time.perf_counter() - begin) * 1000)
        messages = len(said)
        size = sum(map(sum, said))
        verifier.give_up()
    whole = statistics.median(times)
    share = _crypto_milliseconds()
    return [f"| {messages} | {size:,} | {whole:.1f} | {share:.1f} | {share / whole:.0%} |"]


def _crypto_milliseconds() -> float:
    """What the signatures and the exchange take `openssl speed`: both ends, P-384.

    The device signs three times (challenge, measurements, key exchange); the guest verifies them, and two links of the
    chain; each end makes a key of the exchange, which costs as much as agreeing does.
    """
    said = _openssl("ecdsap384", "ecdhp384")
    signing = re.search(r"ecdsa \(nistp384\)\s+([\d.]+)s\s+([\d.]+)s", said)
    agreeing = re.search(r"ecdh \(nistp384\)\s+([\d.]+)s", said)
    if signing is None or agreeing is None:
        raise TargetError("openssl speed says nothing of P-384")
    sign, verify, agree = (float(number) * 1000 for number in (signing[1], signing[2], agreeing[1]))
    return 3 * sign + 5 * verify + 4 * agree


def link_rows() -> list[str]:
    """Writes through an encrypted stream, both ends, beside what the cipher alone does."""
    rows = []
    for size in _PAYLOADS:
        near, far = IdeStream(0), IdeStream(0)
        for number in SubStream:
            for way in (True, False):
                key = os.urandom(KEY_SIZE)
                for end, transmit in ((near, way), (far, not way)):
                    end.program(number, transmit=transmit, key_set=0, key=key, ifv=INITIAL_IFV)
        for number in SubStream:
            for way in (False, True):
                for end in (near, far):
                    end.go(number, transmit=way, key_set=0)
        packet = MemoryWrite(0, 0x8000_0000, bytes(size))
        begin = time.perf_counter()
        for _ in range(_PACKETS):
            far.receive(near.send(packet, trusted=True))
        rate = _PACKETS * size / (time.perf_counter() - begin) / 1e6
        said = re.search(r"AES-256-GCM\s+([\d.]+)k", _openssl("-bytes", str(size), "-evp", "aes-256-gcm"))
        if said is None:
            raise TargetError("openssl speed says nothing of AES-256-GCM")
        # Sealed at one end and opened at the other: the cipher goes over each byte twice.
        alone = float(said[1]) / 2000
        rows.append(f"| {size:,} | {rate:,.1f} | {alone:,.0f} | {rate / alone:.1%} |")
    return rows
