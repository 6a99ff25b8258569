"""``chamber tdisp``: trusted devices, served and looked at, in the framing of DMTF's emulators."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from chamber.assess.printable import printable
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.serve import serve_over_vfio
from chamber.cli.tdisp_compare import ask_everything
from chamber.device.catalogue import TYPES, make_device
from chamber.device.spdm_identity import KEY_KINDS, make_slot
from chamber.device.trusted_function import BehindRootPort, TrustedFunction
from chamber.device.virtio_pci import VirtioPci
from chamber.guest.doe import DoeRequester, Silence
from chamber.guest.spdm_requester import SpdmRequester
from chamber.guest.trust_policy import SCHEMA, load_trust
from chamber.guest.tsm import Tsm
from chamber.guest.untrusted import ENFORCING, DeviceViolation
from chamber.guest.verifier import FLAGS, NotTrusted, Verifier
from chamber.guest.virtio_tdi import map_by_report
from chamber.lab.linux_tdisp import SysfsFunction
from chamber.lab.linux_tsm import CHANNEL, SysfsPort, TsmChannel, function_name
from chamber.lab.observation import TargetError
from chamber.link.spdm_socket import SpdmClient, SpdmServer, SpdmSilence
from chamber.platform.dma import NoDma
from chamber.platform.ide import IdeStream
from chamber.platform.spdm_crypto import hash_of
from chamber.wire.device_types import FEATURES
from chamber.wire.doe import PCI_SIG as DOE_VENDOR
from chamber.wire.doe import DataObject, DoeType
from chamber.wire.errors import WireError
from chamber.wire.spdm_emulator import Transport
from chamber.wire.spdm_messages import Measurement, MeasurementType
from chamber.wire.tdi_report import PAGE, InterfaceReport
from chamber.wire.tdisp import FunctionId, LockFlag
from chamber.wire.virtio import DeviceType, feature_names

if TYPE_CHECKING:
    from chamber.guest.verifier import Attested
    from chamber.platform.dma import Dma
    from chamber.platform.spdm_chain import CertificateSlot

__all__ = ("tdisp_group",)

_MEASURED: Final = (
    Measurement(1, MeasurementType.ROM, b"boot code of a device that there is not"),
    Measurement(2, MeasurementType.FIRMWARE, b"chamber"),
    Measurement(3, MeasurementType.SECURE_VERSION, (1).to_bytes(8, "little")))
"""What a device that Chamber serves says that it runs."""
_NO_GUEST: Final = NoDma("no guest is there")
_MOST_REPORT: Final = 1 << 17
_MOST_OBJECT: Final = 1 << 14
_VERSIONS: Final = {"1.1": 0x11, "1.2": 0x12, "1.3": 0x13, "1.4": 0x14}
_KINDS: Final = {kind.short: kind for kind in TYPES}
_TRANSPORTS: Final = {transport.name.lower(): transport for transport in Transport}


@click.group("tdisp")
def tdisp_group() -> None:
    """Serve, attest and look at devices that become part of a guest's trusted base (docs/tdisp.md)."""


class _Address(click.ParamType):  # type: ignore[type-arg]
    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 0xFFFF:
            self.fail(f"{value!r} is no HOST:PORT", param, ctx)
        return host.strip("[]"), int(port)


_transport = click.option("--transport", type=click.Choice(sorted(_TRANSPORTS)), default="doe", show_default=True,
                          help="What carries SPDM.")
_function = click.option("--function", "function", default="beef", show_default=True, metavar="HEX",
                         help="Requester id of the interface; that of DMTF's emulators by default.")


def _function_id(text: str) -> FunctionId:
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number <= 0xFFFF:
        raise click.UsageError(f"--function: {text!r} is no requester id")
    return FunctionId(number)


@tdisp_group.command()
@click.option("--listen", "address", type=_Address(), help="Where; port 0 for any that is free.")
@click.option("--socket", "path", type=click.Path(path_type=Path),
              help="Or over vfio-user, as a function of a virtual machine, where --function says.")
@_transport
@click.option("--device", "short", type=click.Choice(sorted(_KINDS)), default="blk", show_default=True)
@click.option("--key", type=click.Choice(sorted(KEY_KINDS)), default="P-384", show_default=True,
              help="What kind of key the device signs with.")
