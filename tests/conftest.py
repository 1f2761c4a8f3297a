"""Shared by many tests: a pipeline of small random parts, with the classes that tiny-sd has."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network, whatever the shell says
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import imagic_lib as imagic
from imagic_lab.toyworld import Scene, clip, dataset, unet
from tests.last_line import pytest_configure  # noqa: F401

WIDTH = 32  # of the text embedding
SCENES = 500  # so many captions hold every word at least once


@pytest.fixture(scope="session")
def pipe(tmp_path_factory) -> StableDiffusionPipeline:
    """An untrained `StableDiffusionPipeline` for 128x128 pictures; seeded. No test may change it."""
    tokenizer = clip.train_tokenizer(dataset.training_scenes(SCENES), tmp_path_factory.mktemp("tokenizer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,  # three halvings: factor 8
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=8,
                sample_size=128,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=WIDTH,
                    intermediate_size=2 * WIDTH,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    projection_dim=WIDTH,
                    max_position_embeddings=clip.CONTEXT,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(16, 32, 32),
                layers_per_block=1,
                attention_head_dim=4,
                cross_attention_dim=WIDTH,
                norm_num_groups=8,
            ),
            scheduler=unet.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def model_folder(pipe, tmp_path_factory) -> Path:
    """`pipe` in diffusers format on disk. No test may change it: copy it to damage it."""
    folder = tmp_path_factory.mktemp("model") / "small-sd"
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def image(pipe) -> torch.Tensor:
    return imagic.load_image(Scene.sample(5).render(), pipe)


@pytest.fixture(scope="session")
def e_tgt(pipe) -> torch.Tensor:
    return imagic.encode_text(pipe, "a brown dog jumping on the grass")
