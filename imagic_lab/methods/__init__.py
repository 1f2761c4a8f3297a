"""Methods that edit one picture by a text, each a function that fits on a slide, all with one interface (`Method`).

`tuning` has Imagic, and Imagic without one of its stages. `inversion`, `attention` and `own_noise` have methods that
start from the noise of the picture, and `others` has methods from diffusers. `imagic_lab.benchmark` compares them
all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from imagic_lab.methods.attention import prompt_to_prompt
from imagic_lab.methods.inversion import NULL_LR, NULL_STEPS, ddim_inversion, negative_prompt_inversion
from imagic_lab.methods.method import Draw, Method
from imagic_lab.methods.others import COMMUNITY, COMMUNITY_FILE, LEDITS_THRESHOLD, community, ledits, sdedit
from imagic_lab.methods.own_noise import ddcm, edit_friendly, h_edit
from imagic_lab.methods.tuning import (
    PAPER,
    drawn_by,
    imagic,
    own_noise_imagic,
    pair_in_words,
    paper_imagic,
    text_alone,
    without_stage_1,
    without_stage_2,
)
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.unets import LoRA

IMAGIC, OWN = "Kavar et al. 2022, arXiv 2210.09276", "Huberman-Spiegelglas et al. 2023, arXiv 2304.06140"
HERTZ, MIYAKE = "Hertz et al. 2022, arXiv 2208.01626", "Miyake et al. 2023, arXiv 2305.16807"
MOKADY, JU = "Mokady et al. 2022, arXiv 2211.09794", "Ju et al. 2023, arXiv 2310.01506"
HU = "Hu et al. 2021, arXiv 2106.09685"
FIRST, (FULL, LOW_RANK) = stage1_embedding.DEFAULTS, (stage2_finetuning.DEFAULTS[name] for name in ("full", "lora"))
REBUILDING = LoRA(4, ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"))  # see data/experiments/lora.json

# Knobs. Each has five values to try, so that every method gets the same budget.
WAY_VALUES = (0.0, 0.8, 1.0, 1.25, 1.5)
ON_THE_WAY = {  # see `tuning.pair_at`
    "knob": "way from the input to the text alone", "values": WAY_VALUES, "largest": 2.0, "say": pair_in_words
}  # fmt: skip
ETA = {"knob": "η", "values": (0.0, 0.6, 0.8, 1.0, 1.2), "largest": 10.0}
STRENGTH = {"knob": "share λ of the fine-tuning", "values": (1.0, 0.75, 0.5, 0.35, 0.2), "largest": 2.0}
GUIDANCE = {"knob": "guidance scale", "values": (0.0, 1.0, 2.0, 4.0, 7.0), "largest": 30.0}
TOWARDS_TEXT = GUIDANCE | {"values": (1.0, 1.5, 2.0, 3.0, 5.0), "rebuilds": False}
FROM_CAPTION = TOWARDS_TEXT | {"caption": True}
OLD_MAPS = {"knob": "share of steps with the old maps", "values": (1.0, 0.8, 0.6, 0.4, 0.2), "largest": 1.0}
OLD_MAPS |= {"caption": True, "seeded": False, "rebuilds": False}
NOISING = {"knob": "strength", "values": (0.4, 0.5, 0.6, 0.7, 0.8), "largest": 1.0, "rebuilds": False}
EDITING = {"knob": "edit guidance scale", "values": (0.0, 1.0, 2.0, 4.0, 8.0), "largest": 30.0}

BOTH, STAGE_1, STAGE_2 = ({"trains": True, "settings": ways} for ways in ((FIRST, FULL), (FIRST,), (FULL,)))
LORA_TOO, THE_PAPERS = ({"trains": True, "settings": ways} for ways in ((FIRST, LOW_RANK), (PAPER,)))
NULL = ({"lr": NULL_LR, "steps": NULL_STEPS},)
WITH_LORA, BY_DDIM = partial(imagic, second={"method": REBUILDING}), partial(drawn_by, imagic, sampled="ddim")
OPTIMISED, NO_TEXT = (partial(prompt_to_prompt, empty=empty) for empty in ("optimised", "none"))
UNTUNED = partial(own_noise_imagic, tune=False)

METHODS = {
    "imagic": Method("Imagic", IMAGIC, imagic, **ON_THE_WAY, **BOTH),
    "imagic-paper": Method("Imagic, the paper's schedule", IMAGIC, paper_imagic, **ON_THE_WAY, **THE_PAPERS),
    "imagic-lora": Method("Imagic with a LoRA", f"{IMAGIC}; {HU}", WITH_LORA, **ON_THE_WAY, **LORA_TOO),
    "imagic-own": Method(
        "Imagic from its own noise", f"{IMAGIC}; {OWN}", own_noise_imagic, **STRENGTH, **BOTH, rebuilds=False
    ),
    "own-no-stage-2": Method("Its own noise, without stage 2", f"{IMAGIC}; {OWN}", UNTUNED, **TOWARDS_TEXT, **STAGE_1),
    "imagic-ddim": Method("Imagic by DDIM", IMAGIC, BY_DDIM, **ON_THE_WAY, **BOTH),
    "no-stage-1": Method("Imagic without stage 1", IMAGIC, without_stage_1, **STRENGTH, **STAGE_2),
    "no-stage-2": Method("Imagic without stage 2", IMAGIC, without_stage_2, **ETA, **STAGE_1),
    "sdedit": Method("SDEdit", "Meng et al. 2021, arXiv 2108.01073", sdedit, **NOISING),
    "ddim-inversion": Method(
        "DDIM inversion", "Song et al. 2020, arXiv 2010.02502", ddim_inversion, **GUIDANCE, seeded=False
    ),
    "npi": Method(
        "Negative-prompt inversion", MIYAKE, negative_prompt_inversion, **GUIDANCE, caption=True, seeded=False
    ),
    "p2p": Method("Prompt-to-prompt", f"{HERTZ}; {MIYAKE}", prompt_to_prompt, **OLD_MAPS),
    "null-text": Method("Prompt-to-prompt, null-text", f"{HERTZ}; {MOKADY}", OPTIMISED, **OLD_MAPS, settings=NULL),
    "pnp-inversion": Method("Prompt-to-prompt, PnP inversion", f"{HERTZ}; {JU}", NO_TEXT, **OLD_MAPS),
    "edit-friendly": Method("Edit-friendly DDPM inversion", OWN, edit_friendly, **FROM_CAPTION),
    "h-edit": Method("h-Edit-R", "Nguyen et al. 2025, arXiv 2503.02187", h_edit, **FROM_CAPTION),
    "ddcm": Method("InfEdit's DDCM", "Xu et al. 2023, arXiv 2312.04965", ddcm, **FROM_CAPTION),
    "ledits": Method(
        "LEDITS++", "Brack et al. 2023, arXiv 2311.16711", ledits, **EDITING, settings=(LEDITS_THRESHOLD,)
    ),
    "text": Method(
        "The text alone",
        "Ho & Salimans 2022, arXiv 2207.12598",
        text_alone,
        **GUIDANCE | {"values": (1.0, 2.0, 3.0, 5.0, 7.5)},
        rebuilds=False,
    ),
}


def community_methods(path: str | Path) -> dict[str, Method]:
    """Return two entries for diffusers' community pipeline, from a copy of its file: one with steps and rates that suit
    the model, and one unchanged, whose alpha is 1.2 by default."""
    paper, alpha = f"{IMAGIC}; diffusers, {COMMUNITY_FILE}", ETA | {"knob": "alpha"}
    tuned, plain = (partial(community, path=path, as_it_comes=plain) for plain in (False, True))
    return {
        "community": Method("Community Imagic, tuned", paper, tuned, **alpha, settings=(COMMUNITY,)),
        "community-as-it-comes": Method("Community Imagic as it comes", paper, plain, **alpha),
    }


__all__ = ["METHODS", "PAPER", "Draw", "Method", "community_methods"]
