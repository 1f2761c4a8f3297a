import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagic_lab.toyworld import captions, dataset
from imagic_lab.toyworld.scene import TEST_SEEDS, Scene
from imagic_lab.toyworld.world import ATTRIBUTES, COMBINATIONS, POSES_OF, held_out

LAST = 1 - 2**-53  # the highest value that a field of an identity can have


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(scene.render()).astype(int)


def coat(scene: Scene) -> np.ndarray:
    """True where the colour of the subject shows."""
    return abs(pixels(scene.edit(colour="red")) - pixels(scene.edit(colour="blue"))).max(axis=2) > 40


# --------------------------------------------------------------------------------------------- seeds


def test_a_seed_gives_the_same_bits_twice():
    for seed in (0, 7, TEST_SEEDS):
        assert Scene.sample(seed) == Scene.sample(seed)
        assert Scene.sample(seed).render().tobytes() == Scene.sample(seed).render().tobytes()


def test_other_seeds_give_other_pictures_even_of_the_same_words():
    pictures = {Scene.sample(s, subject="dog", colour="brown", pose="sitting", place="grass").render().tobytes()
                for s in range(40)}  # fmt: skip
    assert len(pictures) == 40


def test_seeds_stand_for_the_scenes_that_the_embedded_model_was_trained_on():
    assert [tuple(Scene.sample(seed).attributes.values()) for seed in range(4)] == [
        ("dog", "white", "sitting", "beach"),
        ("car", "black", "parked", "night"),
        ("car", "grey", "driving", "snow"),
        ("cat", "red", "standing", "snow"),
    ]


def test_fixing_attributes_leaves_the_identity_of_a_seed_alone():
    for seed in range(20):
        free, fixed = Scene.sample(seed), Scene.sample(seed, subject="car", place="night")
        assert free.identity == fixed.identity
        assert (fixed.subject, fixed.place) == ("car", "night")


def test_an_attribute_given_as_none_is_drawn_like_one_left_out():
    assert Scene.sample(5, colour=None, pose=None) == Scene.sample(5)


@given(seed=st.integers(0, 2**63))
@settings(max_examples=100, deadline=None)
def test_every_seed_is_a_scene_that_can_be(seed):
    scene = Scene.sample(seed)
    assert tuple(scene.attributes.values()) in COMBINATIONS


@pytest.mark.parametrize("pose", ATTRIBUTES["pose"])
def test_a_fixed_pose_finds_a_subject_that_can_take_it(pose):
    for seed in range(20):
        scene = Scene.sample(seed, pose=pose)
        assert scene.pose == pose and pose in POSES_OF[scene.subject]


def test_the_world_is_sampled_evenly_enough_to_learn_from():
    scenes = [Scene.sample(seed) for seed in range(2000)]
    for name in ("subject", "colour", "place"):
        counts, values = Counter(getattr(s, name) for s in scenes), ATTRIBUTES[name]
        assert all(0.7 < counts[v] * len(values) / len(scenes) < 1.3 for v in values), counts


# --------------------------------------------------------------------------------------------- edits


def test_an_edit_changes_its_attribute_and_nothing_else():
    scene = Scene.sample(7, subject="dog", colour="brown", pose="sitting", place="grass")
    for change in ({"pose": "jumping"}, {"colour": "blue"}, {"place": "snow"}, {"subject": "cat"}):
        edited = scene.edit(**change)
        assert edited.attributes == scene.attributes | change
        assert edited.identity == scene.identity
        assert scene.attributes["pose"] == "sitting"  # the scene itself is not touched


@pytest.mark.parametrize("change", [{"pose": "jumping"}, {"colour": "blue"}, {"place": "snow"}, {"subject": "cat"}])
def test_an_edit_shows_and_editing_back_gives_the_same_bits(change):
    for seed in range(5):
        scene = Scene.sample(seed, subject="dog", colour="brown", pose="sitting", place="grass")
        back = {name: getattr(scene, name) for name in change}
        assert scene.edit(**change).render().tobytes() != scene.render().tobytes()
        assert scene.edit(**change).edit(**back).render().tobytes() == scene.render().tobytes()


