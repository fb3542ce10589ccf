"""Registries in buckets, against real servers: nothing is overwritten, whatever the network and others do."""

import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from moe_lab.errors import LabError
from moe_lab.registry import LocalStore, Registry
from moe_lab.registry.stores import ObjectStore, objects, origin
from moe_lab.registry.stores.failures import StoreFailure
from tests.registry import servers
from tests.registry.scenario import BLOCKS, fields, files, tensors

pytestmark = pytest.mark.slow  # real servers
s3_only = pytest.mark.parametrize("proxy", ["s3"], indirect=True)


def publish(url, seed=0, version="1"):
    return Registry(url).publish("team", "part", version, fields(), tensors(seed, 1), BLOCKS)


def store(proxy):
    return ObjectStore(proxy.url)


def overwrite(proxy, key, data):
    store(proxy)._objects.write(key, data).result()


def content(proxy):
    """Every object by its key, read without the registry's code."""
    kept = store(proxy)._objects
    return {name.decode(): kept.read(name).result().value for name in kept.list().result()}


def assert_whole(url, seed, version="1"):
    back, wanted = Registry(url).tensors(f"team/part@{version}"), tensors(seed, 1)
    assert back.keys() == wanted.keys()
    assert all(back[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_the_objects_are_the_files_of_a_folder(proxy, root):
    for place in (root, proxy.url):
        assert publish(place, 0).created
        assert publish(place, 1, None).ref.version == "2"
        again = publish(place, 1, None)
        assert (again.ref.version, again.created) == ("2", False)
        with pytest.raises(LabError, match="team/part@2 is already published with other content"):
            publish(place, 3, "2")
    assert content(proxy) == files(root)
    remote, local = Registry(proxy.url), Registry(root)
    assert [(entry.ref, entry.digest) for entry in remote.list()] == [(e.ref, e.digest) for e in local.list()]
    assert remote.resolve("team/part") == local.resolve("team/part")
    assert remote.verify() == local.verify()
    assert remote.tensor("team/part@2", "layers.0.gate", slice(0, 1)).tobytes() == (
        tensors(1)["layers.0.gate"][:1].tobytes()
    )
    assert_whole(proxy.url, 1, "2")


def test_the_store_does_what_a_folder_does(proxy, root):
    for place in (LocalStore(root), store(proxy)):
        if isinstance(place, LocalStore):
            root.mkdir()
        assert place.list("refs") == []
        empty = b"" if place.where("").startswith("s3") else b"-"  # gcp-storage-emulator breaks off at empty objects
        for key, data in (
            ("refs/a/b/2", b"two"),
            ("refs/a/b/1", b"one"),
            ("refs/a-b/c/1", empty),
            ("blobs/x", b"x" * 9),
        ):
            assert not place.exists(key)
            assert place.put_if_absent(key, memoryview(data))
            assert not place.put_if_absent(key, b"other")
            assert place.exists(key)
            assert place.get(key, len(data)) == data
            if data:
                with pytest.raises(LabError, match=r"is damaged: it has .*more than"):
                    place.get(key, len(data) - 1)
        assert place.list("refs") == ["refs/a-b/c/1", "refs/a/b/1", "refs/a/b/2"]
        assert place.list("refs/a") == ["refs/a/b/1", "refs/a/b/2"]
        assert place.where("refs/a/b/1").endswith("/refs/a/b/1")
        for key in ("../x", "blobs/../../x", "/x", "", "blobs//x", "blobs/a\0"):
            for use in (partial(place.get, key, 9), partial(place.put_if_absent, key, b"")):
                with pytest.raises(LabError, match="is not a name that this registry gives"):
                    use()
        with pytest.raises(FileNotFoundError):
            place.get("refs/a/b/3", 9)


@s3_only
def test_an_object_beyond_the_limit_is_refused_unread(proxy):
    key = "blobs/sha256-" + 64 * "0"
    overwrite(proxy, key, bytes(20 << 20))
    proxy.sent = 0
    with pytest.raises(LabError, match="more than 100 bytes"):
        store(proxy).get(key, 100)
    assert proxy.sent < 10_000


@s3_only
def test_listings_come_in_pages(proxy):
    keys = sorted(f"refs/team/part/{number}" for number in range(25))
    for key in keys:
        overwrite(proxy, key, b"x")

    def small_pages(request, forward):
        if "list-type=2" in request.path:
            request.path += "&max-keys=7"
        return forward(request)

    proxy.rule = small_pages
    assert store(proxy).list("refs") == keys
    assert sum("list-type=2" in line for line in proxy.seen) == 4


@pytest.mark.slow
@s3_only
def test_more_keys_than_one_answer_holds(proxy):
    keys = sorted(f"refs/team/part{number // 100}/{number}" for number in range(1205))
    for waiting in [store(proxy)._objects.write(key, b"x") for key in keys]:
        waiting.result()
    assert store(proxy).list("refs") == keys
    assert sum("list-type=2" in line for line in proxy.seen) == 2


def test_damage_is_found_and_named(proxy, isolated):
    isolated.setenv("MOE_LAB_CACHE", "off")
    publish(proxy.url)
    whole = content(proxy)
    blob = next(key for key in whole if key.startswith("blobs/"))
    manifest = next(key for key in whole if key.startswith("manifests/"))
    reference = "refs/team/part/1"
    flipped = {key: bytes([whole[key][0] ^ 1]) + whole[key][1:] for key in (blob, manifest, reference)}
    for key, data in [*flipped.items(), (blob, whole[blob][:-1]), (blob, whole[blob] + b"\0"), (blob, None)]:
        overwrite(proxy, key, data)
        report = Registry(proxy.url).verify()
        assert any(f"{proxy.url}/{key}" in problem for problem in report.problems), (key, report)
        with pytest.raises(LabError, match="team/part"):
            Registry(proxy.url).tensors("team/part@1")
        overwrite(proxy, key, whole[key])
    assert Registry(proxy.url).verify().ok


def test_a_service_that_ignores_conditions_is_refused(proxy):
    proxy.rule = servers.without_conditions if proxy.url.startswith("s3") else servers.Corrected(conditions=False)
    header = "If-None-Match" if proxy.url.startswith("s3") else "ifGenerationMatch"
    with pytest.raises(LabError, match=rf"ignores the condition of a write \({header}\).*Nothing was published"):
        publish(proxy.url)
    assert content(proxy) == {}
    assert Registry(proxy.url).list() == []


def test_the_condition_is_tried_once_and_only_for_writing(proxy):
    publish(proxy.url)
    tried = [line for line in proxy.seen if "/tmp/" in line and line.startswith(("PUT", "POST"))]
    assert len(tried) == 2
    proxy.seen.clear()
    objects._proven.clear()
    assert_whole(proxy.url, 0)
    assert Registry(proxy.url).verify().ok
    assert not [line for line in proxy.seen if not line.startswith(("GET", "HEAD"))]


def test_who_may_only_read_can_read(proxy):
    publish(proxy.url)
    usual = proxy.rule
    proxy.rule = lambda request, forward: (
        usual(request, forward) if request.method in ("GET", "HEAD") else refusal(proxy.url, "AccessDenied")
    )
    assert_whole(proxy.url, 0)
    objects._proven.clear()
    with pytest.raises(LabError, match=r"access denied.*Nothing was published\. (Set AWS_ACC|Run `gcloud)"):
        publish(proxy.url, 1, None)


def failing(url):
    """What a person is told by everything that needs the place."""
    messages = []
    for use in (
        lambda: publish(url),
        Registry(url).list,
        lambda: Registry(url).resolve("team/part"),
        Registry(url).verify,
    ):
        with pytest.raises(LabError) as caught:
            use()
        assert "\n" not in str(caught.value)
        messages.append(str(caught.value))
    assert "Nothing was published" in messages[0]
    return messages


@s3_only
def test_a_missing_bucket_is_said(proxy):
    for message in failing("s3://absent/registry"):
        assert "s3://absent/registry" in message
        assert "there is no bucket absent" in message


@pytest.mark.parametrize("proxy", ["gs"], indirect=True)
def test_publishing_to_a_missing_bucket_of_google_is_said(proxy):
    with pytest.raises(LabError, match=r"gs://absent/x: there is no bucket absent\. Nothing was published"):
        publish("gs://absent/x")


@pytest.mark.parametrize("url", ["s3://bucket/registry", "gs://bucket/registry"])
def test_a_server_out_of_reach_is_said_in_bounded_time(isolated, url):
    address = f"http://127.0.0.1:{servers.free_port()}"
    for name, value in servers.environment_for(address).items():
        isolated.setenv(name, value)
    isolated.setenv("MOE_LAB_STORE_PATIENCE", "0.5")
    begin = time.monotonic()
    for message in failing(url):
        assert f"{address} cannot be reached" in message
    assert time.monotonic() - begin < 5


def refusal(url, code):
    """What the two services answer to somebody who may not."""
    if url.startswith("s3"):
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        return (403 if code == "AccessDenied" else 400), {"Content-Type": "application/xml"}, body
    status = 403 if code == "AccessDenied" else 401
    return status, {"Content-Type": "application/json"}, b'{"error": {"code": %d, "message": "no"}}' % status


@s3_only
def test_missing_credentials_are_said(proxy, isolated):
    proxy.rule = lambda request, forward: (
        forward(request) if "Authorization" in request.headers else refusal(proxy.url, "AccessDenied")
    )
    isolated.delenv("AWS_ACCESS_KEY_ID")
    isolated.delenv("AWS_SECRET_ACCESS_KEY")
    for message in failing(proxy.url):
        assert "access denied" in message
        assert "et AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken"])
