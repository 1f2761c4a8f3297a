"""Answers to the exercises: each check prints whether an answer is right, or gives a hint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from imagic_lib.pictures import rmse


def attempted(answer) -> bool:
    """False, and a word about it, for an exercise that is still as it was: `...` or None."""
    if answer is None or answer is ...:
        print("not attempted yet: put your answer in the place of the three dots")
        return False
    return True


def near(answer, value: float, within: float) -> bool:
    """Is the answer this number, up to a little? False for what is no number."""
    return all_near([answer], [value], within)


def all_near(answers, values: Sequence[float], within: float) -> bool:
    """Are the answers as many numbers as the values, and each near its own? False for what are no numbers."""
    try:
        given = [float(answer) for answer in answers]
    except (TypeError, ValueError):
        return False
    return len(given) == len(values) and all(abs(a - b) < within for a, b in zip(given, values, strict=True))


def verdict(right: bool, praise: str, hint: str) -> None:
    print(f"right: {praise}" if right else f"not yet: {hint}")


def check_noised(answer: Callable, alphas: Tensor) -> None:
    """Notebook 01: answer(z, noise, t) is z_t = sqrt(ᾱ_t) z + sqrt(1 - ᾱ_t) ε."""
    generator = torch.Generator().manual_seed(7)
    z, noise = torch.randn(2, 1, 4, 16, 16, generator=generator)
    if not attempted(given := answer(z, noise, 300)):
        return
    expected = alphas[300].sqrt() * z + (1 - alphas[300]).sqrt() * noise
    right = torch.is_tensor(given) and given.shape == expected.shape and torch.allclose(given, expected, atol=1e-5)
    verdict(right, "that is the forward process", "mind the square roots: the *variances* ᾱ and 1 - ᾱ add up to 1")


def check_equal_weights(answer: int, alphas: Tensor) -> None:
    """Notebook 01: the time at which ᾱ_t is nearest to one half."""
    if attempted(answer):
        middle = int((alphas - 0.5).abs().argmin())
        verdict(
            near(answer, middle, 1.5), f"ᾱ is {alphas[middle]:.2f} there", "the weights are equal where ᾱ_t = 1 - ᾱ_t"
        )


def check_latent_count(answer: int) -> None:
    """Notebook 01: Stable Diffusion 1.4's latents of a 512x512 picture."""
    if attempted(answer):
        verdict(answer == 16384, "64 · 64 places of 4 numbers", "512 / 8 places a side, 4 numbers at each")


def check_embedding_size(answer: int) -> None:
    """Notebook 02: how many numbers stage 1 optimises for Stable Diffusion 1.4."""
    if attempted(answer):
        verdict(answer == 59136, "77 rows of 768 numbers", "as many rows as here, 77, and 768 numbers in each")


def check_stop_at(answer: Callable) -> None:
    """Notebook 02: answer(steps, losses, share) is the first step with that share of the progress made."""
    steps, losses = [0, 10, 20, 30, 40], [1.0, 0.5, 0.3, 0.2, 0.25]
    if attempted(answer(steps, losses, 0.9)):
        right = (answer(steps, losses, 0.9), answer(steps, losses, 0.5)) == (30, 10)
        hint = "all progress is first minus smallest; find the first loss that is not above first - share * progress"
        verdict(right, "what comes after that step brings little", hint)


def check_better_start(answer: str) -> None:
    """Notebook 02: from where stage 1 gets further in a few steps."""
    if attempted(answer):
        verdict(answer == "true caption", "it starts nearer", "compare the last probe losses of both runs once more")


def check_psnr(answer: Callable) -> None:
    """Notebook 03: answer(a, b) is the PSNR in dB of two arrays in [0, 1]."""
    a, b = torch.zeros(4, 4), torch.full((4, 4), 0.1)
    if attempted(given := answer(a, b)):
        verdict(near(given, 20, 1e-3), "a tenth off everywhere is 20 dB", "zeros against 0.1 must give 20 dB")


def check_adam_memory(answer: float) -> None:
    """Notebook 03: GiB for weights, gradients and Adam's moments of Stable Diffusion 1.4's UNet."""
    if attempted(answer):
        verdict(near(answer, 12.8, 0.1), "12.8 GiB before any activation", "16 bytes a weight; 1 GiB is 2**30 bytes")


def check_beyond(answer: float) -> None:
    """Notebook 04: the η of 2 e_opt - e_tgt."""
    if attempted(answer):
        verdict(answer == -1, "one step beyond e_opt, away from the text", "compare with η e_tgt + (1 - η) e_opt")