def test_a_pose_edit_keeps_the_background():
    for seed in range(10):
        scene = Scene.sample(seed, subject="dog", pose="sitting")
        changed = (pixels(scene) != pixels(scene.edit(pose="jumping"))).any(axis=2)
        assert 0.03 < changed.mean() < 0.35
        assert not changed[:8].any() and not changed[-8:].any()  # the sky's top, the ground at the bottom


def test_a_colour_edit_keeps_everything_but_the_subject():
    for seed in range(10):
        scene = Scene.sample(seed, subject="dog", place="grass")
        changed = (pixels(scene.edit(colour="red")) != pixels(scene.edit(colour="blue"))).any(axis=2)
        assert 0.03 < changed.mean() < 0.2


def test_a_place_edit_keeps_the_subject():
    for seed in range(10):
        scene = Scene.sample(seed, subject="dog", place="grass")
        same = (pixels(scene) == pixels(scene.edit(place="beach"))).all(axis=2)
        dog = coat(scene)
        assert same[dog].mean() > 0.8  # all but its soft edge
        assert same[~dog].mean() < 0.3


# ---------------------------------------------------------------------------------------- the pictures


def test_the_world_has_512_combinations():
    assert len(COMBINATIONS) == len(set(COMBINATIONS)) == 512


def test_every_combination_is_drawn_as_rgb_at_128_pixels_and_no_two_alike():
    identity, drawn = Scene.sample(11).identity, set()
    for combination in COMBINATIONS:
        picture = Scene(*combination, identity).render()
        assert picture.mode == "RGB" and picture.size == (128, 128), combination
        drawn.add(picture.tobytes())
    assert len(drawn) == 512


POSED = [(subject, pose) for subject, poses in POSES_OF.items() for pose in poses]


@pytest.mark.parametrize(("subject", "pose"), POSED)
def test_a_subject_is_in_the_frame_even_where_its_identity_is_extreme(subject, pose):
    middle = Scene.sample(1).identity
    for x, near, flip in product((0.0, 0.5, LAST), (0.0, LAST), (0.0, LAST)):
        identity = replace(middle, x=x, flip=flip, depth=near, size=near, horizon=near, tail=LAST, ears=LAST)
        shown = coat(Scene(subject, "red", pose, "grass", identity))
        edge = sum(side.sum() for side in (shown[0], shown[-1], shown[1:-1, 0], shown[1:-1, -1]))
        assert edge <= 20, "more than the tip of a tail, an ear or a paw is cut off"
        assert 0.02 < shown.mean() < 0.25
        ys, xs = shown.nonzero()
        assert 0.3 < xs.mean() / 128 < 0.7 and 0.25 < ys.mean() / 128 < 0.85


@pytest.mark.parametrize(("subject", "pose"), POSED)
def test_a_subject_is_in_the_frame_for_common_seeds(subject, pose):
    cut = [coat(Scene.sample(seed, subject=subject, pose=pose, place="grass")) for seed in range(6)]
    edges = [sum(side.sum() for side in (c[0], c[-1], c[1:-1, 0], c[1:-1, -1])) for c in cut]
    assert max(edges) <= 10, "more than the tip of a tail or an ear is cut off"


# --------------------------------------------------------------------------------- what is held out


def pairs(combination: tuple[str, ...]):
    return combinations(zip(ATTRIBUTES, combination, strict=True), 2)


def test_exactly_64_of_512_combinations_are_held_out():
    assert sum(held_out(*c) for c in COMBINATIONS) == 64


def test_the_held_out_ones_are_those_that_the_embedded_model_never_saw():
    dogs = [c[1:] for c in COMBINATIONS if held_out(*c) and c[0] == "dog"]
    assert dogs[:4] == [
        ("brown", "sitting", "beach"),
        ("brown", "jumping", "grass"),
        ("black", "standing", "night"),
        ("black", "lying down", "snow"),
    ]