@_function
@click.option("--write-policy", type=click.Path(path_type=Path), help="Write a policy that trusts this device here.")
@click.option("--once", is_flag=True, help="End with the first connection.")
@click.option("--trace", is_flag=True, help="Print what is said.")
def serve(address: tuple[str, int] | None, path: Path | None, transport: str, short: str, key: str, function: str,
          write_policy: Path | None, once: bool, trace: bool) -> None:
    """Serve a trusted virtio device, with an identity that is made for it now."""
    if (address is None) == (path is None):
        raise click.UsageError("either --listen or --socket")
    if path is not None and (once or transport != "doe"):
        raise click.UsageError("--once and --transport go with --listen; over vfio-user there is a mailbox")
    identity, number, chosen = make_slot(key, name=f"virtio-{short}"), _function_id(function), _TRANSPORTS[transport]

    def make(virtio: VirtioPci, memory: Dma) -> TrustedFunction:
        return TrustedFunction(
            virtio, identity, shared=memory, private=memory, measurements=lambda: _MEASURED, routing_id=int(number),
            stream_id=0 if path is None else None, sequence_size=chosen.sequence_size,
            spoken=tuple(_VERSIONS.values()),
            log=(lambda line: click.echo(printable(line))) if trace else (lambda _line: None))

    if write_policy is not None:
        _write_policy(write_policy, identity, short)
    device = VirtioPci(make_device(_KINDS[short]))
    with InterruptOnce():
        try:
            if path is not None:
                serve_over_vfio(BehindRootPort(device, make), path, f"{short} on {path}, function {int(number):#06x}")
            elif address is not None:
                _serve_messages(make(device, _NO_GUEST), address, chosen, once=once, trace=trace)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)


def _serve_messages(device: TrustedFunction, address: tuple[str, int], chosen: Transport, *, once: bool,
                    trace: bool) -> None:
    def answer(message: bytes) -> bytes | None:
        if chosen is Transport.DOE:
            asked = DataObject.decode(message)
            made = device.mailbox.answer(asked)
            return None if made is None else DataObject(asked.vendor, asked.type, made).encode()
        payload, secured = chosen.unwrap(message)
        said = device.responder.handle(payload, secured=secured)
        return None if said is None else chosen.wrap(said[0], secured=said[1])

    def answer_or_drop(message: bytes) -> bytes | None:
        try:
            return answer(message)
        except WireError as error:
            if trace:
                click.echo(printable(f"dropped: {error}"))
            return None

    def connected() -> None:
        device.reset()
        device.tdi.place()

    try:
        server = SpdmServer(address, chosen, answer_or_drop, connected)
    except OSError as error:
        device.close()
        raise click.UsageError(f"{address[0]}:{address[1]}: {error.strerror or error}") from None
    try:
        click.echo(f"serving {device.tdi.virtio.device.type.short} on {address[0]}:{server.port}, function "
                   f"{device.routing_id:#06x}", err=True)
        while True:
            server.serve_one()
            if once:
                return
    finally:
        server.close()
        device.close()


def _write_policy(path: Path, identity: CertificateSlot, short: str) -> None:
    root = identity.certificates[0].fingerprint(hashes.SHA256()).hex()
    rows = []
    for block in _MEASURED:
        name = MeasurementType(block.type).name.lower().replace("_", "-")
        what = (f"least = {int.from_bytes(block.value, 'little')}" if block.type is MeasurementType.SECURE_VERSION else
                f'value = "{hash_of("SHA-384", block.value).hex()}"')
        rows.append(f'[[measurement]]\nindex = {block.index}\ntype = "{name}"\n{what}\n')
    text = (f'schema = "{SCHEMA}"\nname = "served {short}"\nroots = ["{root}"]\ncomplete = true\n\n' + "\n".join(rows)
            + f'\n[device]\ntype = "{short}"\n')
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


@tdisp_group.command()
@click.option("--connect", "address", type=_Address(), required=True, help="Where the device is.")
@_transport
@click.option("--policy", "policy", type=click.Path(path_type=Path), required=True,
              help="Which devices are trusted (docs/tdisp.md).")
@_function
@click.option("--spdm", type=click.Choice(sorted(_VERSIONS)), help="This version of SPDM; the highest by default.")
@click.option("--stream", type=click.IntRange(-1, 255), default=0, show_default=True,
              help="IDE stream to set keys of; -1 for a device that needs none.")