def test_a_refusal_is_never_taken_for_an_empty_registry(proxy, code):
    publish(proxy.url)
    proxy.rule = lambda request, forward: refusal(proxy.url, code)
    for message in failing(proxy.url):
        assert "access denied" in message or "no usable credentials" in message


@pytest.mark.parametrize("proxy", ["gs"], indirect=True)
def test_a_refusal_between_two_pages_is_not_the_end_of_a_listing(proxy):
    publish(proxy.url)
    usual, pages = proxy.rule, []

    def expires(request, forward):
        if "startOffset" in request.path:
            pages.append(request.path)
        return usual(request, forward) if len(pages) < 2 else refusal(proxy.url, "ExpiredToken")

    def two_pages(request, forward):
        answer = expires(request, forward)
        if len(pages) == 1 and "startOffset" in request.path:
            return 200, answer[1], answer[2].replace(b"{", b'{"nextPageToken": "next", ', 1)
        return answer

    proxy.rule = two_pages
    with pytest.raises(StoreFailure, match="access denied"):
        store(proxy).list("refs")
    assert len(pages) == 2


def test_credentials_that_expire_while_publishing(proxy):
    usual = proxy.rule
    proxy.rule = lambda request, forward: (
        refusal(proxy.url, "ExpiredToken") if request.writes("/manifests/") else usual(request, forward)
    )
    with pytest.raises(LabError, match="(access denied|no usable credentials).*Nothing was published"):
        publish(proxy.url)
    proxy.rule = usual
    assert Registry(proxy.url).list() == []
    assert publish(proxy.url).created
    assert Registry(proxy.url).verify().ok


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL", "localhost:9000"), ("MOE_LAB_STORE_PATIENCE", "long"), ("MOE_LAB_STORE_PATIENCE", "nan")],
)
def test_settings_that_cannot_work_are_said(isolated, name, value):
    isolated.setenv(name, value)
    with pytest.raises(LabError, match=f"{name} is '{value}': it must be"):
        Registry("s3://bucket/registry")