def test_one_colour_is_held_out_for_each_subject_pose_and_place():
    kept_back = Counter((s, p, place) for s, c, p, place in COMBINATIONS if held_out(s, c, p, place))
    assert len(kept_back) == 64 and set(kept_back.values()) == {1}


def test_every_pair_of_attributes_is_still_learned():
    every = {pair for c in COMBINATIONS for pair in pairs(c)}
    learned = {pair for c in COMBINATIONS if not held_out(*c) for pair in pairs(c)}
    assert every == learned


def test_a_scene_knows_whether_it_is_held_out():
    identity = Scene.sample(0).identity
    assert all(Scene(*c, identity).held_out == held_out(*c) for c in COMBINATIONS)


def test_training_scenes_are_the_first_seeds_without_the_held_out_ones():
    training = dataset.training_scenes(2000)
    seeds = iter(range(TEST_SEEDS))
    expected = []
    while len(expected) < 2000:
        scene = Scene.sample(next(seeds))
        if not held_out(scene.subject, scene.colour, scene.pose, scene.place):
            expected.append(scene)
    assert training == expected


def test_training_stops_before_the_test_seeds(monkeypatch):
    monkeypatch.setattr(dataset, "TEST_SEEDS", 50)
    everything = dataset.training_scenes(10**6)
    assert everything == [s for s in map(Scene.sample, range(50)) if not s.held_out]
    assert dataset.test_scenes(1) == [Scene.sample(50)]


def test_test_scenes_share_no_identity_with_training_and_can_be_chosen():
    training = {s.identity for s in dataset.training_scenes(2000)}
    assert dataset.test_scenes(50) == [Scene.sample(TEST_SEEDS + k) for k in range(50)]
    for choice in (True, False):
        scenes = dataset.test_scenes(50, held_out=choice)
        assert len(scenes) == 50
        assert all(s.held_out == choice and s.identity not in training for s in scenes)


# ------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (("dog", "brown", "jumping", "grass"), "a brown dog jumping on the grass"),
        (("cat", "orange", "lying down", "beach"), "an orange cat lying down on the beach"),
        (("rabbit", "grey", "sitting", "snow"), "a grey rabbit sitting in the snow"),
        (("bird", "yellow", "flying", "night"), "a yellow bird flying at night"),
        (("car", "red", "parked", "beach"), "a red car parked on the beach"),
    ],
)
def test_the_plain_caption_names_every_attribute_in_the_plain_order(attributes, text):
    assert Scene(*attributes, Scene.sample(0).identity).caption() == text


def phrase_table() -> dict[str, set[tuple[str, str]]]:
    """Every phrase of the captions with what it can mean; 'standing still' is said of dogs and of cars."""
    table: dict[str, set[tuple[str, str]]] = {}
    for name, forms_of in captions.PHRASES.items():
        for value, forms in forms_of.items():
            for form in forms:
                table.setdefault(form, set()).add((name, value))
    return table


def read(caption: str) -> list[set[tuple[str, str]]]:
    """What the phrases of a caption mean, longest phrase first; a word that means nothing is an error."""
    opening = max((o for o in captions.OPENINGS if caption.startswith(o)), key=len)
    words = [w for w in re.split(r"[ ,]+", caption.removeprefix(opening)) if w]
    table, meanings = phrase_table(), []
    while words:
        for length in (3, 4, 2, 1):
            phrase = " ".join(words[:length])
            if phrase in table and len(words) >= length:
                meanings.append(table[phrase])
                break
        else:
            assert words[0] in ("a", "an", "is", "that"), f"{words[0]!r} in {caption!r} says nothing of the scene"
            length = 1
        words = words[length:]
    return meanings


