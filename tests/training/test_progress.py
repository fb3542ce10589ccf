from __future__ import annotations

import io

from rich.console import Console

from moe_lab.training import PlainProgress, SilentProgress, TerminalProgress, make_progress


def test_plain_lines_begin_end_and_come_no_faster_than_asked() -> None:
    stream = io.StringIO()
    with PlainProgress(stream, every=1000).stage("trunk tiny", 10, "tokens") as stage:
        stage.status("compiling")
        for done in range(1, 11):
            stage.update(done, 2.5, 12_345.0, 0.1)
    assert stream.getvalue().splitlines() == [
        "trunk tiny  step 0/10  compiling",
        "trunk tiny  step 10/10  loss 2.5000  12.3k tokens/s",
    ]


def test_plain_lines_follow_each_update_when_time_has_passed() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, every=0)
    with progress.stage("a", 4, "rows", done=2) as stage:
        stage.update(3, 1.0, 2.0, 4000.0)
        stage.update(4, 1.0, 2.0, 4000.0)
    assert stream.getvalue().splitlines() == [
        "a  step 3/4  loss 1.0000  2 rows/s  1h06m left",
        "a  step 4/4  loss 1.0000  2 rows/s",
    ]


def test_a_terminal_shows_all_open_stages_and_prints_text_as_it_is() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    progress = TerminalProgress(console)
    with progress.stage("pipeline [/x]", 2, "stages") as outer:
        with progress.stage("module [red]", 100, "tokens") as inner:
            inner.update(30, 1.25, 1e6, 1.0)
            progress.note("a [note]")
        outer.update(1, None, 0.0, 0.0)
    shown = stream.getvalue()
    for text in (
        "pipeline [/x]",
        "step 1/2",
        "module [red]",
        "step 30/100",
        "loss 1.2500",
        "1M tokens/s",
        "1m10s left",
    ):
        assert text in shown
    assert "note: a [note]" in shown


def test_the_display_follows_the_stream() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    assert isinstance(make_progress(Terminal()), TerminalProgress)


def test_silence_takes_the_same_calls() -> None:
    progress = SilentProgress()
    progress.note("x")
    with progress.stage("a", 1, "rows") as stage:
        stage.status("compiling")
        stage.update(1, 1.0, 1.0, 1.0)
