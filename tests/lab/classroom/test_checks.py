"""The checks of the exercises: each recognizes a missing answer and right ones, and gives a hint for wrong ones."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagic_lab.classroom import checks
from imagic_lib.pictures import rmse

ALPHAS = torch.linspace(0.999, 0.005, 1000)
RAW = 5 * torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
GREYS = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 40, 200, 255)]


def noised(z, noise, t):
    return ALPHAS[t].sqrt() * z + (1 - ALPHAS[t]).sqrt() * noise


def turning_point(etas, poses):
    return next((eta for k, eta in enumerate(etas) if set(poses[k:]) == {"jumping"}), None)


CASES = {  # the check: right answers, wrong answers, further arguments
    "check_noised": ([noised], [lambda z, noise, t: z + noise, lambda z, noise, t: 1.0], (ALPHAS,)),
    "check_equal_weights": ([int((ALPHAS - 0.5).abs().argmin())], [0, 999], (ALPHAS,)),
    "check_latent_count": ([16384], [4096], ()),
    "check_embedding_size": ([59136], [768], ()),
    "check_stop_at": (
        [lambda s, x, share: next(a for a, b in zip(s, x, strict=True) if b <= x[0] - share * (x[0] - min(x)))],
        [lambda steps, losses, share: steps[-1]],
        (),
    ),
    "check_better_start": (["true caption"], ["target text"], ()),
    "check_psnr": ([lambda a, b: -10 * torch.log10((a - b).square().mean())], [lambda a, b: (a - b).mean()], ()),
    "check_adam_memory": ([12.8, 12.81], [3.2], ()),
    "check_beyond": ([-1], [2], ()),
    "check_turning_point": ([turning_point], [lambda etas, poses: etas[poses.index("jumping")]
                                              if "jumping" in poses else None], ()),
    "check_shy_edit": (["smaller λ", "smaller lambda"], ["more seeds"], ()),
    "check_nearest": (
        [lambda pictures, truth: min(range(len(pictures)), key=lambda k: rmse(pictures[k], truth))],
        [lambda pictures, truth: 0],
        (),
    ),
    "check_needed_to_sample": (["bcdf", "fdcb"], ["abc"], ()),
    "check_edit_size": ([(3.44, 1.59)], [(1.59, 3.44), 7, ("much", "little")], ()),
    "check_unet_calls": ([480], [240], ()),
    "check_z_0_from_v": (
        [lambda z_t, v, a_t: a_t.sqrt() * z_t - (1 - a_t).sqrt() * v],
        [lambda z_t, v, a_t: z_t - v, lambda z_t, v, a_t: 0.0],
        (),
    ),
    "check_last_swap": ([10], [0, 20], ([0, 10, 20, 30], GREYS)),
    "check_min_snr_weight": ([lambda snr: (5 / snr).clamp(max=1)], [lambda snr: 5 / snr, lambda snr: 1.0], ()),
    "check_scaling_factor": ([1 / RAW.std().item()], [0.18215 * 2], (RAW,)),
    "check_chance_loss": ([4.564], [0.5], (96,)),
    "check_text_style": ([2], [1], ()),
    "check_eight_bits": ([4.8], [9.6], ()),
    "check_cosine": (
        [lambda a, b: a @ b / (a.norm() * b.norm())],
        [lambda a, b: a @ b, lambda a, b: a @ b / a.norm(), lambda a, b: "a word"],
        (),
    ),
    "check_edits_needed": ([246, 245.86], [61, 200], ()),
    "check_best_of": ([lambda p, n: 1 - (1 - p) ** n], [lambda p, n: p * n, lambda p, n: 0.875, lambda p, n: p**n], ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_check_tells_right_from_wrong_and_from_not_attempted(name, capsys):
    def said(answer):
        getattr(checks, name)(answer, *more)
        return capsys.readouterr().out

    right, wrong, more = CASES[name]
    praise, hint = (checks.EXERCISES[name.removeprefix("check_")][key] for key in ("praise", "hint"))
    assert all(said(answer) == f"right: {praise}\n" for answer in right)
    assert all(said(answer) == f"not yet: {hint}\n" for answer in wrong)
    if not callable(right[0]):  # a word for a number, or two answers for one: a hint rather than a traceback
        assert all(said(odd) == f"not yet: {hint}\n" for odd in ("a word", (1, 2)))
    for empty in (..., None):
        stub = (lambda *given, empty=empty: empty) if callable(right[0]) else empty
        assert said(stub).startswith("not attempted yet")


def test_an_answer_that_changes_its_inputs_spoils_nothing_for_the_next_one(capsys):
    checks.check_stop_at(lambda steps, losses, share: losses.sort() or steps.clear() or 0)
    [right], _, _ = CASES["check_stop_at"]
    checks.check_stop_at(right)
    assert capsys.readouterr().out.splitlines()[1].startswith("right: ")


def test_each_check_has_its_case_here():
    assert {name.removeprefix("check_") for name in CASES} == checks.EXERCISES.keys()
    with pytest.raises(AttributeError, match="check_nothing"):
        checks.check_nothing  # noqa: B018


@pytest.mark.parametrize("number", checks.NOTEBOOKS)
def test_a_notebook_has_the_exercises_that_are_listed_under_its_number(number):
    [path] = (Path(__file__).resolve().parents[3] / "notebooks").glob(f"{number}_*.ipynb")
    assert set(re.findall(r"checks\.check_(\w+)\(", path.read_text(encoding="utf-8"))) == set(checks.NOTEBOOKS[number])