def check_turning_point(answer: Callable) -> None:
    """Notebook 04: answer(etas, poses) is the smallest η from which on all poses are 'jumping', or None."""
    etas = [0.0, 0.2, 0.4, 0.6]
    if attempted(answer(etas, ["sitting", "jumping", "jumping", "jumping"])):
        relapse = answer(etas, ["sitting", "jumping", "sitting", "jumping"])
        never = answer(etas, ["sitting"] * 4)
        right = answer(etas, ["sitting", "jumping", "jumping", "jumping"]) == 0.2 and relapse == 0.6 and never is None
        verdict(right, "relapses and failures included", "a jump that is lost again does not count; no jump is None")


def check_shy_edit(answer: str) -> None:
    """Notebook 04: what to try first when nothing changes up to η = 1."""
    if attempted(answer):
        hint = "eight seeds agree, so it is not the noise; and one sampling is cheaper than a training"
        verdict(answer in ("smaller λ", "smaller lambda"), "it costs one sampling; then an η a little above 1", hint)


def check_nearest(answer: Callable) -> None:
    """Notebook 06: answer(pictures, truth) is the index of the picture with the smallest distance to the truth."""
    greys = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 90, 140, 255)]
    truth = Image.new("RGB", (8, 8), (100,) * 3)
    if attempted(given := answer(greys, truth)):
        right = given == 1 and answer(greys[::-1], truth) == 2
        verdict(right, "and was it your choice by eye?", "take the *index* of the smallest rmse(picture, truth)")


def check_needed_to_sample(answer: str) -> None:
    """Notebook 06: what a saved edit needs for new pictures without training, as letters."""
    if attempted(answer):
        hint = "ē is made of two embeddings, and drawn by θ + (θ* - θ): what trained them is no longer needed"
        verdict(sorted(str(answer)) == list("bcdf"), "both ends of the line, and both parts of the weights", hint)


def check_edit_size(answer: tuple[float, float]) -> None:
    """Notebook 06: the size of a saved edit of Stable Diffusion 1.4: full in GB, LoRA in MB."""
    if attempted(answer):
        hint = "weights times 4 bytes, in units of 1e9 and of 1e6 bytes"
        verdict(all_near(answer, (3.44, 1.59), 0.05), "the LoRA is more than 2,000 times smaller", hint)


def check_unet_calls(answer: int) -> None:
    """Notebook 05: latents that pass the UNet for eight seeds, 30 steps, with guidance."""
    if attempted(answer):
        verdict(answer == 480, "guidance doubles the bill", "seeds times steps, and guidance asks twice at each")


def check_z_0_from_v(answer: Callable) -> None:
    """Notebook 05: answer(z_t, v, a_t) is z_0 = sqrt(ᾱ_t) z_t - sqrt(1 - ᾱ_t) v."""
    generator = torch.Generator().manual_seed(7)
    z_0, noise = torch.randn(2, 1, 4, 16, 16, generator=generator)
    a = torch.tensor(0.3)
    z_t, v = a.sqrt() * z_0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * z_0
    if attempted(given := answer(z_t, v, a)):
        right = torch.is_tensor(given) and given.shape == z_0.shape and torch.allclose(given, z_0, atol=1e-5)
        verdict(right, "no division: v behaves well at every time", "the two multiples must cancel the noise")


def check_last_swap(answer: int, swaps: Sequence[int], pictures: Sequence[Image.Image]) -> None:
    """Notebook 05: the last swap whose picture is nearer to the first picture than to the last one."""
    if attempted(answer):
        pairs = zip(swaps, pictures, strict=True)
        near = [k for k, picture in pairs if rmse(picture, pictures[0]) < rmse(picture, pictures[-1])]
        verdict(answer == near[-1], "after that the input wins", "compare rmse to the first and to the last picture")


def check_min_snr_weight(answer: Callable) -> None:
    """Notebook 08: answer(snr) is min(1, 5 / snr)."""
    snr = torch.tensor([0.01, 1.0, 5.0, 20.0, 1000.0])
    if attempted(given := answer(snr)):
        right = torch.is_tensor(given) and torch.allclose(given, (5 / snr).clamp(max=1), atol=1e-6)
        verdict(right, "only the nearly noiseless times are held back", "5 divided by the SNR, and never more than 1")


def check_scaling_factor(answer: float, raw: Tensor) -> None:
    """Notebook 08: the factor that gives these latents a standard deviation of 1."""
    if attempted(answer):
        factor = 1 / raw.std().item()
        right = near(answer, factor, 0.01 * factor)
        verdict(right, "then they spread as the noise does", "times this factor the standard deviation must be 1")


def check_chance_loss(answer: float, batch: int) -> None:
    """Notebook 08: the contrastive loss of a CLIP that guesses among `batch` captions."""
    if attempted(answer):
        verdict(
            near(answer, torch.tensor(float(batch)).log().item(), 0.01),
            "its curve begins lower, for in those first 50 steps it has already learned something",
            "the cross-entropy of a guess with probability 1 / batch, in nats",
        )


