"""Debian's packages, fetched by an apt of its own: lists, cache, state and sources are private to it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("Apt", "run_tool", "unpack")

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECONDS: Final = 900
_LEFT_OUT: Final = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info")


def run_tool(*command: str, folder: Path | None = None) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        TargetError: it failed, or did not end.

    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False,
                              stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise TargetError(f"{command[0]} is missing") from None
    except subprocess.TimeoutExpired:
        raise TargetError(f"{command[0]} did not end within {_SECONDS} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise TargetError(f"{command[0]}: {last[0]}")
    return done.stdout


class Apt:
    """An apt that knows some suites and no installed package.

    Args:
        folder: where all of it lies; `opened` makes one and removes it.
        suites: names of suites, the later ones preferred.

    """

    def __init__(self, folder: Path, suites: Sequence[str]) -> None:
        self.folder = folder
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        signed = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
        (folder / "sources.list").write_text("".join(
            f"deb{signed} http://deb.debian.org/{'debian-security' if suite.endswith('-security') else 'debian'} "
            f"{suite} main\n" for suite in suites), encoding="ascii")
        (folder / "status").touch()
        # As root, apt gives its rights away before it downloads.
        folder.chmod(0o755)
        self._options = ("-qq", "-y", "-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o",
                         "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={folder}/lists", "-o",
                         f"Dir::State::status={folder}/status", "-o", f"Dir::Cache={folder}", "-o",
                         "APT::Sandbox::User=root", "-o", "APT::Install-Recommends=false")
        run_tool("apt-get", *self._options, "update", folder=folder)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, *suites: str) -> Iterator[Apt]:
        """Make one in a temporary folder.

        Raises:
            TargetError: there is no apt, or the suites can't be reached.

        """
        for tool in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
            if shutil.which(tool) is None:
                raise TargetError(f"packages are fetched by apt, and unpacked by dpkg-deb and tar: {tool} is missing")
        with tempfile.TemporaryDirectory(prefix="chamber-apt-") as name:
            yield cls(Path(name), suites)

    def fetch(self, package: str, *, suite: str | None = None) -> list[Path]:
        """Download a package with all that it depends on; return the files."""
        wanted = () if suite is None else ("-t", suite)
        run_tool("apt-get", *self._options, *wanted, "--download-only", "install", package, folder=self.folder)
        return sorted((self.folder / "archives").glob("*.deb"))

    def fetch_alone(self, package: str) -> Path:
        """Download a package and nothing besides."""
        folder = self.folder / "alone"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
        run_tool("apt-get", *self._options, "download", package, folder=folder)
        return next(folder.glob("*.deb"))

    def dependency(self, package: str, prefix: str) -> str:
        """Return what a package depends on whose name begins so.

        Raises:
            TargetError: nothing does, or there is no such package.

        """
        words = run_tool("apt-cache", *self._options[2:], "depends", package, folder=self.folder).split()
        found = next((word for word in words if word.startswith(prefix) and word != package), None)
        if found is None:
            raise TargetError(f"Debian has no {package}")
        return found


def unpack(deb: Path, folder: Path) -> None:
    """Unpack a package's files, without its documentation."""
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", str(deb)), stdout=subprocess.PIPE) as archive:
        done = subprocess.run(("tar", "-x", "-C", str(folder), *(f"--exclude={path}" for path in _LEFT_OUT)),
                              stdin=archive.stdout, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode or archive.returncode:
        raise TargetError(f"{deb.name} can't be unpacked: {done.stderr.strip()[-200:]}")
