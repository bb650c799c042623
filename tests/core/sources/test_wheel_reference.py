"""What a pypi: reference may say; writing and parsing are inverse."""

import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import SourceError
from sixfold.core.sources.reference import join_fragment, split_fragment
from sixfold.core.sources.wheel_reference import PinnedWheel, WheelReference

SHA = "0123456789abcdef" * 4

PARTS = st.text(st.characters(exclude_characters="/\\\x00", exclude_categories=["Cs"]), min_size=1).filter(
    lambda part: part not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: PurePosixPath(*parts))
WHEELS = st.builds(
    PinnedWheel,
    project=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True),
    version=st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)


@st.composite
def references(draw: st.DrawFn) -> WheelReference:
    names = draw(st.sets(PATHS, max_size=2))
    return WheelReference(
        wheels=tuple(draw(st.lists(WHEELS, min_size=1, max_size=3))),
        path=draw(PATHS),
        join=tuple((name, tuple(draw(st.lists(PATHS, min_size=1, max_size=3)))) for name in sorted(names, key=str)),
    )


@given(reference=references())
def test_a_written_reference_is_read_back(reference: WheelReference) -> None:
    assert WheelReference.parse(str(reference)) == reference


@given(one=references(), other=references())
def test_different_references_never_share_a_folder(one: WheelReference, other: WheelReference) -> None:
    assert (one.key == other.key) == (one == other)
    assert "/" not in one.key


@given(name=st.text().filter(lambda name: "#" not in name), fields=st.dictionaries(st.sampled_from("ab"), PARTS))
def test_a_fragment_is_read_back(name: str, fields: dict[str, str]) -> None:
    assert split_fragment(join_fragment(name, fields), ("a", "b")) == (name, fields)


def test_the_short_form_names_one_wheel_and_a_path() -> None:
    reference = WheelReference.parse(f"some-model==1.2.post1#sha256={SHA}&path=some_model/data")
    assert reference.wheels == (PinnedWheel(project="some-model", version="1.2.post1", sha256=SHA),)
    assert reference.path == PurePosixPath("some_model/data")
    assert reference.key.startswith("some-model-1.2.post1-")


def test_the_mapping_form_joins_pieces_of_several_wheels() -> None:
    given_mapping = {
        "wheels": [f"m-1==1.0#sha256={SHA}", f"m-2==1.0#sha256={SHA}"],
        "path": "m_2/data",
        "join": {"model.bin": ["m_1/part1", "m_2/data/part2"]},
    }
    reference = WheelReference.parse(json.dumps(given_mapping))
    assert [wheel.pin for wheel in reference.wheels] == ["m-1==1.0", "m-2==1.0"]
    assert reference.join == (
        (PurePosixPath("model.bin"), (PurePosixPath("m_1/part1"), PurePosixPath("m_2/data/part2"))),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model", "'path=' is missing"),
        (f"model#sha256={SHA}&path=a", "not a pinned project"),
        (f"model>=1#sha256={SHA}&path=a", "not a pinned project"),
        ("model==1#path=a", "'#sha256=' with the 64 hex digits"),
        ("model==1#sha256=abc&path=a", "'#sha256=' with the 64 hex digits"),
        (f"model==1#sha26={SHA}&path=a", "unknown field 'sha26' after '#'. Did you mean 'sha256'?"),
        (f"model==1#sha256={SHA}&sha256={SHA}&path=a", "must be given once"),
        (f"model==1#sha256={SHA}&path=", "must be given once, with a value"),
        (f"model==1#sha256={SHA}&path=/etc/passwd", "must be a relative path"),
        (f"model==1#sha256={SHA}&path=a/../../b", "must be a relative path"),
        (f"model==1#sha256={SHA}&path=a%2F..%2F..%2Fb", "must be a relative path"),
        ("{broken", "must be followed by a JSON object"),
        ('{"path": "a"}', "source.pypi.wheels: is required"),
        ('{"path": "a", "wheels": []}', "source.pypi.wheels: "),
        ('{"path": "a", "wheels": ["m==1"]}', "'#sha256='"),
        ('{"pat": "a", "wheels": ["m==1"]}', "source.pypi.pat: unknown key. Did you mean 'path'?"),
        (f'{{"path": "a", "wheels": ["m==1#sha256={SHA}"], "join": {{"../x": ["a"]}}}}', "must be a relative path"),
    ],
)
def test_a_malformed_reference_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        WheelReference.parse(text)
    assert reason in str(caught.value)
