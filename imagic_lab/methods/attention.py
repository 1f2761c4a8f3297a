"""Prompt-to-prompt: draw the new picture with the attention maps of the old one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import partial

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from imagic_lab.methods.inversion import draw_from, invert, null_texts, with_steps
from imagic_lab.methods.method import Draw
from imagic_lib.models import encode_text, settings_for
from imagic_lib.stage4_inference import DEFAULTS, denoiser, embedding_of_negative, guided, sampler

# Hertz et al. replace cross-attention in the first 80 % of the steps and self-attention in the first 40 %, which is
# half as many, and only where a map has at most 16 x 16 places. In the embedded model all maps are smaller than that.
SELF_PART, LARGEST_SELF = 0.5, 16 * 16
Change = Callable[[Attention, Tensor], Tensor]  # change(layer, maps) -> maps, (samples x heads, places, keys)


def prompt_to_prompt(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str, *, empty: str = "caption"
) -> Draw:
    """Prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626) on the inverted picture.

    At every step the UNet also sees the old picture, from the path of the inversion. In the first `share` of the steps
    the attention maps of the old picture replace those of the new one. That share is the knob: 1 keeps the layout of
    the input, 0 is plain sampling. empty: the embedding from which guidance leads away. "caption" is that of the
    input's caption (Miyake et al. 2023); "optimised" is found for each step (Mokady et al. 2022; slower); "none" is the
    empty text's, and then only the old picture follows the path (PnP inversion, Ju et al. 2023, arXiv 2310.01506).
    """
    e_tgt, e_src = encode_text(pipe, text), encode_text(pipe, source)
    guidance = settings_for(pipe, DEFAULTS)["guidance_scale"]
    path, taken = invert(pipe, image, e_src), aligned(pipe.tokenizer, source, text).to(pipe.unet.device)
    times = with_steps(pipe, sampler(pipe, "ddim")).timesteps.tolist()
    if empty == "optimised":
        empties = null_texts(pipe, path, e_src, guidance)
    else:
        empties = [e_src if empty == "caption" else embedding_of_negative(pipe)] * len(times)

    def draw(share: float, seeds: Sequence[int]) -> list[Image.Image]:
        def guess(z: Tensor, t: Tensor) -> Tensor:
            k = times.index(int(t))
            if k >= share * len(times):
                return denoiser(pipe.unet, e_tgt, empties[k], guidance)(z, t)
            change = partial(take_maps, taken=taken, own_self=k >= SELF_PART * share * len(times))
            with changed_attention(pipe.unet, change):
                three = torch.cat([path[-1 - k], z, z]), t, torch.cat([e_src, empties[k], e_tgt])
                _, answer_empty, answer_text = pipe.unet(*three).sample.chunk(3)
            return guided(answer_text, answer_empty, guidance)

        return [draw_from(pipe, path[-1], guess)] * len(seeds)

    return draw


def take_maps(layer: Attention, maps: Tensor, *, taken: Tensor, own_self: bool) -> Tensor:
    """Give the last of three samples (old picture, new without text, new with text) the attention maps of the first.

    Cross-attention: M'[:, j] = M_old[:, taken[j]] for each token j that has a partner in the old text; a new token
    keeps its map. Self-attention: M' = M_old, unless own_self. maps: (3 x heads, places, keys), each row sums to 1.
    """
    old, empty, new = maps.chunk(3)
    if layer.is_cross_attention:
        new = torch.where(taken >= 0, old[..., taken.clamp(min=0)], new)
    elif not own_self and maps.shape[1] <= LARGEST_SELF:
        new = old
    return torch.cat([old, empty, new])


def aligned(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> Tensor:
    """For each token of the target, return the position of its partner in the source, or -1 if it is new: (tokens,).

    Partners are equal tokens in the same order. Where tokens are replaced by the same number of others ('sitting' by
    'jumping'), each is paired with the one it replaces. Hertz et al. call this a word swap, and the rest a refinement.
    """
    given = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    old, new = (tokenizer(text, **given).input_ids for text in (source, target))
    taken = torch.full((len(new),), -1)
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and b - a == d - c):
            taken[c:d] = torch.arange(a, b)
    return taken


@contextmanager
def changed_attention(unet: UNet2DConditionModel, change: Change):
    """A context in which every attention layer of the UNet uses change(layer, maps) instead of its maps."""
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(AttnProcessor())  # the faster processors never compute the maps
        layer.get_attention_scores = partial(changed_scores, layer, change)
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
            del layer.get_attention_scores


def changed_scores(layer: Attention, change: Change, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return change(layer, softmax(Q Kᵀ / √d))."""
    return change(layer, type(layer).get_attention_scores(layer, query, key, mask))
