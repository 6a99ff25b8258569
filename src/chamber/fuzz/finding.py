"""What a campaign found: confirmed on a fresh guest, as short as it gets, in a folder like those of ``assess``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.fuzz.settings import CampaignError, Settings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("FuzzFinding", "read_finding", "write_finding")

SCHEMA: Final = "chamber-fuzz-finding/1"


@dataclass(frozen=True, slots=True)
class FuzzFinding:
    """One finding.

    Attributes:
        name: what it is called; the name of its folder.
        settings: where it was found.
        release: what the kernel says that it is; '' on the model.
        verdict: what it comes to, by name.
        place: what tells it from other findings.
        signature: what the oracle called it.
        confirmed: whether a fresh guest showed it again, which no honest device brings about.
        note: why it is not confirmed, if it is not.
        inputs: what shows it, one after the other on a fresh guest.
        lies: what the device does, in words.
        evidence: what was seen.
        transcript: one line per event.
        console: what the kernel printed.

    """

    name: str
    settings: Settings
    release: str
    verdict: str
    place: str
    signature: str
    confirmed: bool
    note: str
    inputs: tuple[bytes, ...]
    lies: tuple[str, ...]
    evidence: str
    transcript: tuple[str, ...] = ()
    console: str = ""


def write_finding(finding: FuzzFinding, folder: Path) -> None:
    """Write a finding's folder; ``finding.json`` comes last, so that a folder that has it is whole."""
    folder.mkdir(exist_ok=True)
    (folder / "transcript.txt").write_text("".join(f"{line}\n" for line in finding.transcript), encoding="utf-8")
    (folder / "console.txt").write_text(finding.console, encoding="utf-8")
    (folder / "replay.txt").write_text(f"chamber replay {folder}\n", encoding="utf-8")
    details = {
        "schema": SCHEMA, "id": finding.name, **{k: v for k, v in finding.settings.to_json().items() if k != "schema"},
        "release": finding.release, "verdict": finding.verdict, "place": finding.place,
        "signature": finding.signature, "confirmed": finding.confirmed, "note": finding.note,
        "lies": list(finding.lies), "inputs": [data.hex() for data in finding.inputs], "evidence": finding.evidence}
    temporary = folder / "finding.new"
    temporary.write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "finding.json")


def read_finding(folder: Path) -> FuzzFinding:
    """Read what `write_finding` wrote, but for what was only seen.

    Raises:
        CampaignError: it is something else.

    """
    path = folder / "finding.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise CampaignError(f"{path}: no {SCHEMA}")
        settings = Settings(*(str(data[name]) for name in ("device", "target", "kernel", "profile")))
        return FuzzFinding(
            str(data["id"]), settings, str(data["release"]), str(data["verdict"]), str(data["place"]),
            str(data["signature"]), bool(data["confirmed"]), str(data["note"]),
            tuple(bytes.fromhex(text) for text in data["inputs"]), tuple(map(str, data["lies"])),
            str(data["evidence"]))
    except OSError as error:
        raise CampaignError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CampaignError(f"{path}: no {SCHEMA} ({error})") from None