def test_varied_captions_name_only_what_is_true_each_thing_once_and_always_the_subject():
    omitted = Counter()
    for seed in range(3000):
        scene = Scene.sample(seed)
        meanings, true = read(scene.caption(seed)), set(scene.attributes.items())
        named = [meaning & true for meaning in meanings]
        assert all(len(n) == 1 for n in named), scene.caption(seed)
        names = [next(iter(n))[0] for n in named]
        assert len(names) == len(set(names)) and "subject" in names, scene.caption(seed)
        omitted.update(set(ATTRIBUTES) - set(names))
    assert set(omitted) == {"colour", "pose", "place"}
    assert all(0.03 < count / 3000 < 0.12 for count in omitted.values()), omitted


def test_what_a_caption_names_is_read_back_from_it():
    for seed in range(1000):
        scene = Scene.sample(seed)
        assert captions.attributes_in(scene.caption()) == scene.attributes
        found = captions.attributes_in(scene.caption(seed))
        assert found.items() <= scene.attributes.items() and "subject" in found, scene.caption(seed)
        assert len(found) == len(read(scene.caption(seed))), scene.caption(seed)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A Puppy, leaping by the sea!", {"subject": "dog", "pose": "jumping", "place": "beach"}),
        ("a car standing still", {"subject": "car", "pose": "parked"}),
        ("a dog standing still", {"subject": "dog", "pose": "standing"}),
        ("a zebra in a skyscraper", {}),
        ("", {}),
    ],
)
def test_any_text_names_what_it_names(text, found):
    assert captions.attributes_in(text) == found


def test_captions_vary_by_seed_and_a_seed_repeats_itself():
    scene = Scene.sample(0, subject="dog", colour="brown", pose="sitting", place="grass")
    said = [scene.caption(seed) for seed in range(500)]
    assert said == [scene.caption(seed) for seed in range(500)]
    assert len(set(said)) > 200
    assert all(any(c.startswith(o) for c in said) for o in captions.OPENINGS)
    for name in ("subject", "colour", "pose"):
        assert all(any(form in c for c in said) for form in captions.PHRASES[name][getattr(scene, name)])


def test_each_plain_word_is_said_more_than_half_of_the_time():
    scene = Scene.sample(0, subject="rabbit", colour="grey", pose="sitting", place="grass")
    said = [scene.caption(seed) for seed in range(1000)]
    assert sum("rabbit" in c for c in said) > 500
    assert sum("grass" in c for c in said) > 0.5 * sum(
        any(p in c for p in captions.PHRASES["place"]["grass"]) for c in said
    )


def test_articles_fit_their_words():
    for seed in range(1000):
        caption = Scene.sample(seed).caption(seed)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\ba an?\b|  |,,", caption), caption


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"size": "big"}, "unknown attribute 'size': choose from subject, colour, pose, place"),
        ({"subject": "dragon"}, "unknown subject 'dragon': choose one of dog, cat"),
        ({"subject": "dragon", "pose": "flying"}, "unknown subject 'dragon': choose one of dog, cat"),
        ({"colour": "pink"}, "unknown colour 'pink': choose one of brown, black"),
        ({"colour": ""}, "unknown colour '': choose one of brown, black"),
        ({"pose": "swimming"}, "unknown pose 'swimming': choose one of sitting"),
        ({"place": "moon"}, "unknown place 'moon': choose one of grass"),
        ({"subject": "dog", "pose": "flying"}, "a dog can't be 'flying': choose one of sitting, standing"),
        ({"subject": "car", "pose": "jumping"}, "a car can't be 'jumping': choose one of parked, driving"),
    ],
)
def test_what_the_world_does_not_have_is_refused_in_one_sentence(attributes, message):
    with pytest.raises(ValueError) as sampled:
        Scene.sample(3, **attributes)
    scene = Scene.sample(3, subject="dog" if "pose" in attributes else "cat")
    with pytest.raises(ValueError) as edited:
        scene.edit(**attributes)
    for caught in (sampled, edited):
        assert type(caught.value) is ValueError
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value) and ". " not in str(caught.value)


def test_a_subject_edit_that_its_pose_forbids_says_which_poses_there_are():
    with pytest.raises(ValueError, match=r"^a car can't be 'sitting': choose one of parked, driving$"):
        Scene.sample(0, subject="dog", pose="sitting").edit(subject="car")
