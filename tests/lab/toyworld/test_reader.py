"""What a scene shows as numbers, what a drawing explains, and which details a picture keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imagic_lab.toyworld import Scene, dataset, load_reader, load_scene
from imagic_lab.toyworld.details import DETAILS, canonical, from_numbers, share_kept, to_numbers, visible
from imagic_lab.toyworld.edits import EDIT_COUNTS, EDIT_KINDS, toyedit
from imagic_lab.toyworld.fitting import fit_scene
from imagic_lab.toyworld.monsters import MONSTER_KINDS, monsters
from imagic_lab.toyworld.reader import Reader, ReaderNet, as_stack, best_bound, reading_loss, targets, unexplained
from imagic_lib import DATA, open_image


def pictures(scenes):
    return dataset.to_batch(np.stack([dataset.pixels(s) for s in scenes]))


# ------------------------------------------------------------------------------------- scenes as numbers


def test_a_scene_written_as_numbers_and_back_draws_the_same_picture():
    """Except stars and snowflakes, and the size of a bird's spots, which are not read."""
    for scene in dataset.test_scenes(60):
        plain = replace(scene, identity=replace(scene.identity, sparks=(-1.0,) * 16))
        if scene.subject == "bird":
            plain = replace(plain, identity=replace(plain.identity, spots=(0.0,) * 9))
        again = from_numbers(plain.attributes, to_numbers(plain))
        worst = (pictures([plain]) - pictures([again])).abs().mean()
        assert worst < 0.004, (scene.caption(), worst)


def test_two_clouds_have_no_order():
    scene = next(s for s in dataset.test_scenes(100) if to_numbers(s)["second cloud"])
    first, second = scene.identity.clouds[:3], scene.identity.clouds[3:]
    swapped = replace(scene, identity=replace(scene.identity, clouds=(*second, *first)))
    assert canonical(swapped) == canonical(scene) and to_numbers(swapped) == to_numbers(scene)


def test_what_a_picture_shows():
    car = Scene.sample(1, subject="car", place="night")
    assert not visible(car) & {"socks", "eye patch", "tail", "first cloud", "spot 1 along"}
    beach = Scene.sample(1, subject="dog", place="beach")
    assert "tail" in visible(beach) and not any("hill" in name for name in visible(beach))
    for scene in dataset.test_scenes(50):
        assert ("collar colour" in visible(scene)) == bool(to_numbers(scene)["collar"])


def test_every_detail_that_is_called_visible_changes_the_picture():
    """Each switch and amount shows when it is moved from one end to the other."""
    seen = set()
    for scene in dataset.test_scenes(120):
        numbers = to_numbers(scene)
        for name in visible(scene) - seen:
            far = 1 - numbers[name] if name != "collar colour" else (numbers[name] + 2) % 5
            far = round(far) if name in DETAILS and 0 in DETAILS[name].values() else far
            other = from_numbers(scene.attributes, numbers | {name: far})
            base = from_numbers(scene.attributes, numbers)
            if (pictures([base]) - pictures([other])).abs().max() > 0.02:
                seen.add(name)
    everything = set().union(*(visible(s) for s in dataset.test_scenes(120)))
    assert seen == everything


def test_targets_ask_only_for_what_is_shown():
    scenes = dataset.test_scenes(8)
    torch.manual_seed(0)
    found = {k: v.detach().requires_grad_(True) for k, v in ReaderNet()(pictures(scenes)).items()}
    wanted = targets(scenes)
    reading_loss(found, wanted).backward()
    assert torch.equal(found["amounts"].grad != 0, wanted["amounts?"] > 0)
    assert torch.equal(found["collar colour"].grad.abs().sum(1) > 0, wanted["collar colour?"] > 0)


# ---------------------------------------------------------------------------------- what a drawing explains


@pytest.fixture(scope="module")
def some_monsters():
    """Three of each kind, in the order of the kinds."""
    return monsters(3)


def test_a_drawing_explains_itself_also_soft_and_a_pixel_off():
    for picture in pictures(dataset.test_scenes(12)):
        assert unexplained(picture, picture).max() == 0
        moved = picture.roll((1, -1), (1, 2))
        soft = F.interpolate(F.interpolate(picture[None], scale_factor=0.75, mode="area"), 128, mode="bilinear")[0]
        assert unexplained(moved, picture)[9:-9, 9:-9].max() < 0.02 and unexplained(soft, picture).max() < 0.1


def test_missing_and_extra_parts_stay_unexplained_in_every_kind_of_monster(some_monsters):
    left = {kind: [] for kind in MONSTER_KINDS}
    for kind, scene, picture in some_monsters:
        left[kind].append(unexplained(as_stack(picture)[0], pictures([scene])[0]).max().item())
    assert all(np.median(values) > 0.12 for values in left.values()), left


def test_a_leg_too_many_is_as_bad_as_one_too_few(some_monsters):
    for _, scene, picture in some_monsters[::3]:
        spoiled, drawing = as_stack(picture)[0], pictures([scene])[0]
        assert torch.allclose(unexplained(spoiled, drawing), unexplained(drawing, spoiled))


class Perfect(Reader):
    """A reader that knows the answer, to test the rules that follow from what is read."""

    def __init__(self, scene, bound=0.1):
        self.scene_read, self.bound = scene, bound

    def scene(self, picture):
        return self.scene_read


def test_success_needs_the_right_attributes_and_a_good_drawing(some_monsters):
    scene = Scene.sample(3, subject="dog", pose="standing")
    reader, picture = Perfect(canonical(scene)), scene.render()
    assert reader.report(picture, scene).success and not reader.report(picture, scene.edit(pose="sitting")).success
    spoiled, legless = next((s, p) for kind, s, p in some_monsters if kind == "no legs")
    assert not Perfect(spoiled).drawn_well(legless) and Perfect(spoiled).drawn_well(spoiled.render())


