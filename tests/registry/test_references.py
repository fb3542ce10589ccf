import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.files import digest_of
from moe_lab.registry import ArtifactRef, Registry
from moe_lab.registry.references import blob_key, content_digest, manifest_key, version_order

HOSTILE = [
    *("..", ".", "", "../x", "/etc/passwd", "a/../../b", "%2e%2e", "%252e%252e", "a\\b", "C:", "\\\\host\\x"),
    *(
        "a\0b",
        "a\nb",
        "a\n",
        "a ",
        " a",
        "a.",
        ".git",
        ".a",
        "-a",
        "_a",
        "a..b",
        "CON",
        "Python",
        "é",
        "é",
        "аbc",
    ),
    *("a" * 65, "x" * 4096, "a*b", "a?b", "a$b", "~", "a:b", "a@b", "a;b", "\ud800", "٣", "a\u200b"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("place", ["owner", "name"])
def test_no_hostile_name_is_published_or_resolved(registry, root, name, place):
    owner, other = (name, "part") if place == "owner" else ("team", name)
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(LabError) as caught:
        registry.publish(owner, other, "1", {"kind": "router"}, {})
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)
    with pytest.raises(LabError):
        registry.resolve(f"{owner}/{other}")
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["a", "0", "python", "sha256-a", "a-b_c.d", "1.2", "con", "a" * 64, "v1.2"])
def test_names_that_the_rule_allows_are_published_where_they_belong(registry, root, name):
    registry.publish(name, name, None, {"kind": "router"}, {})
    assert (root / "refs" / name / name / "1").is_file()
    assert registry.resolve(f"{name}/{name}").ref == ArtifactRef(name, name, "1")


@pytest.mark.parametrize(
    "version",
    [
        "",
        "v1",
        "1.",
        ".1",
        "1..2",
        "01",
        "1.02",
        "-1",
        "1-rc",
        "1.2.3.4.5",
        "1" * 10,
        "latest",
        "1.retired",
        "1\n",
        "²",
    ],
)
def test_versions_have_one_spelling(version):
    with pytest.raises(LabError):
        ArtifactRef("team", "part", version)
    with pytest.raises(LabError):
        ArtifactRef.parse(f"team/part@{version}")


@pytest.mark.parametrize(
    "text",
    [
        "part",
        "team/",
        "/part",
        "team/part/x",
        "team/part@",
        "team/part:",
        "team/part@1:",
        "team/part@1:0",
        "team/part:-1",
        "team/part:x",
        "team/part:1@1",
        "team/part@1:5:6",
        "team/part:1.5",
        "team/part:" + "9" * 10,
    ],
)
def test_what_is_not_a_reference_is_refused_with_the_rule(text):
    with pytest.raises(LabError, match=r"must be|write owner/name"):
        ArtifactRef.parse(text)


def test_a_reference_has_four_parts():
    assert ArtifactRef.parse("snakes/python@1.2:512") == ArtifactRef("snakes", "python", "1.2", 512)
    assert ArtifactRef.parse("snakes/python:512") == ArtifactRef("snakes", "python", None, 512)
    assert ArtifactRef.parse("snakes/python") == ArtifactRef("snakes", "python")


names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}(\.[a-z0-9]{1,5})?", fullmatch=True)
version_texts = st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=4).map(lambda v: ".".join(map(str, v)))


@given(names, names, st.none() | version_texts, st.none() | st.integers(1, 10**9 - 1))
def test_printing_and_parsing_are_inverse(owner, name, version, width):
    ref = ArtifactRef(owner, name, version, width)
    assert ArtifactRef.parse(str(ref)) == ref


@given(st.text() | st.text(string.ascii_lowercase + string.digits + "./@:-_\\%~\0\n"))
@example("a/b@1:1")
def test_whatever_parses_is_safe_as_a_path(text):
    try:
        ref = ArtifactRef.parse(text)
    except LabError:
        return
    assert str(ref) == text
    for part in (ref.owner, ref.name):
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", part)
        assert ".." not in part


def test_versions_are_ordered_as_numbers():
    texts = ["10", "1.10", "1", "2", "1.9", "1.0", "0.1"]
    assert sorted(texts, key=version_order) == ["0.1", "1", "1.0", "1.9", "1.10", "2", "10"]


@pytest.mark.parametrize(
    "digest",
    [
        "sha256-",
        "sha256-../../x",
        "sha256-" + "A" * 64,
        "sha256-" + "0" * 63,
        "sha256-" + "0" * 65,
        "sha512-" + "0" * 128,
        "sha256-" + "0" * 64 + "\n",
        "sha256:" + "0" * 64,
        "sha256-" + "٠" * 64,
    ],
)
def test_no_hostile_digest_reaches_the_disk(registry, digest):
    with pytest.raises(LabError):
        registry.resolve(digest)
    with pytest.raises(LabError):
        registry.manifest(digest)
    with pytest.raises(LabError):
        registry.tensor(digest, "x")


@pytest.mark.parametrize("digest", ["sha256-" + "0" * 64, digest_of(b"x")])
def test_the_keys_of_content_tell_its_digest_and_no_others_do(digest):
    assert content_digest(blob_key(digest)) == content_digest(manifest_key(digest)) == digest
    near = (f"blobs/{digest}.json", f"manifests/{digest}", f"blobs/x/{digest}", f"refs/{digest}", digest, "blobs/")
    for key in (*near, f"blobs/{digest}0", f"blobs/{digest}\n", f"blobs/{digest.upper()}", f"tmp/blobs/{digest}"):
        assert content_digest(key) is None


@pytest.mark.parametrize(
    "key", ["../x", "blobs/../../x", "/x", "", "blobs//x", "blobs/.x", "blobs/a\0", "blobs/" + "a" * 300]
)
def test_the_store_refuses_keys_of_its_own_accord(registry, key):
    for use in (lambda: registry.store.get(key, 9), lambda: registry.store.put_if_absent(key, b"")):
        with pytest.raises(LabError):
            use()


@pytest.mark.parametrize(
    "path",
    [
        "https://host/registry",
        "s3://",
        "s3:///registry",
        "gs://A/b",
        "s3://b/c",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a?b",
        "file:///tmp/registry",
        "s3://bucket/é",
        "s3://bucket/a b",
    ],
)
def test_a_url_that_names_no_place_in_a_bucket_is_refused(path):
    with pytest.raises(LabError, match=r"write a folder, s3://bucket/prefix or gs://bucket/prefix"):
        Registry(path)


def test_a_url_that_became_a_path_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="a URL has two slashes, s3://bucket/prefix"):
        Registry(Path("s3://bucket/registry"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_a_registry_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for create in (True, False):
            with pytest.raises(LabError, match="a file is in the way"):
                Registry(path, create=create)
    with pytest.raises(LabError, match="there is no registry at"):
        Registry(tmp_path / "absent", create=False)
    with pytest.raises(LabError, match="cannot be opened"):
        Registry(str(tmp_path / "a\0b"))
    with pytest.raises(LabError, match="'~nobody at all/x': there is no such home; write the path in full"):
        Registry("~nobody at all/x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
