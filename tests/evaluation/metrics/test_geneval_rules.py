"""GenEval's rules against its own script, and each branch by hand."""

import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.metrics import geneval_rules
from tests.helpers import geneval_cases
from tests.helpers.geneval_cases import Object

# A bit for each of 400 cases, the first the lowest: the verdict of evaluate_images.py of
# djghosh13/geneval at af4902f, whose functions were given these detections.
ORIGINAL = int(
    "39703030301131223032312023381931383139743121303300313021302330391913111a385110342c3d1158300434"
    "30711",
    16,
)
LEFT, RIGHT, BELOW = (0, 0, 10, 10), (30, 0, 40, 10), (0, 30, 10, 40)


def colors(name, objects):
    return [x.color for x in objects]


def judge(metadata, *objects, colors=colors):
    groups = geneval_rules.select(objects, metadata.get("tag", "position"))
    return geneval_rules.verdict(groups, metadata, colors)


def thing(name, score=0.8, box=LEFT, color="red"):
    return Object(geneval_rules.CLASSES.index(name), score, box, color)


def test_verdicts_are_those_of_the_original():
    found = 0
    for index in range(400):
        metadata, objects = geneval_cases.draw(index)
        correct, reason = judge(metadata, *objects)
        assert correct == (reason == "")
        found |= correct << index
    assert found == ORIGINAL and 100 < ORIGINAL.bit_count() < 200


def test_objects_are_selected_by_score_and_class():
    objects = [thing("cat", 0.3), thing("dog", 0.31), thing("cat", 0.5), thing("cat", 0.95)]
    objects += [thing("person", 0.4 + 0.01 * i) for i in range(20)]
    found = geneval_rules.select(objects, "colors")
    assert list(found) == ["person", "cat", "dog"]  # COCO's order
    assert [x.score for x in found["cat"]] == [0.95, 0.5]  # 0.3 does not exceed 0.3
    assert len(found["person"]) == 16 and found["person"][0].score == pytest.approx(0.59)
    assert list(geneval_rules.select(objects, "counting")) == ["cat"]


def test_relations_by_hand():
    relations = geneval_rules.relations
    assert relations(LEFT, RIGHT) == ["left of"] and relations(RIGHT, LEFT) == ["right of"]
    assert relations(LEFT, BELOW) == ["above"] and relations(BELOW, LEFT) == ["below"]
    # 30 apart on both axes, of which 2 are lost to sizes: 28 / 42 along each.
    assert relations((30, 30, 40, 40), LEFT) == ["right of", "below"]
    # 1.9 apart, less than a tenth of both sizes; then 3: what is left is a third of it.
    assert relations((1, 0, 12, 10), LEFT) == []
    assert relations((3, 0, 13, 10), LEFT) == []
    assert relations((5, 0, 15, 10), LEFT) == ["right of"]
    assert relations(LEFT, LEFT) == []


def test_what_a_picture_lacks_is_said():
    two = {"include": [{"class": "cat", "count": 2}]}
    assert judge(two, thing("cat"), thing("cat")) == (True, "")
    assert judge(two, thing("cat"), thing("cat"), thing("cat")) == (True, "")
    assert judge(two, thing("cat")) == (False, "cat: 1 found, 2 expected")
    but = {**two, "exclude": [{"class": "cat", "count": 3}]}
    three = [thing("cat")] * 3
    assert judge(but, *three) == (False, "cat: 3 found, fewer than 3 expected")
    red = {"include": [{"class": "cat", "count": 1, "color": "red"}]}
    # The surest one alone is looked at.
    some = [thing("cat", 0.7), thing("cat", 0.9, color="blue")]
    assert judge(red, *some) == (False, "cat: red expected, found blue")
    assert judge(red, *some[:1]) == (True, "")


def test_a_position_needs_its_target_in_its_colour():
    place = {"class": "dog", "count": 1, "position": ["right of", 0]}
    metadata = {"include": [{"class": "cat", "count": 1, "color": "red"}, place]}
    cat, dog = thing("cat"), thing("dog", box=RIGHT)
    assert judge(metadata, cat, dog) == (True, "")
    assert judge(metadata, cat, thing("dog", box=BELOW)) == (
        False, "dog: right of expected, found below",
    )  # fmt: skip
    assert judge(metadata, cat, thing("dog", box=LEFT))[1].endswith("found neither")
    correct, reason = judge(metadata, thing("cat", color="blue"), dog)
    assert not correct and reason.splitlines() == [
        "cat: red expected, found blue",
        "dog: right of of nothing, for its target is not there",
    ]


def test_colours_are_asked_for_only_where_a_prompt_has_them():
    def never(name, objects):
        raise AssertionError(name)

    metadata = {"include": [{"class": "cat", "count": 1}]}
    assert judge(metadata, thing("cat"), colors=never)[0]
    colored = {"include": [{"class": "cat", "count": 2, "color": "red"}]}
    assert not judge(colored, thing("cat"), colors=never)[0]


GOOD = {"tag": "position", "prompt": "x", "include": [{"class": "cat", "count": 1}]}


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"tag": "colour"}, "has the tag 'colour', expected a prompt and one of"),
        ({"prompt": 3}, "expected a prompt"),
        ({"include": []}, "needs lists of objects"),
        ({"include": ["cat"]}, "needs lists of objects"),
        ({"exclude": {}}, "needs lists of objects"),
        ({"include": [{"class": "mouse", "count": 1}]}, "'mouse', which is none of .* 80"),
        ({"include": [{"class": "cat", "count": 0}]}, "'0' of cat, expected a number from 1"),
        ({"include": [{"class": "cat", "count": 1, "color": "gray"}]}, "the colour 'gray'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "the position"),
        ({"include": [{"class": "cat", "count": 1, "position": "above"}]}, "the position"),
        ({"exclude": [{"class": "cat", "count": "3"}]}, "'3' of cat"),
    ],
)
def test_metadata_that_no_rule_fits_is_refused(change, complaint):
    geneval_rules.check(GOOD, "here")
    for metadata in geneval_cases.PROMPTS:
        geneval_rules.check({**metadata, "prompt": "x"}, "here")
    with pytest.raises(InputError, match=complaint):
        geneval_rules.check({**GOOD, **change}, "here")