@click.option("--report-out", type=click.Path(path_type=Path), help="Write the interface report here.")
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
def attest(address: tuple[str, int], transport: str, policy: Path, function: str, spdm: str | None, stream: int,
           report_out: Path | None, as_text: bool) -> int:
    """Take a device up to RUN, and stop it; exit status 1 when a check fails."""
    trust, chosen, number = load_trust(policy), _TRANSPORTS[transport], _function_id(function)
    try:
        with SpdmClient(address, chosen) as client:
            options: dict[str, Any] = {} if spdm is None else {"spoken": (_VERSIONS[spdm],)}
            requester = SpdmRequester(client.exchange, os.urandom, sequence_size=chosen.sequence_size, **options)
            verifier = Verifier(requester, number, trust, now=datetime.now(UTC), random=os.urandom,
                                stream=None if stream < 0 else IdeStream(stream))
            try:
                verifier.attest()
                verifier.give_up()
            except NotTrusted:
                pass
            finally:
                requester.close()
    except SpdmSilence as error:
        raise TargetError(f"{address[0]}:{address[1]}: {error}") from None
    seen = verifier.seen
    if report_out is not None and seen.report is not None:
        report_out.write_bytes(seen.report[0])
    if as_text:
        click.echo(json.dumps(_as_json(seen, trust.name), indent=1))
    else:
        for check in seen.checks:
            click.echo(printable(f"{'ok  ' if check.holds else 'FAIL'}  {check.name:13} {check.detail}"))
        held = all(check.holds for check in seen.checks)
        click.echo(f"the device {'is' if held else 'is not'} trusted by policy {trust.name}")
    return int(not all(check.holds for check in seen.checks))


def _as_json(seen: Attested, policy: str) -> dict[str, Any]:
    return {
        "schema": "chamber-attest/1", "policy": policy,
        "trusted": bool(seen.checks) and all(check.holds for check in seen.checks),
        "checks": [{"name": check.name, "holds": check.holds, "detail": printable(check.detail)}
                   for check in seen.checks],
        "certificates": [] if seen.chain is None else [one.public_bytes(Encoding.PEM).decode()
                                                       for one in seen.chain.certificates],
        "measurements": [{"index": block.index, "type": block.type, "raw": block.raw, "value": block.value.hex()}
                         for block in seen.measurements],
        "report": None if seen.report is None else {**_report_json(seen.report[1]), "bytes": seen.report[0].hex()}}


def _report_json(report: InterfaceReport) -> dict[str, Any]:
    return {"ranges": [{"range_id": span.range_id, "address": span.first_page * PAGE, "bytes": span.pages * PAGE,
                        "attributes": [flag.name for flag in span.attributes]} for span in report.ranges],
            "info": [flag.name for flag in report.info], "msix_control": report.msix_control,
            "device_specific": report.device_specific.hex()}


@tdisp_group.command()
@click.argument("function")
@click.option("--policy", "policy", type=click.Path(path_type=Path), required=True,
              help="Which devices are trusted (docs/tdisp.md).")
@click.option("--sysfs", type=click.Path(path_type=Path), default=Path("/sys"), show_default=True)
def bind(function: str, policy: Path, sysfs: Path) -> int:
    """In a Linux guest: take FUNCTION, such as 0000:00:01.0, and let its driver have it.

    Exit status 1 if it is not trusted. The device is asked through the mailbox in its configuration space, and no
    driver has it before. Where the guest's own bus encrypts nothing, no stream is set up.
    """
    trust = load_trust(policy)
    with SysfsFunction(function, sysfs) as opened:
        opened.keep_from_drivers()
        opened.enable()
        mailbox = DoeRequester(opened.read, opened.write, opened.find_mailbox(), ENFORCING)

        def exchange(payload: bytes, secured: bool) -> bytes:
            kind = DoeType.SECURED_SPDM if secured else DoeType.SPDM
            try:
                return mailbox.exchange(DataObject(DOE_VENDOR, kind, payload), _MOST_OBJECT)
            except (DeviceViolation, Silence):
                return b""

        requester = SpdmRequester(exchange, os.urandom)
        verifier = Verifier(requester, FunctionId(opened.requester_id), trust, now=datetime.now(UTC),
                            random=os.urandom, mapped=opened.bars(), flags=FLAGS & ~LockFlag.LOCK_MSIX)
        try:
            verifier.attest()
        except NotTrusted as refused:
            click.echo(printable(f"{function} is not trusted by policy {trust.name}: {refused}"))
            return 1
        opened.give_to_driver()
        click.echo(printable(f"{function} is trusted by policy {trust.name}, and {opened.driver} has it"))
    return 0


@tdisp_group.command()
@click.option("--policy", "policy", type=click.Path(path_type=Path), required=True,
              help="Which devices are trusted (docs/tdisp.md).")
