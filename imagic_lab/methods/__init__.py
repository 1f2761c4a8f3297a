"""Ways to edit one picture by a text, each a function that fits on a slide, all behind one interface (`Method`).

`tuning` has Imagic and what is left of it without a stage, `inversion` and `attention` what starts from the noise
of the picture, `others` what diffusers brings. They are compared by `experiments.benchmark`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from imagic_lab.methods.attention import prompt_to_prompt
from imagic_lab.methods.inversion import NULL_LR, NULL_STEPS, ddim_inversion, negative_prompt_inversion
from imagic_lab.methods.method import Draw, Method
from imagic_lab.methods.others import COMMUNITY, COMMUNITY_FILE, LEDITS_THRESHOLD, community, ledits, sdedit
from imagic_lab.methods.tuning import (
    FAST,
    PAPER,
    fast_imagic,
    imagic,
    pair_in_words,
    paper_imagic,
    text_alone,
    without_stage_1,
    without_stage_2,
)
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.stage2_finetuning import LoRA

IMAGIC = "Kavar et al. 2022, arXiv 2210.09276"
ETA, ETAS = "η", (0.0, 0.6, 0.8, 1.0, 1.2)
WAY, WAYS = "way from the input to the text alone", (0.0, 0.8, 1.0, 1.25, 1.5)  # see `tuning.pair_at`
SCALE, SCALES = "share λ of the fine-tuning", (1.0, 0.75, 0.5, 0.35, 0.2)
GUIDANCE, GUIDANCES = "guidance scale", (0.0, 1.0, 2.0, 4.0, 7.0)
SHARE, SHARES = "share of steps with the old maps", (1.0, 0.8, 0.6, 0.4, 0.2)
FAR = 10.0  # η and alpha
STRONG = 30.0  # guidance
FIRST, FULL, LOW_RANK = (
    stage1_embedding.DEFAULTS,
    stage2_finetuning.DEFAULTS["full"],
    stage2_finetuning.DEFAULTS["lora"],
)
LORA = LoRA(4, ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"))  # these rebuild, see data/experiments/lora.json

# Each has five values of its knob to try: the same budget for all.
on_the_way = partial(Method, knob=WAY, values=WAYS, largest=2.0, say=pair_in_words)
METHODS = {
    "imagic": on_the_way("Imagic", IMAGIC, imagic, settings=(FIRST, FULL)),
    "imagic-fast": on_the_way("Imagic, few steps", IMAGIC, fast_imagic, settings=(FIRST, FULL, FAST)),
    "imagic-paper": on_the_way("Imagic, the paper's schedule", IMAGIC, paper_imagic, settings=(PAPER,)),
    "imagic-lora": on_the_way(
        "Imagic with a LoRA",
        f"{IMAGIC}; Hu et al. 2021, arXiv 2106.09685",
        partial(imagic, second={"method": LORA}),
        settings=(FIRST, LOW_RANK),
    ),
    "no-stage-1": Method(
        "Imagic without stage 1",
        IMAGIC,
        without_stage_1,
        SCALE,
        SCALES,
        2.0,
        settings=(FULL,),
    ),
    "no-stage-2": Method("Imagic without stage 2", IMAGIC, without_stage_2, ETA, ETAS, FAR, settings=(FIRST,)),
    "sdedit": Method(
        "SDEdit",
        "Meng et al. 2021, arXiv 2108.01073",
        sdedit,
        "strength",
        (0.4, 0.5, 0.6, 0.7, 0.8),
        1.0,
        rebuilds=False,
    ),
    "ddim-inversion": Method(
        "DDIM inversion",
        "Song et al. 2020, arXiv 2010.02502",
        ddim_inversion,
        GUIDANCE,
        GUIDANCES,
        STRONG,
        seeded=False,
    ),
    "npi": Method(
        "Negative-prompt inversion",
        "Miyake et al. 2023, arXiv 2305.16807",
        negative_prompt_inversion,
        GUIDANCE,
        GUIDANCES,
        STRONG,
        caption=True,
        seeded=False,
    ),
    "p2p": Method(
        "Prompt-to-prompt",
        "Hertz et al. 2022, arXiv 2208.01626; Miyake et al. 2023, arXiv 2305.16807",
        prompt_to_prompt,
        SHARE,
        SHARES,
        1.0,
        caption=True,
        seeded=False,
        rebuilds=False,
    ),
    "null-text": Method(
        "Prompt-to-prompt, null-text",
        "Hertz et al. 2022, arXiv 2208.01626; Mokady et al. 2022, arXiv 2211.09794",
        partial(prompt_to_prompt, null_text=True),
        SHARE,
        SHARES,
        1.0,
        caption=True,
        seeded=False,
        rebuilds=False,
        settings=({"lr": NULL_LR, "steps": NULL_STEPS},),
    ),
    "ledits": Method(
        "LEDITS++",
        "Brack et al. 2023, arXiv 2311.16711",
        ledits,
        "edit guidance scale",
        (0.0, 1.0, 2.0, 4.0, 8.0),
        STRONG,
        settings=(LEDITS_THRESHOLD,),
    ),
    "text": Method(
        "The text alone",
        "Ho & Salimans 2022, arXiv 2207.12598",
        text_alone,
        GUIDANCE,
        (1.0, 2.0, 3.0, 5.0, 7.5),
        STRONG,
        rebuilds=False,
    ),
}


def community_methods(path: str | Path) -> dict[str, Method]:
    """The two rows of diffusers' community pipeline, over a copy of its file: with steps and rates that suit the model,
    and as it comes, whose own alpha is 1.2."""
    paper = f"{IMAGIC}; diffusers, {COMMUNITY_FILE}"
    tuned, plain = (partial(community, path=path, as_it_comes=plain) for plain in (False, True))
    return {
        "community": Method("Community Imagic, tuned", paper, tuned, "alpha", ETAS, FAR, settings=(COMMUNITY,)),
        "community-as-it-comes": Method("Community Imagic as it comes", paper, plain, "alpha", ETAS, FAR),
    }


__all__ = ["FAST", "METHODS", "PAPER", "Draw", "Method", "community_methods"]
