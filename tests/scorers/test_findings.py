from hypothesis import given
from hypothesis import strategies as st

from scorers.spans import Finding, merged, overlapping, redacted


def test_findings_are_replaced_by_their_types():
    text = "Mail jo@example.com or ask Jane Doe."
    found = [Finding(5, 19, "email"), Finding(27, 35, "name")]
    assert redacted(text, found) == "Mail {{EMAIL}} or ask {{NAME}}."
    assert redacted(text, []) == text


def test_findings_that_overlap_or_touch_are_hidden_together():
    text = "at 12 Main St, NY now"
    found = [Finding(9, 13, "name"), Finding(3, 17, "address"), Finding(17, 21, "name")]
    assert redacted(text, found) == "at {{ADDRESS+NAME}}"


def test_a_finding_can_be_moved_to_the_place_of_its_sentence():
    assert Finding(2, 5, "email").moved(10) == Finding(12, 15, "email")


@given(st.text("abc", max_size=30), st.data())
def test_no_finding_is_left_in_the_text(text, data):
    places = st.integers(0, len(text))
    spans = data.draw(
        st.lists(st.tuples(places, places).map(sorted).filter(lambda pair: pair[0] < pair[1]), max_size=5)
    )
    hidden = redacted(text, [Finding(start, end, "x") for start, end in spans])
    kept = "".join(
        character for place, character in enumerate(text) if not any(start <= place < end for start, end in spans)
    )
    assert hidden.replace("{{X}}", "") == kept
    assert hidden.count("{{X}}") == len(merged(map(tuple, spans)))


places = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)).map(lambda pair: (pair[0], sum(pair))), max_size=8)


@given(places, places)
def test_places_that_overlap_a_span_are_found(places, spans):
    expected = [any(start < stop and begin < end for begin, stop in spans) for start, end in places]
    assert overlapping(places, spans).tolist() == expected


def test_many_places_and_spans_of_a_long_text_take_no_quadratic_time():
    spans = [(20 * each, 20 * each + 9) for each in range(100_000)]
    places = [(4 * each, 4 * each + 4) for each in range(500_000)]
    assert overlapping(places, spans).sum() == 300_000