@click.option("--channel", type=click.Path(path_type=Path), default=CHANNEL, show_default=True,
              help="Of Chamber's TSM module.")
@click.option("--sysfs", type=click.Path(path_type=Path), default=Path("/sys"), show_default=True)
def tsm(policy: Path, channel: Path, sysfs: Path) -> None:
    """In a Linux kernel with Chamber's TSM module: do what its TSM core asks for (docs/tsm.md), until interrupted."""
    trust = load_trust(policy)

    def mapped(function: int) -> dict[int, int]:
        try:
            with SysfsFunction(function_name(function), sysfs) as opened:
                return opened.bars()
        except TargetError:
            return {}  # it is gone, and nothing of it is mapped

    with InterruptOnce(), TsmChannel(channel) as opened:
        service = Tsm(trust, transfer=opened.transfer, mapped=mapped, now=lambda: datetime.now(UTC), random=os.urandom,
                      port=lambda port, stream: SysfsPort(function_name(port), stream, sysfs),
                      log=lambda line: click.echo(printable(line)))
        names = sorted(path.name for path in (sysfs / "class/misc" / channel.name / "tsm").glob("tsm*"))
        click.echo(f"ready: {' for links, '.join(names)} for guests")
        try:
            while True:
                opened.answer(service.handle(opened.read()))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
        finally:
            service.close()


@tdisp_group.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--offset", default=0, help="The reporting offset that the interface was locked with.")
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
def show_report(file: Path, offset: int, as_text: bool) -> int:
    """Decode an interface report, and check what it says of a virtio device; exit status 1 when a check fails."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_REPORT)
        report = InterfaceReport.decode(data)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
    except WireError as error:
        raise click.UsageError(f"{file}: no interface report: {error}") from None
    wrong, info = "", None
    try:
        _, info = map_by_report(report, {span.range_id: span.first_page * PAGE - offset for span in report.ranges},
                                ENFORCING, slot=0, reporting_offset=offset)
    except DeviceViolation as violation:
        wrong = str(violation)
    if as_text:
        click.echo(json.dumps({"schema": "chamber-report/1", **_report_json(report), "violation": printable(wrong)},
                              indent=1))
        return int(bool(wrong))
    for span in report.ranges:
        flags = ", ".join(flag.name or "" for flag in span.attributes) or "TEE memory"
        click.echo(f"BAR {span.range_id}: {span.first_page * PAGE:#x}, {span.pages} pages: {flags}")
    if info is not None:
        known = info.device_type in set(DeviceType)
        kind = DeviceType(info.device_type).short if known else str(info.device_type)
        spaces = [FEATURES[DeviceType(info.device_type)]] if known and DeviceType(info.device_type) in FEATURES else []
        names = feature_names(info.features, *spaces)
        click.echo(f"virtio {kind}, {len(info.queue_sizes)} queues, guarantees "
                   f"{', '.join(flag.name or '' for flag in info.guarantees)}")
        click.echo(f"features {info.features:#x}: {', '.join(names)}")
    click.echo(printable(f"refused: {wrong}") if wrong else "a driver can be bound by it")
    return int(bool(wrong))


@tdisp_group.command()
@click.argument("one", type=_Address())
@click.argument("other", type=_Address())
@_transport
@_function
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
def compare(one: tuple[str, int], other: tuple[str, int], transport: str, function: str, as_text: bool) -> int:
    """Ask two devices the same, message by message; exit status 1 where they differ."""
    chosen, number = _TRANSPORTS[transport], _function_id(function)
    said: list[dict[str, str]] = []
    for address in (one, other):
        try:
            said.append(dict(ask_everything(address, chosen, number)))
        except SpdmSilence as error:
            raise TargetError(f"{address[0]}:{address[1]}: {error}") from None
    names = list(dict.fromkeys((*said[0], *said[1])))
    rows = [(name, *(printable(answers.get(name, "not asked")) for answers in said)) for name in names]
    differ = [row for row in rows if row[1] != row[2]]
    if as_text:
        click.echo(json.dumps({"schema": "chamber-compare/1", "differ": len(differ), "answers": [
            {"asked": name, "one": first, "other": second} for name, first, second in rows]}, indent=1))
    else:
        for name, first, second in rows:
            click.echo(f"  {name}: {first}" if first == second else f"! {name}: {first}\n  {'':{len(name)}}  {second}")
        click.echo(f"{len(rows)} questions, {len(differ)} answered differently")
    return int(bool(differ))
