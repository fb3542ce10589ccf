"""What the pages say exists: shown files are the files, and every command, option and target is one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_lab.cli.app import root_command
from moe_lab.config import decode, load_config, load_yaml
from moe_lab.lab.manifest import MANIFESTS
from tests.conftest import REPOSITORY

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "modules/*.md", "routers/*.md", "distill/*.md", "configs/*.md", "tests/*.md")
    for path in REPOSITORY.glob(pattern)
)
_SHOWN = re.compile(r"^```yaml\n# ([\w./-]+\.yaml)[^\n]*\n(.*?)^```", re.S | re.M)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
_INLINE = re.compile(r"`(moe-lab [^`]+|make [^`]+)`")
# Words that stand for something of the reader's in a line that shows how a command is written.
_PLACEHOLDERS = {"...", "COMMAND", "[key=value"}


def identify(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def shown_files() -> Iterator[tuple[Path, str, str]]:
    """Yields the page, the named file and the text of each fenced YAML block whose first line names a file."""
    for page in PAGES:
        for name, text in _SHOWN.findall(page.read_text(encoding="utf-8")):
            yield page, name, text


def without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


SHOWN = [pytest.param(*shown, id=f"{identify(shown[0])}:{shown[1]}") for shown in shown_files()]


@pytest.mark.parametrize(("page", "name", "text"), SHOWN)
def test_a_shown_file_is_that_file_or_one_that_can_be_read(page: Path, name: str, text: str, tmp_path: Path) -> None:
    file = REPOSITORY / name
    if file.exists():
        assert without_comments(text) == without_comments(file.read_text(encoding="utf-8"))
        return
    written = tmp_path / Path(name).name
    written.write_text(text, encoding="utf-8")
    manifest = MANIFESTS.get({"router.yaml": "routers", "strategy.yaml": "distill"}.get(written.name, ""))
    if manifest:
        decode(manifest, load_yaml(written), str(written))
    else:
        load_config(written)


def shown_commands(page: Path) -> Iterator[str]:
    """Yields the lines of a page that a reader would type, those in running text included."""
    text = page.read_text(encoding="utf-8")
    for language, block in _FENCED.findall(text):
        if language in ("", "sh", "bash", "console"):
            joined = block.replace("\\\n", " ")
            yield from (line.strip().removeprefix("$ ") for line in joined.splitlines())
        elif language == "yaml":
            yield from (line.lstrip("# ") for line in block.splitlines() if line.startswith("#"))
    yield from _INLINE.findall(text)


def words_of(line: str) -> list[str]:
    """The words of a command line, up to a comment or a pipe; none if it is no line of ours."""
    line = line.split("  #")[0].split(" | ")[0].split(" > ")[0]
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        words = line.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


def is_own_word(command: Any, word: str) -> bool:
    """Whether a group that takes arguments takes this word for one of them, as `moe-lab bench` does with cases."""
    takes_arguments = any(parameter.param_type_name == "argument" for parameter in command.params)
    return takes_arguments and word not in command.list_commands(None)


def what_is_wrong(words: list[str]) -> str | None:
    """Follows a `moe-lab` line through the commands: the first word that does not exist, or None."""
    command: Any = root_command()
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    rest = words[1:]
    while rest:
        word, *rest = rest
        if word.startswith("--") or re.fullmatch(r"-[a-z]", word):
            if word.split("=")[0] not in options:
                return f"{command.name} has no option {word}"
            # The lab stands before the command: its folder is no subcommand.
            rest = rest[1:] if word == "--lab" else rest
        elif hasattr(command, "get_command") and word not in _PLACEHOLDERS and not is_own_word(command, word):
            # `module check|publish` names several.
            for name in word.split("|"):
                if name not in command.list_commands(None):
                    return f"{command.name} has no command {name}"
            command = command.get_command(None, word.split("|")[0])
            options |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return None


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_every_command_on_a_page_exists(page: Path) -> None:
    lines = [words_of(line) for line in shown_commands(page)]
    ours = [words for words in lines if words[:1] == ["moe-lab"]]
    wrong = [f"{' '.join(words)}: {why}" for words in ours for why in [what_is_wrong(words)] if why]
    targets = set(re.findall(r"^([\w./-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M))
    wrong += [
        f"{' '.join(words)}: no such target"
        for words in lines
        if words[:1] == ["make"] and not {word for word in words[1:] if "=" not in word} <= targets
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("moe-lab module publish a b", None),
        ("moe-lab --lab . module show REF", None),
        ("moe-lab bench a-case --rounds 6", None),
        ("moe-lab bench serve a --rates 1", None),
        ("moe-lab bench a-case --rates 1", "no option --rates"),
        ("moe-lab modul show", "no command modul"),
        ("moe-lab module shov", "no command shov"),
        ("moe-lab eval x --withot y", "no option --withot"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, why: str | None) -> None:
    found = what_is_wrong(words_of(line))
    assert (found is None) if why is None else (why in str(found))


def test_links_between_pages_lead_somewhere() -> None:
    missing = []
    for page in PAGES:
        text = _FENCED.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{identify(page)}: {target}")
    assert missing == []
