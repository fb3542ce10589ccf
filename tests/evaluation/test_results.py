"""results.json is read strictly: whatever does not fit is named with its file and place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_lab.errors import LabError
from moe_lab.evaluation.results import Results, load_results, save_results


@pytest.fixture
def data(synthetic_results: Results) -> dict:
    return synthetic_results.model_dump(mode="json")


def write(path: Path, data: object) -> Path:
    file = path / "results.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def test_survives_the_way_to_disk_and_back(synthetic_results, tmp_path):
    file = save_results(synthetic_results, tmp_path / "deep" / "results.json")
    assert load_results(file) == synthetic_results
    assert [entry.name for entry in file.parent.iterdir()] == ["results.json"]


def test_has_the_keys_of_format_1(data):
    assert list(data) == [
        "format", "name", "lockfile", "created", "elapsed_seconds", "domains", "candidates", "matrix",
        "acceptance", "exact_match", "curves", "budgets", "routing", "samples", "modules", "trunk", "routers",
    ]  # fmt: skip
    assert data["format"] == 1
    assert data["candidates"][0] == {"name": "trunk", "module": None, "width": 0, "cost": 0}
    assert set(data["matrix"][0]) == {"system", "module", "width", "domain", "bits_per_byte", "cost"}
    assert set(data["curves"][0]["points"][0]) == {
        "price", "cost", "bits_per_byte", "difference_to_zero", "routed_difference", "told_difference",
    }  # fmt: skip


def test_a_failed_write_leaves_the_old_file_and_nothing_else(synthetic_results, tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    file.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_results(synthetic_results, file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def put(value, *keys):
    """A change of one place in the data."""

    def change(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


MISTAKES = {
    "unknown key": (put(1, "colour"), "colour"),
    "text for a number": (put("5", "matrix", 0, "cost"), "matrix.0.cost"),
    "fraction of a row": (put(1.5, "domains", 0, "rows"), "domains.0.rows"),
    "negative cost": (put(-1.0, "candidates", 1, "cost"), "candidates.1.cost"),
    "unknown system": (put("solo", "matrix", 0, "system"), "matrix.0.system"),
    "unknown role": (put("clever", "curves", 0, "role"), "curves.0.role"),
    "interval upside down": (put(9.0, "matrix", 0, "bits_per_byte", "low"), "low <= mean <= high"),
    "share above one": (put(1.2, "exact_match", 0, "mean"), "exact_match.0.mean"),
    "alone without module": (put(None, "matrix", 8, "module"), "alone and left_out name one"),
    "trunk with module": (put("snakes/python", "matrix", 0, "module"), "alone and left_out name one"),
    "trunk with width": (put(64, "candidates", 0, "width"), "no module goes with width 0"),
    "domain nobody listed": (put("pithon", "matrix", 0, "domain"), 'Did you mean "python"'),
    "candidate nobody listed": (put("x", "acceptance", 0, "best_single", "name"), "candidate 'x'"),
    "gap that does not follow": (
        put(50.0, "acceptance", 0, "gap_to_best_percent"),
        "gap_to_best_percent is 50",
    ),
    "sample cut short": (put(["a"], "samples", 0, "pieces"), "one width for each piece"),
    "too much routed": (put(0.999, "routing", 0, "share"), "routing shares of domain 'python'"),
    "curve without points": (put([], "curves", 0, "points"), "curves.0.points"),
    "fixed curve that is none": (put("fixed", "curves", 0, "role"), "candidate 'gain'"),
    "moment without zone": (put("2026-03-03T14:05:00", "created"), "time zone"),
    "no moment": (put("yesterday", "created"), "created"),
    "later format": (put(2, "format"), "this version reads format 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_place(mistake, data, tmp_path):
    change, place = MISTAKES[mistake]
    change(data)
    file = write(tmp_path, data)
    with pytest.raises(LabError) as caught:
        load_results(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert place in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["domains", "candidates", "matrix", "curves", "budgets", "routing", "exact_match"])
def test_nothing_is_there_twice(key, data, tmp_path):
    data[key].append(data[key][0])
    with pytest.raises(LabError, match="is there twice"):
        load_results(write(tmp_path, data))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": 1, "format": 1}', "key 'format' is there twice"),
        ('{"format": 1, "cost": NaN}', "NaN is not a JSON number"),
        ('{"format": 1', "not a valid JSON"),
        ("[]", "format None"),
    ],
)
def test_broken_json_is_refused(text, reason, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(LabError, match=reason):
        load_results(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(LabError, match=r"absent\.json: cannot read"):
        load_results(tmp_path / "absent.json")
    with pytest.raises(LabError, match="cannot read"):
        load_results(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(LabError, match=r"latin\.json"):
        load_results(tmp_path / "latin.json")
