"""Results and byproducts as text: what is written at once is what their JSON comes to."""

from hypothesis import given
from hypothesis import strategies as st

from mrp.cache.canonical import canonical_text
from mrp.cache.digest import ActionKey, Digest, digest_bytes
from mrp.specs.results import Byproducts, Outcome, Ref, Result, Usage

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
numbers = st.integers(0, 2**40) | st.decimals(0, 1000, places=3)
digests = st.binary(max_size=3).map(digest_bytes)
values = st.dictionaries(text, numbers | text | st.none() | st.booleans(), max_size=3)
refs = st.builds(Ref, st.sampled_from(["blob", "tree"]), digests)


@given(
    st.builds(
        Result,
        st.sampled_from(Outcome),
        st.none() | text,
        st.dictionaries(text, refs, max_size=3),
        values,
        st.booleans(),
    )
)
def test_a_result_is_spelled_as_its_json_is(result: Result) -> None:
    assert result.spelled() == canonical_text(result.to_json())


@given(
    st.builds(
        Byproducts,
        attempt=st.integers(1, 9),
        exit_code=st.none() | st.integers(0, 255),
        reason=text,
        stdout=st.none() | digests,
        stderr=st.none() | digests,
        diff=st.none() | digests,
        trajectory=st.none() | digests,
        metrics=values,
        isolation=text,
        usage=st.builds(Usage, numbers, numbers, st.integers(0, 2**50), numbers, st.integers(0, 9)),
        calls=st.lists(digests.map(lambda digest: ActionKey(Digest(digest))), max_size=2).map(tuple),
        determinism=st.sampled_from(["pure", "seeded", "sampled"]),
    )
)
def test_byproducts_are_spelled_as_their_json_is(byproducts: Byproducts) -> None:
    assert byproducts.spelled() == canonical_text(byproducts.to_json())
