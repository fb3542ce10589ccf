"""Loads: their arithmetic by closed forms, how requests are sent and answers read, and one real server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.bench.load import run
from moe_lab.bench.load.client import Place, ask, error_message, split_events
from moe_lab.bench.load.figures import Answer, Outcome, draw_arrivals, draw_prompts, percentile, tokens_per_second
from moe_lab.bench.load.results import (
    COUNTS,
    LANES,
    WAITS,
    BatchLane,
    Machine,
    Plan,
    RateLoad,
    ServeBench,
    SteadyLoad,
    Waits,
    beside_batch,
    count_rows,
    lane_rows,
    summary,
    wait_rows,
)
from moe_lab.bench.load.run import Lane, both_loads, draw_bodies, load, open_load, save, server_arguments, steady_load
from moe_lab.bench.load.server import Server, serving
from moe_lab.cli import main
from moe_lab.errors import LabError, Unavailable
from tests.compose.conftest import published  # noqa: F401
from tests.compose.published import MODULES, Published
from tests.generation.test_command import COMPOSITION

PLAN = Plan(
    composition="tiny",
    rates=(1.0, 2.0),
    under_way=(4,),
    batch_lane=True,
    seconds=10.0,
    prompt_characters=8,
    max_tokens=6,
    slots=2,
    room=128,
    waiting=8,
    ttft=1.0,
    tpot=0.1,
    seed=0,
)


def answer(*tokens: float, sent: float = 0.0, outcome: Outcome = "finished", **more: Any) -> Answer:
    return Answer(sent=sent, outcome=outcome, tokens=tokens, ended=tokens[-1] if tokens else 0.0, **more)


def test_the_same_seed_draws_the_same_arrivals_and_a_longer_load_begins_with_a_shorter_one() -> None:
    short, long = draw_arrivals(2.0, 10, seed=3), draw_arrivals(2.0, 40, seed=3)
    assert long[: len(short)] == short
    assert long[len(short)] >= 10
    assert short == sorted(short)
    assert 0 < short[0] < short[-1] < 10
    assert draw_arrivals(2.0, 10, seed=4) != short


def test_twice_the_rate_is_the_same_load_in_half_the_time() -> None:
    np.testing.assert_allclose(draw_arrivals(3.0, 20, seed=1), [t / 2 for t in draw_arrivals(1.5, 40, seed=1)])


def test_arrivals_are_those_of_a_poisson_process() -> None:
    rate, seconds = 20.0, 2000
    gaps = np.diff([0.0, *draw_arrivals(rate, seconds, seed=0)])
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.02)
    assert gaps.std() == pytest.approx(1 / rate, rel=0.02)  # an exponential's deviation is its mean
    assert (gaps > 1 / rate).mean() == pytest.approx(math.exp(-1), abs=0.01)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.02)


def test_a_load_without_an_arrival_is_a_mistake() -> None:
    with pytest.raises(LabError, match="no request arrives in 1 s at 0.001 per second; raise --seconds or the rate"):
        draw_arrivals(0.001, 1, seed=0)


def test_prompts_are_pieces_of_the_text_from_everywhere() -> None:
    text = "abcdefghij"
    prompts = list(itertools.islice(draw_prompts(text, 3, (0, 0)), 400))
    assert {len(prompt) for prompt in prompts} == {3}
    assert set(prompts) == {text[at : at + 3] for at in range(8)}
    assert prompts == list(itertools.islice(draw_prompts(text, 3, (0, 0)), 400))
    assert prompts != list(itertools.islice(draw_prompts(text, 3, (0, 1)), 400))
    assert next(draw_prompts(text, 10, (0,))) == text
    with pytest.raises(LabError, match="has 10 characters and a prompt 11"):
        draw_prompts(text, 11, (0,))


def test_percentiles_of_one_to_a_hundred_are_their_own_numbers() -> None:
    numbers = [float(number) for number in range(100, 0, -1)]
    assert [percentile(numbers, percent) for percent in (1, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert [percentile([7.0], percent) for percent in (0, 50, 99)] == [7, 7, 7]
    assert percentile([1.0, 2.0, 3.0], 50) == 2
    assert percentile([1.0, 2.0], 50) == 1
    assert Waits.of([]) is None
    assert Waits.of(numbers) == Waits(p50=50, p95=95, p99=99)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


def test_what_an_answer_waited_for() -> None:
    whole = answer(0.5, 0.75, 1.75)
    assert (whole.first, whole.per_token, whole.gaps) == (0.5, 0.625, [0.25, 1.0])
    single = answer(0.5)
    assert (single.first, single.per_token, single.gaps) == (0.5, None, [])
    assert answer(outcome="refused").first is None


def test_an_answer_is_within_limits_or_not() -> None:
    whole = answer(0.5, 0.75, 1.75)
    assert whole.within(0.5, 0.625)
    assert not whole.within(0.49, 1)
    assert not whole.within(1, 0.62)
    assert answer(0.5).within(0.5, 1e-9), "a single token has no time per further token"
    assert not answer(0.1, 0.2, outcome="failed").within(9, 9)
    assert not answer().within(9, 9)


def test_tokens_after_the_load_do_not_count_as_its_own() -> None:
    answers = [answer(0.5, 1.0, 1.5), answer(1.0, 2.0, sent=8.5), answer(0.25, sent=9, outcome="failed")]
    assert tokens_per_second(answers, 10) == 0.5  # at 0.5, 1, 1.5, 9.5 and 9.25, but not at 10.5
    assert tokens_per_second([], 10) == 0


def test_a_summary_counts_every_request_once() -> None:
    answers = [
        answer(0.5, 0.6, late=0.25),
        answer(2.0, 2.1),
        answer(outcome="refused"),
        answer(outcome="refused"),
        answer(0.1, outcome="failed", why="it broke"),
        answer(outcome="failed", why="it broke"),
    ]
    made = summary(answers, 10.0, PLAN)
    assert (made.sent, made.finished, made.refused, made.failed) == (6, 2, 2, 2)
    assert (made.within, made.goodput) == (1, pytest.approx(1 / 6))
    assert (made.tokens, made.tokens_per_second, made.late) == (5, 0.5, 0.25)
    assert made.ttft == Waits(p50=0.5, p95=2.0, p99=2.0)
    assert made.end_to_end == Waits(p50=0.6, p95=2.1, p99=2.1)
    assert made.mistakes == ("it broke",)
    nothing = summary([answer(outcome="refused")], 10.0, PLAN)
    assert (nothing.goodput, nothing.ttft, nothing.tpot, nothing.between_tokens) == (0, None, None, None)


def rate_load(rate: float, *answers: Answer) -> RateLoad:
    return RateLoad(rate=rate, **dict(summary(answers, PLAN.seconds, PLAN)))


def steady(under_way: int, *answers: Answer) -> SteadyLoad:
    return SteadyLoad(under_way=under_way, **dict(summary(answers, PLAN.seconds, PLAN)))


def document() -> ServeBench:
    quick, slow, empty = answer(0.5, 0.75), answer(0.5, 1.0), answer(outcome="failed", why="it broke")
    alone = (rate_load(1.0, quick), rate_load(2.0, empty))
    batch = steady(2, *[quick] * 4)
    both = tuple(beside_batch(one, batch, rate_load(one.rate, slow), steady(2, quick, slow)) for one in alone)
    lane = BatchLane(alone=batch, beside=both)
    machine = Machine(processor="p", cores=2, python="3.11", jax="0.10", load=0.5)
    made = ServeBench(command="moe-lab bench serve tiny", machine=machine, plan=PLAN)
    return made.model_copy(update={"rates": alone, "steady": (steady(4, quick),), "batch_lane": lane})


def test_the_ratios_say_what_each_lane_costs_the_other() -> None:
    lane = document().batch_lane
    assert lane is not None
    first, second = lane.beside
    assert (first.tpot_ratio, first.batch_ratio) == (2.0, 0.5)
    assert (second.tpot_ratio, second.batch_ratio) == (None, 0.5), "nothing was finished alone"
    idle = beside_batch(rate_load(1.0), steady(2), rate_load(1.0), steady(2))
    assert (idle.tpot_ratio, idle.batch_ratio) == (None, None)


def test_tables_have_a_cell_for_each_column() -> None:
    bench = document()
    for columns, rows in ((COUNTS, count_rows), (WAITS, wait_rows), (LANES, lane_rows)):
        assert len(set(columns)) == len(columns)
        made = list(rows(bench))
        assert made
        assert all(len(row) == len(columns) for row in made)
    assert next(lane_rows(bench)) == ("1", "250.0", "500.0", "2.00", "0.8", "0.4", "50%")
    assert [row[0] for row in count_rows(bench)][2:4] == ["4 under way", "batch, 2 under way"]
    assert list(lane_rows(bench.model_copy(update={"batch_lane": None}))) == []


@pytest.mark.slow
def test_what_is_saved_can_be_read_again_and_its_picture_is_the_same_bytes(tmp_path: Path) -> None:
    bench = document()
    saved, picture = save(bench, tmp_path / "out" / "serve.json")
    assert load(saved) == bench
    assert picture == tmp_path / "out" / "serve.svg"
    before = picture.read_bytes()
    assert ElementTree.fromstring(before).tag.endswith("svg")
    assert save(bench, saved)[1].read_bytes() == before
    only = {"rates": (), "batch_lane": None}
    for update in (only, {"steady": ()}, {**only, "steady": ()}):
        ElementTree.parse(save(bench.model_copy(update=update), tmp_path / "part.json")[1])


def test_each_load_has_prompts_of_its_own() -> None:
    text = "".join(map(chr, range(0x4E00, 0x9FFF)))
    drawn = [list(itertools.islice(draw_bodies(PLAN, text, "batch", number), 20)) for number in (1, 2, 1)]
    assert drawn[0] == drawn[2]
    assert not {body["prompt"] for body in drawn[0]} & {body["prompt"] for body in drawn[1]}
    body = {"max_tokens": 6, "seed": 19, "stream": True, "lane": "batch", "prompt": drawn[0][-1]["prompt"]}
    assert drawn[0][-1] == body
    assert len(body["prompt"]) == PLAN.prompt_characters  # type: ignore[arg-type]


def test_an_arrival_never_waits_for_an_earlier_answer() -> None:
    arrivals, bodies = [0.0, 0.01, 0.02, 0.03], iter({"number": number} for number in range(9))
    asked: list[int] = []

    async def ask(body: dict[str, Any], began: float, arrival: float | None) -> Answer:
        asked.append(body["number"])
        while len(asked) < len(arrivals):  # as long as the last is not there, no answer ends
            await asyncio.sleep(0.001)
        return answer(1.0, sent=time.perf_counter() - began, late=arrival or 0.0)

    answers = asyncio.run(asyncio.wait_for(open_load(ask, arrivals, bodies), 20))
    assert asked == [0, 1, 2, 3]
    assert [one.late for one in answers] == arrivals
    assert all(one.sent >= arrivals[-1] for one in answers)


def test_a_steady_load_has_always_so_many_under_way() -> None:
    under_way, seen, ended = [0], list[int](), list[int]()

    async def ask(body: dict[str, Any], began: float, arrival: float | None) -> Answer:
        under_way[0] += 1
        seen.append(under_way[0])
        await asyncio.sleep(0.001 * (1 + len(seen) % 3))
        under_way[0] -= 1
        ended.append(1)
        return answer(0.001)

    answers = asyncio.run(steady_load(ask, itertools.repeat({}), 3, lambda seconds: len(ended) >= 10))
    assert seen[:3] == [1, 2, 3]
    assert set(seen[3:]) == {3}
    assert 10 <= len(answers) == len(ended) <= 12, "those under way are waited for"


def test_a_steady_load_that_is_refused_waits_before_it_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSE", 0.02)

    async def ask(body: dict[str, Any], began: float, arrival: float | None) -> Answer:
        return answer(sent=time.perf_counter() - began, outcome="refused")

    answers = asyncio.run(steady_load(ask, itertools.repeat({}), 1, lambda seconds: seconds >= 0.1))
    assert all(later.sent - earlier.sent >= 0.019 for earlier, later in itertools.pairwise(answers))


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_the_batch_lane_is_full_for_its_time_and_until_the_last_interactive_answer(seconds: float) -> None:
    lanes: list[tuple[str, bool]] = []
    late, began = asyncio.Event(), time.perf_counter()

    async def ask(body: dict[str, Any], began: float, arrival: float | None) -> Answer:
        lanes.append((body["lane"], late.is_set()))
        if body["lane"] == "interactive":
            await asyncio.sleep(0.05)
            late.set()
        await asyncio.sleep(0.001)
        return answer(0.01)

    bodies: dict[Lane, Iterator[dict[str, Any]]] = {lane: itertools.repeat({"lane": lane}) for lane in run.LANES}
    interactive, batch = asyncio.run(both_loads(ask, [0.0, 0.01], bodies, 2, seconds))
    assert (len(interactive), len(batch)) == (2, sum(lane == "batch" for lane, _ in lanes))
    assert ("batch", True) in lanes
    assert len(batch) > 4
    assert time.perf_counter() - began >= seconds


def test_events_are_whole_however_they_are_cut() -> None:
    text = b'data: {"a": 1}\n\n: a comment\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n'
    for cut in range(len(text)):
        first, rest = split_events(text[:cut])
        second, rest = split_events(rest + text[cut:])
        assert [*first, *second] == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]
        assert rest == b""


def test_the_server_s_own_words_are_told() -> None:
    assert error_message(b'{"error": {"message": "too long"}}') == "too long"
    assert error_message(b"<html>\nBad  Gateway</html>") == "<html> Bad Gateway</html>"
    assert error_message(b'["other"]') == '["other"]'


TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@contextlib.asynccontextmanager
async def answering(data: bytes) -> AsyncIterator[tuple[Place, list[bytes]]]:
    """A server that reads a request and sends these bytes."""
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(1 << 16))
        writer.write(data)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname(), got


def asked(data: bytes) -> tuple[Answer, bytes]:
    async def talk() -> tuple[Answer, bytes]:
        async with answering(data) as (place, got):
            return await ask(place, {"prompt": "é", "stream": True}, time.perf_counter(), 0.0), got[0]

    return asyncio.run(talk())


def test_tokens_are_read_from_chunks_and_the_request_is_whole() -> None:
    stream = TOKEN + b'data: {"choices": [], "usage": {}}\n\n' + TOKEN + DONE
    got, request = asked(HEAD + chunks(stream[:7], stream[7:90], stream[90:]) + b"0\r\n\r\n")
    assert (got.outcome, len(got.tokens), got.why) == ("finished", 2, "")
    assert 0 <= got.tokens[0] <= got.tokens[1] <= got.ended
    assert 0 <= got.sent == got.late
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"prompt": "é", "stream": True}
    plain, _ = asked(b"HTTP/1.1 200 OK\r\n\r\n" + stream)
    assert (plain.outcome, len(plain.tokens)) == ("finished", 2)


@pytest.mark.parametrize(
    ("data", "outcome", "tokens", "why"),
    [
        (b'HTTP/1.1 429 Busy\r\n\r\n{"error": {"message": "full"}}', "refused", 0, ""),
        (b'HTTP/1.1 400 Bad\r\n\r\n{"error": {"message": "no room"}}', "failed", 0, "status 400: no room"),
        (HEAD + chunks(TOKEN), "failed", 1, "the connection broke: the answer ends in the middle"),
        (HEAD + chunks(TOKEN)[:20], "failed", 0, "the connection broke"),
        (HEAD + chunks(TOKEN) + b"0\r\n\r\n", "failed", 1, "the answer ends in the middle"),
        (
            HEAD + chunks(TOKEN, b'data: {"error": {"message": "broke", "code": 503}}\n\n', DONE),
            "failed",
            1,
            "status 503: broke",
        ),
        (b"SSH-2.0\r\n", "failed", 0, "does not speak HTTP"),
        (b"", "failed", 0, "closed before an answer"),
    ],
)
def test_what_is_no_whole_answer_is_told_by_it(data: bytes, outcome: str, tokens: int, why: str) -> None:
    got, _ = asked(data)
    assert (got.outcome, len(got.tokens)) == (outcome, tokens)
    assert why in got.why
    assert bool(got.why) == (outcome == "failed")


def test_a_port_where_nobody_listens_fails() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        got = asyncio.run(ask(free.getsockname(), {}, time.perf_counter()))
    assert got.outcome == "failed"
    assert "the connection broke" in got.why


@contextlib.contextmanager
def saying(script: str) -> Iterator[Callable[[], Server]]:
    """A process that is no server, but says what one says."""
    command = [
        sys.executable,
        "-c",
        f"import sys, time\nsay = lambda t: print(t, file=sys.stderr, flush=True)\n{script}",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        made: list[Server] = []

        def start() -> Server:
            made.append(Server(process, told.append))
            return made[0]

        told: list[str] = []
        start.told, start.process = told, process  # type: ignore[attr-defined]
        try:
            yield start
        finally:
            made[0].end()
            assert process.returncode is not None


def test_a_server_says_where_it_listens_and_is_ended() -> None:
    with saying("say('compiling'); say('listening on http://127.0.0.1:81'); time.sleep(600)") as start:
        server = start()
        assert server.place() == ("127.0.0.1", 81)
        server.require_alive()
        assert start.told == ["compiling"]  # type: ignore[attr-defined]


def test_a_server_that_does_not_start_is_told_with_its_last_line() -> None:
    with (
        saying("say('compiling'); say('error: no room'); sys.exit(2)") as start,
        pytest.raises(Unavailable, match="the server did not start: no room. Mend that, then run the same command"),
    ):
        start().place()
    with serving(["--version"], lambda line: None) as server, pytest.raises(Unavailable, match="it said nothing"):
        server.place()


def test_a_server_that_ends_under_load_is_told() -> None:
    with saying("say('listening on http://127.0.0.1:81'); time.sleep(0.2); say('out of memory'); sys.exit(3)") as start:
        server = start()
        server.place()
        start.process.wait(60)  # type: ignore[attr-defined]
        with pytest.raises(Unavailable, match="ended under load with exit code 3: out of memory"):
            server.require_alive()


def test_the_server_gets_the_plan_s_sizes_in_the_same_lab() -> None:
    words = ["serve", "tiny", "--slots", "2", "--room", "128", "--waiting", "8", "--port", "0"]
    assert server_arguments(PLAN, None) == words
    assert server_arguments(PLAN, "there") == ["--lab", "there", *words]


def test_a_document_names_the_machine() -> None:
    machine = Machine.here()
    assert machine.cores >= 1
    assert machine.processor


@pytest.fixture(scope="module")
def lab(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    lab = Path(shutil.copytree(published.lab.root, tmp_path_factory.mktemp("load") / "lab"))
    (lab / "configs" / "tiny.yaml").write_text(COMPOSITION.format(modules=", ".join(MODULES), router="lab/gain"))
    return lab


SIZES = ("--slots", "2", "--room", "128", "--prompt-characters", "40", "--max-tokens", "8")


@pytest.mark.slow
def test_a_real_server_is_measured(lab: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    loads = ("--rates", "2,200", "--throughput", "1,4", "--batch-lane", "--seconds", "2", "--waiting", "4")
    code = main(["--lab", str(lab), "bench", "serve", "tiny", *loads, *SIZES, "--json", str(out)])
    printed, said = capfd.readouterr()
    assert code == 0, said
    assert f"results: {out}\npicture: {out.with_suffix('.svg')}" in printed
    assert "what each lane costs the other" in printed
    ElementTree.parse(out.with_suffix(".svg"))
    bench = load(out)
    assert (bench.plan.rates, bench.plan.under_way, bench.plan.seconds) == ((2.0, 200.0), (1, 4), 2.0)
    assert [one.rate for one in bench.rates] == [2.0, 200.0]
    assert [one.under_way for one in bench.steady] == [1, 4]
    lane = bench.batch_lane
    assert lane is not None
    assert [both.interactive.rate for both in lane.beside] == [2.0, 200.0]
    both = [one for pair in lane.beside for one in (pair.interactive, pair.batch)]
    for one in (*bench.rates, *bench.steady, lane.alone, *both):
        assert one.sent == one.finished + one.refused + one.failed
        assert one.failed == 0, one.mistakes
        assert one.finished <= one.tokens <= 8 * one.finished
        assert one.ttft is not None
        assert one.ttft.p50 <= one.ttft.p95 <= one.ttft.p99
    for alone, pair in zip(bench.rates, lane.beside, strict=True):
        arrivals = len(draw_arrivals(alone.rate, 2.0, bench.plan.seed))
        assert alone.sent == pair.interactive.sent == arrivals
    assert said.splitlines()[:3] == ["starting the server", "first text", "2 requests/s"]


@pytest.mark.slow
def test_a_request_that_the_server_refuses_is_one_line(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["--lab", str(lab), "bench", "serve", "tiny", *SIZES, "--max-tokens", "4000"])
    last = capfd.readouterr().err.splitlines()[-1]
    assert code == 2
    assert last.startswith("error: the server does not answer a first request (status 400: ")


@pytest.mark.slow
def test_an_interruption_leaves_no_server_behind(lab: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moe_lab", "--lab", str(lab), "bench", "serve", "tiny", "--seconds", "600"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [*command, *SIZES], stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as bench:
        assert bench.stderr is not None
        said = list(itertools.takewhile(lambda line: "requests/s" not in line, bench.stderr))
        [server] = psutil.Process(bench.pid).children()
        bench.send_signal(signal.SIGTERM)
        said += bench.communicate(timeout=60)[1].splitlines(keepends=True)
    assert bench.returncode == 128 + signal.SIGTERM, "".join(said)
    assert not server.is_running()
