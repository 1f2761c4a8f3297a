import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from imagic_lab.toyworld import captions
from imagic_lab.toyworld.clip import CONTEXT, END, START, tokenize
from imagic_lib.models import encode_text

PHRASES = [
    *(form for values in captions.PHRASES.values() for forms in values.values() for form in forms),
    *captions.OPENINGS, "is", "that is", "an",
]  # fmt: skip
WORDS = sorted({word for phrase in PHRASES for word in phrase.split()})
PLAIN = "a brown dog sitting on the grass"


@pytest.fixture(scope="module")
def tokenizer(pipe) -> CLIPTokenizer:
    return pipe.tokenizer


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenize(tokenizer, [text])[0].tolist()


# ------------------------------------------------------------------------------------------ any text


# CLIP's own tokenizer reads its marks as marks, too, where a text contains them
@given(text=st.text(max_size=120).filter(lambda text: START not in text and END not in text))
@settings(max_examples=150, deadline=None)
def test_any_text_has_ids_laid_out_as_in_clip(tokenizer, text):
    ids = ids_of(tokenizer, text)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert len(ids) == CONTEXT == 77
    assert ids[0] == start and start not in ids[1:]
    first_end = ids.index(end)  # an unknown token would be the end id too, and cut the text here
    assert set(ids[first_end:]) == {end}
    assert all(0 <= i < start for i in ids[1:first_end])
    if text.strip():
        assert first_end > 1, "a text that shows something must not be read as the empty one"


@given(word=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_unknown_words_fall_apart_into_known_pieces_and_come_back_whole(tokenizer, word):
    pieces = tokenizer(word, add_special_tokens=False).input_ids
    assert pieces and tokenizer.unk_token_id not in pieces
    # letters that lower-casing or Unicode composition changes come back changed
    expected = tokenizer.backend_tokenizer.normalizer.normalize_str(word)
    assert tokenizer.decode(pieces).replace(" ", "") == expected.replace(" ", "")


def test_the_empty_text_is_start_and_ends(tokenizer):
    assert ids_of(tokenizer, "") == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 76


def test_padding_is_the_end_id_and_the_end_id_is_the_highest(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1  # CLIP pools there
    assert tokenizer.bos_token_id == len(tokenizer) - 2
    assert (tokenizer.bos_token, tokenizer.eos_token) == (START, END)
    assert tokenizer.model_max_length == CONTEXT


def test_a_long_text_is_cut_to_77_with_the_end_kept(tokenizer):
    ids = ids_of(tokenizer, "dog " * 200)
    assert len(ids) == 77 and ids[-1] == tokenizer.eos_token_id
    assert len(set(ids[1:-1])) == 1


# ------------------------------------------------------------------------------- the captions' words


@pytest.mark.parametrize("word", WORDS)
def test_every_word_of_the_captions_is_one_token(tokenizer, word):
    assert tokenizer.tokenize(word) == [word + "</w>"]


def test_no_two_words_share_a_token(tokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in WORDS]
    assert len(set(ids)) == len(WORDS)


def test_a_caption_has_one_token_a_word_and_one_a_comma(tokenizer):
    ids = tokenizer("on the grass, a brown dog", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        f"{t}</w>" for t in ("on", "the", "grass", ",", "a", "brown", "dog")
    ]


def test_case_and_spaces_do_not_matter(tokenizer):
    assert ids_of(tokenizer, "  A Brown\tDOG ") == ids_of(tokenizer, "a brown dog")


def test_the_order_of_words_does_matter(tokenizer):
    assert ids_of(tokenizer, "a dog on the grass") != ids_of(tokenizer, "on the grass a dog")


def test_an_unknown_word_is_split(tokenizer):
    assert len(tokenizer.tokenize("xylophone")) > 1


def test_a_saved_tokenizer_reads_as_the_one_that_was_saved(tokenizer, model_folder):
    loaded = CLIPTokenizer.from_pretrained(model_folder / "tokenizer")
    for text in (PLAIN, "Zürich, 東京 🐶!", ""):
        assert ids_of(loaded, text) == ids_of(tokenizer, text)


# --------------------------------------------------------------------------------------- encode_text


@pytest.mark.parametrize("text", ["", "   ", "\n\t", None])
def test_an_empty_text_is_refused_in_one_sentence(pipe, text):
    with pytest.raises(ValueError, match=r"^the text is empty: say what [^\n]*$"):
        encode_text(pipe, text)


def test_a_caption_is_encoded_without_a_warning_and_without_gradients(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding = encode_text(pipe, PLAIN)
    assert embedding.shape == (1, 77, pipe.unet.config.cross_attention_dim)
    assert not embedding.requires_grad
    assert torch.equal(embedding, encode_text(pipe, PLAIN))
    assert not torch.equal(embedding, encode_text(pipe, "a brown dog jumping on the grass"))


def test_the_text_is_encoded_as_diffusers_own_pipeline_does_it(pipe):
    theirs = pipe.encode_prompt(PLAIN, pipe.unet.device, 1, False)[0]
    assert torch.equal(encode_text(pipe, PLAIN), theirs)


def test_the_cut_of_a_long_text_is_told_word_for_word(pipe):
    kept, cut = " ".join(["dog"] * 75), "jumping in the snow"
    with pytest.warns(UserWarning, match=f"79 tokens .* reads 75: cut off is '{cut}'"):
        embedding = encode_text(pipe, f"{kept} {cut}")
    assert torch.equal(embedding, encode_text(pipe, kept))


def test_a_text_that_just_fits_is_not_called_long(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_text(pipe, " ".join(["dog"] * 75))


def test_words_that_the_embedded_model_never_saw_are_named_once_each(pipe):
    with pytest.warns(UserWarning, match="never saw 'zebra', 'xylophone': it knows dogs") as caught:
        embedding = encode_text(pipe, "A Zebra, a zebra on a xylophone!")
    assert len(caught) == 1
    assert embedding.shape == (1, 77, pipe.unet.config.cross_attention_dim)  # it is a warning, not a refusal