def check_text_style(answer: int) -> None:
    """Notebook 07: which text suits Imagic."""
    if attempted(answer):
        hint = "e_tgt is compared with a picture, not obeyed as an order: describe the picture"
        verdict(answer == 2, "a description of the finished picture", hint)


def check_eight_bits(answer: float) -> None:
    """Notebook 07: what an 8-bit Adam saves for Stable Diffusion 1.4's UNet, in GiB."""
    if attempted(answer):
        verdict(near(answer, 4.8, 0.1), "a third of a T4", "6 bytes a weight less; 1 GiB is 2**30 bytes")


def check_naive_value(answer: float) -> None:
    """Notebook 09: the naive loss of two classes with the 'probabilities' (-1, 1) at the logits (-100, 0)."""
    if attempted(answer):
        verdict(
            near(answer, -100, 0.01),
            "and at -1000 it is ten times as 'good'",
            "with targets (-1, 1) the loss is the first logit itself",
        )


def check_linear_head(answer: Callable) -> None:
    """Notebook 09: answer(weight, bias, c, variance) is (W_k, b_k), the layer of the Gaussian around w·x + b."""
    generator = torch.Generator().manual_seed(7)
    weight, x, c = torch.randn(5, generator=generator), torch.randn(9, 5, generator=generator), torch.arange(-3, 4) / 2
    if not attempted(given := answer(weight, 0.3, c, 0.25)):
        return
    expected = (-(c - (x @ weight + 0.3)[:, None]).square() / 0.5).softmax(dim=-1)
    try:
        found = (x @ given[0] + given[1]).softmax(dim=-1)
        right = found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4)
    except (TypeError, IndexError, RuntimeError):
        right = False
    hint = "expand -(c - ε̂)² / 2σ² with ε̂ = w·x + b; W has shape (inputs, bins); what holds no c may be left out"
    verdict(right, "linear in the features, though a square stood there", hint)


def check_paired(answer: Callable) -> None:
    """Notebook 09: answer(ours, mse) is (mean, standard error) of the paired differences."""
    ours, mse = [30.5, 24.0, 28.0, 33.5], [30.0, 23.0, 28.0, 32.0]
    if attempted(given := answer(ours, mse)):
        hint = "subtract pair by pair first; the error is the differences' std (n - 1) / √n"
        praise = "unpaired, the same numbers would have drowned in the spread of the pictures"
        verdict(all_near(given, (0.75, 0.3227), 1e-3), praise, hint)


def check_lora_count(answer: Callable) -> None:
    """Notebook 10: answer(rank, out, inside) is the number of trained numbers of one adapted layer."""
    if attempted(given := answer(4, 320, 768)):
        right = given == 4352 and answer(1, 10, 20) == 30
        verdict(right, "linear in the rank", "A is (rank, inside) and B is (out, rank)")


def check_break_even_rank(answer: int) -> None:
    """Notebook 10: the first rank at which A and B have more numbers than a W of 320 x 768."""
    if attempted(answer):
        verdict(answer == 226, "from there on LoRA is the larger one", "when is r (320 + 768) above 320 · 768?")


def check_merged_weight(answer: Callable) -> None:
    """Notebook 10: answer(W, A, B, alpha) is W + (alpha / rank) B A."""
    generator = torch.Generator().manual_seed(7)
    W, A, B = (torch.randn(*shape, generator=generator) for shape in ((5, 3), (2, 3), (5, 2)))
    if attempted(given := answer(W, A, B, 6)):
        right = torch.is_tensor(given) and given.shape == W.shape and torch.allclose(given, W + 3 * B @ A, atol=1e-5)
        verdict(right, "and the adapter can be thrown away", "the rank is the number of A's rows; B comes before A")


def check_cosine(answer: Callable) -> None:
    """Notebook 11: answer(a, b) is the cosine of the angle between two vectors."""
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    if attempted(given := answer(a, b)):
        verdict(near(given, 0.8, 1e-4), "their lengths do not count", "divide a · b by both lengths")


def check_edits_needed(answer: float) -> None:
    """Notebook 11: so many edits narrow the interval of a share of 80 % to ± 5 points."""
    if attempted(answer):
        hint = "solve 1.96 √(p (1 - p) / n) = 0.05 for n"
        verdict(near(answer, 246, 2), "that is four times ToyEdit's 60", hint)


def check_best_of(answer: Callable) -> None:
    """Notebook 11: answer(p, n) is the probability that at least one of n independent seeds succeeds."""
    if attempted(given := answer(0.5, 3)):
        right = near(given, 0.875, 1e-6) and near(answer(0.2, 8), 1 - 0.8**8, 1e-6)
        verdict(right, "that is what picking buys", "what is the probability that all of them fail?")