def test_fitting_finds_the_details_that_the_first_glance_missed():
    """It corrects the wrong guesses about a blurred picture, and then the drawing explains the picture."""
    truth = Scene.sample(21, subject="cat", pose="standing", place="beach", colour="orange")
    numbers = to_numbers(truth)
    guess = dict(numbers)
    for name in ("belly", "socks", "eye patch", "collar"):
        guess[name] = 1 - guess[name]
    guess |= {"x": numbers["x"] + 0.1, "size": 0.5, "shade": 0.5, "light x": numbers["light x"] - 0.05}
    picture = F.avg_pool2d(pictures([truth]), 3, stride=1, padding=1, count_include_pad=False)[0]
    found = fit_scene(picture, [from_numbers(truth.attributes, guess)])
    assert share_kept(found, truth) == 1
    before, after = (
        unexplained(picture, pictures([s])[0]).max() for s in (from_numbers(truth.attributes, guess), found)
    )
    assert after < 0.5 * before


def test_of_several_starts_the_one_that_fits_is_kept():
    truth = Scene.sample(12, subject="dog", colour="brown", pose="jumping", place="grass")
    found = fit_scene(pictures([truth])[0], [truth.edit(pose="standing"), truth.edit(colour="orange"), truth])
    assert found.attributes == truth.attributes


def test_the_bound_separates_good_pictures_from_bad_ones():
    assert best_bound([0.1, 0.2], [0.4, 0.5]) == 0.2
    assert best_bound([0.1, 0.2, 0.3, 0.9], [0.25, 0.5, 0.6, 0.7]) == 0.3  # three of four on each side


def test_kept_counts_the_details_that_agree():
    dog = Scene.sample(5, subject="dog", place="grass")
    assert share_kept(dog, dog) == 1
    turned = replace(dog, identity=replace(dog.identity, flip=(dog.identity.flip + 0.5) % 1))
    asked = sum(any(name in visible(dog) for name in parts) for parts in DETAILS.values())
    assert share_kept(turned, dog) == pytest.approx(1 - 1 / asked)
    other = Scene.sample(6, **dog.attributes)
    assert share_kept(other, dog) < 0.7


def test_details_that_the_input_did_not_show_do_not_count():
    bird = Scene.sample(8, subject="bird", pose="standing")
    cat = bird.edit(subject="cat")
    socks = replace(cat, identity=replace(cat.identity, socks=(cat.identity.socks + 0.6) % 1.0, ears=0.0, tail=0.5))
    before = replace(cat, identity=replace(cat.identity, ears=0.99, tail=0.5))
    assert share_kept(socks, before) < 1 == share_kept(socks, before, bird)


def test_a_good_dog_one_step_to_the_left_is_near_to_the_truth():
    scene = Scene.sample(11, subject="dog", pose="jumping", place="grass")
    moved = replace(scene, identity=replace(scene.identity, x=(scene.identity.x + 0.4) % 1))
    assert Perfect(moved).report(moved.render(), scene).distance < 0.02
    assert Perfect(scene).report(moved.render(), scene).distance > 0.05


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="pictures of 128x128"):
        as_stack(torch.zeros(3, 64, 64))


# ------------------------------------------------------------------------------------ the shipped reader


def test_the_shipped_reader_reads_the_shipped_drawings():
    reader = load_reader()
    for path in sorted((DATA / "images").glob("*.png")):
        truth = load_scene(path)
        report = reader.report(open_image(path), truth)
        assert report.success and report.kept >= 0.9 and report.distance < 0.08, (path.name, report)


def test_a_pose_that_the_glance_gets_wrong_is_read_correctly():
    reader, truth = load_reader(), Scene.sample(12, subject="dog", colour="brown", pose="jumping", place="grass")
    picture = truth.render()
    assert reader.glance(as_stack(picture))[0].pose == "standing"
    assert reader.may_be(picture, truth) and reader.success(picture, truth)
    assert not reader.may_be(picture, truth.edit(subject="car", pose="parked"))


def test_a_cloud_is_found_where_no_small_move_leads():
    """Two clouds, one above the other and half behind the head. Small moves alone would put both into one place."""
    reader, truth = load_reader(), Scene.sample(13, subject="dog", colour="brown", pose="jumping", place="grass")
    picture = truth.render()
    assert reader.left(picture, reader.scene(picture)) < 0.1


def test_the_shipped_reader_catches_the_monsters(some_monsters):
    """One of each kind, sharp as drawn. The reader's card counts them after the VAE."""
    reader = load_reader()
    passed = [kind for kind, _, picture in some_monsters[::3] if reader.drawn_well(picture)]
    assert len(passed) <= 1, passed


def test_a_damaged_or_missing_reader_ends_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_reader(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        load_reader(tmp_path / "bad.safetensors")


# --------------------------------------------------------------------------------------------- ToyEdit


def test_toyedit_has_forty_and_sixty_edits_the_same_number_of_each_kind():
    for split, size in EDIT_COUNTS.items():
        edits = toyedit(split)
        assert len(edits) == size and edits == toyedit(split)
        kinds = [next(iter(change)) for _, change in edits]
        assert all(kinds.count(kind) == size / 4 for kind in EDIT_KINDS)
        for scene, change in edits:
            (kind, value), truth = *change.items(), scene.edit(**change)
            assert getattr(scene, kind) != value == getattr(truth, kind)
            assert truth.render().size == (128, 128)
    assert not {s for s, _ in toyedit("dev")} & {s for s, _ in toyedit("test")}
    with pytest.raises(ValueError, match="choose 'dev' or 'test'"):
        toyedit("train")
