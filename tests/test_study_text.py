"""The script that gets the study's text: out of Debian packages, without installing them."""

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY

PAGE = """<html><body><header id="Top"><p>Navigation</p></header><div id="DisplayArea">
<h1>Eine Seite</h1><p>Ein <b>Absatz</b> mit
Umbruch.</p><ul><li>Punkt</li></ul><div id="DonationFrame"><p>Spenden</p></div></div></body></html>"""


@pytest.fixture(scope="module")
def fetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_fetch", REPOSITORY / "configs" / "smollm2" / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_package(path: Path, files: dict[str, bytes]) -> None:
    """A Debian package: an archive of three members, the second of them of odd length."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))


def test_text_comes_out_of_packages_and_what_is_there_is_skipped(
    fetch: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(tmp_path / "pages_1.deb", {"./doc/a.html": PAGE.encode(), "./doc/a.png": b"\x89"})
    write_package(tmp_path / "jokes_1.deb", {"./usr/share/games/fortunes/witze": b"eins\n%\nzwei\n%\n"})
    sources = [
        fetch.Source("pages", lambda name: name.endswith(".html"), fetch.help_page, "MPL-2.0"),
        fetch.Source("jokes", lambda name: "fortunes" in name, fetch.sayings, "GPL-2+"),
    ]
    fetch.text(tmp_path, "german", sources)
    found = {path.name: path.read_text() for path in (tmp_path / "german").glob("*.txt")}
    assert found == {
        "pages.a.txt": "Eine Seite\nEin Absatz mit Umbruch.\nPunkt\n",
        "jokes.witze-0.txt": "eins\n\nzwei\n",
    }
    assert "2 documents, 0.0 MB  pages: MPL-2.0; jokes: GPL-2+" in capsys.readouterr().out
    (tmp_path / "pages_1.deb").unlink()
    fetch.text(tmp_path, "german", sources)


def test_without_apt_it_says_what_to_put_where(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"apt-get is not here. Download pages on a machine that has it .* run this again"
    ):
        fetch.text(tmp_path, "german", [fetch.Source("pages", lambda name: True, fetch.plain, "MIT")])