def test_opening_a_bucket_loads_and_asks_nothing(isolated):
    code = (
        "import sys\nfrom moe_lab.registry import Registry\nRegistry('s3://bucket/registry')\n"
        "assert not {'tensorstore', 'numpy', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_busy_service_is_asked_again(proxy):
    answers = [503, 429, 500]
    usual = proxy.rule
    failed = []

    def busy(request, forward):
        if answers and "/tmp/" not in request.path.replace("%2F", "/"):
            failed.append(answers.pop())
            return failed[-1], {}, b""
        return usual(request, forward)

    proxy.rule = busy
    assert publish(proxy.url).created
    assert len(failed) == 3
    assert_whole(proxy.url, 0)


@pytest.mark.parametrize("part", ["/blobs/", "/manifests/", "/refs/"])
def test_a_lost_answer_does_not_make_a_winner_lose(proxy, part):
    usual = proxy.rule
    lost = []

    def lossy(request, forward):
        answer = usual(request, forward)
        if request.writes(part) and not lost:
            lost.append(answer)
            return None
        return answer

    proxy.rule = lossy
    done = publish(proxy.url)
    assert done.created
    assert lost[0][0] == 200
    assert Registry(proxy.url).verify().ok
    assert not publish(proxy.url).created


def test_a_lost_request_does_not_make_a_loser_win(proxy):
    usual = proxy.rule
    ours = publish(proxy.url.replace("bucket/", "bucket/other-"), 0).digest
    between = []

    def overtaken(request, forward):
        if request.writes("/refs/") and not between:
            # Somebody else's write arrives in place of ours, of which we only see that the connection broke.
            between.append(True)
            request.body = request.body.replace(ours.encode(), b"sha256-" + 64 * b"0")
            usual(request, forward)
            return None
        return usual(request, forward)

    proxy.rule = overtaken
    with pytest.raises(LabError, match="team/part@1 is already published with other content"):
        publish(proxy.url, 0)
    assert between


def test_a_service_that_dies_at_any_write_and_comes_back(proxy, isolated):
    usual, writes = proxy.rule, []

    def dying(request, forward):
        if request.method in ("PUT", "POST") and "/tmp/" not in request.path.replace("%2F", "/"):
            writes.append(request.path)
        # From then on nothing is answered; every second time the last request still arrives.
        if len(writes) > lives:
            if len(writes) == lives + 1 and lives % 2:
                usual(request, forward)
            return None
        return usual(request, forward)

    isolated.setenv("MOE_LAB_STORE_PATIENCE", "0")
    publish(proxy.url, 1)
    before = content(proxy)
    appeared = []
    for lives in range(12):  # noqa: B007  `dying` looks at it
        writes.clear()
        proxy.rule = dying
        with pytest.raises(LabError, match="cannot publish team/part"):
            publish(proxy.url, 2, "2")
        proxy.rule = usual
        after = content(proxy)
        assert {key: after[key] for key in before} == before
        assert Registry(proxy.url).verify().ok
        appeared.append("refs/team/part/2" in after)
        for key in after.keys() - before.keys():
            overwrite(proxy, key, None)
        if appeared[-1]:
            break
    assert len(appeared) > 4
    assert publish(proxy.url, 2, "2").created
    assert_whole(proxy.url, 2, "2")
    assert_whole(proxy.url, 1)
    assert Registry(proxy.url).verify().ok


def race(url, fresh_publishers):
    answers = fresh_publishers(url, *({"seed": seed, "version": "1", "blocks": 1} for seed in range(8)))
    winners = [seed for seed, answer in enumerate(answers) if "error" not in answer]
    assert len(winners) == 1
    assert answers[winners[0]]["created"]
    for seed in set(range(8)) - set(winners):
        assert "team/part@1 is already published with other content" in answers[seed]["error"]
    assert_whole(url, winners[0])
    assert Registry(url).verify().ok


def test_of_many_publishers_of_one_version_exactly_one_wins(proxy, fresh_publishers):
    race(proxy.url, fresh_publishers)


@pytest.mark.slow
def test_and_so_in_every_round(proxy, fresh_publishers):
    for round_ in range(10):
        race(f"{proxy.url}-{round_}", fresh_publishers)


def test_publishers_of_the_same_bytes_all_succeed(proxy, fresh_publishers):
    answers = fresh_publishers(proxy.url, *({"seed": 7, "version": None, "blocks": 1} for _ in range(8)))
    assert [answer.get("version") for answer in answers] == ["1"] * 8
    assert any(answer["created"] for answer in answers)
    assert_whole(proxy.url, 7)
    assert Registry(proxy.url).verify().ok


@pytest.mark.slow
def test_more_rounds_of_publishers_against_each_other(proxy, fresh_publishers):
    killed = 0
    for round_ in range(6):
        url = f"{proxy.url}-{round_}"
        jobs = [{"seed": seed % 5, "version": None, "blocks": 1} for seed in range(8)]
        jobs[round_ % 8]["kill_after"] = 0.2 + 0.1 * round_
        answers = fresh_publishers(url, *jobs)
        killed += answers.count(None)
        told = {(answer["version"], answer["digest"]) for answer in answers if answer}
        listed = {(entry.ref.version, entry.digest) for entry in Registry(url).list()}
        assert told <= listed
        assert len({version for version, _ in listed}) == len(listed)
        assert Registry(url).verify().ok
    assert killed


def test_threads_share_one_store(proxy):
    wins, shared = [], store(proxy)
    threads = [
        threading.Thread(target=lambda n=n: wins.append(shared.put_if_absent("refs/a/b/1", b"%d" % n)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert origin(shared) is shared
