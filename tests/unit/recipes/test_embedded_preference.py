# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tests of the review task: gold scores computed by hand, the generator, the shipped base, and the proxy's pairs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.embedded_preference import BASE_DIR, gold_reward, gold_score, make_corpus, make_prompts
from recipes.embedded_preference.gold import PEAK, RAW_MEAN, RAW_STD, GoldParts, gold_parts
from recipes.embedded_preference.language import ASPECTS, MAX_WORDS, SPLITS, STYLES, parse_prompt, vocabulary
from recipes.embedded_preference.proxy import label_pairs, make_pairs, sample_reviews
from recipes.embedded_preference.tokenizer import build_tokenizer
from recipes.embedded_preference.train_base import TrainBaseArguments, main

CAFE = "ann reviews the cafe , brief , on soup and staff :"


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(BASE_DIR).eval(), AutoTokenizer.from_pretrained(BASE_DIR)


class TestGold:
    @pytest.mark.parametrize(
        ("review", "raw"),
        [
            # praise 2 + 1.5 = 3.5, taste 3.5 - 12.25 / 10; two wanted aspects 1.6; 12 words
            (" the soup felt lovely , and the staff seemed very nice .", 3.875),
            # praise -1, half of it; one wanted aspect 0.8; two words short 0.3
            (" the soup felt not lovely .", 0.0),
            # two negations cancel: praise 2, taste 1.6; 0.8
            (" the soup felt not never lovely , we came on monday .", 2.4),
            # a negation ends with its clause: praise 1, taste 0.9; 1.6
            (" the soup felt not , the staff felt good .", 2.5),
            # a negated bad word praises: -2 x 1.5 x -0.5 = 1.5, taste 1.275; 0.8
            (" the soup felt hardly very awful , we came on monday .", 2.075),
            # a weak degree: praise 0.5, taste 0.475; 0.8
            (" the soup felt slightly good , we came on monday .", 1.275),
            # the second `good` adds nothing; two words repeated 0.8
            (" the soup felt good . the soup felt good .", 0.9),
            # the first degree scales, the second costs 0.5
            (" the soup felt very truly good , we came on monday .", 1.575),
            # the third emphasised clause costs 0.5; praise 4.5, taste 2.475; 0.8; five words too many 0.75
            (" the soup felt very good . the bread felt very nice . the menu felt very neat .", 2.025),
            # an aspect of another thing
            (" the plot felt good , we came on monday .", 0.5),
            # a neutral review of the thing, off what was asked for
            (" the bread felt round , we came on monday .", 0.0),
            # eight words short 1.2, and no period
            ("", -2.2),
            # 29 repeats, the length loss at its limit, no period
            (" soup" * 30, 0.8 - 29 * 0.4 - 1.5 - 1.0),
            # words from elsewhere count as words
            (" zebras fly over the moon at night .", 0.0),
        ],
    )
    def test_by_hand(self, review, raw):
        assert gold_parts(CAFE, review).raw == pytest.approx(raw)
        assert gold_score(CAFE, review) == pytest.approx((raw - RAW_MEAN) / RAW_STD)

    def test_praise_helps_up_to_its_peak(self):
        parts = GoldParts(praise=0.0, topic=0.0, repeats=0.0, emphasis=0.0, length=0.0, unfinished=0.0)
        curve = [replace(parts, praise=praise).raw for praise in (-2.0, 0.0, 2.0, PEAK, 8.0, 2 * PEAK)]
        assert curve == pytest.approx([-1.0, 0.0, 1.6, 2.5, 1.6, 0.0])

    def test_the_style_sets_the_length(self):
        review = " the soup felt good , we came on monday ."
        losses = {style: gold_parts(CAFE.replace("brief", style), review).length for style in STYLES}
        assert losses == pytest.approx({"brief": 0.0, "medium": 0.6, "detailed": 1.5})

    def test_the_name_does_not_matter(self):
        assert gold_score(CAFE, " the soup .") == gold_score(CAFE.replace("ann", "ben"), " the soup .")

    def test_as_a_reward_function(self):
        chat = [{"role": "assistant", "content": " the soup felt good ."}]
        text = gold_score(CAFE, " the soup felt good .")
        rewards = gold_reward(
            [CAFE, [{"role": "user", "content": CAFE}]], [" the soup felt good .", chat], extra=[1, 2]
        )
        assert rewards == [text, text]

    @pytest.mark.parametrize(
        "prompt", ["", "ann reviews the zoo , brief , on soup and staff :", CAFE.replace("soup", "plot")]
    )
    def test_other_prompts_are_refused(self, prompt):
        with pytest.raises(
            ValueError, match=r"prompt must read '<name> reviews the <thing>.*two aspects of that thing"
        ):
            gold_score(prompt, " the soup .")


class TestLanguage:
    def test_vocabulary_is_small_and_one_token_a_word(self):
        words = vocabulary()
        assert len(set(words)) == len(words) <= 150
        assert all(word in words for aspects in ASPECTS.values() for word in aspects)
        corpus = make_corpus(500, seed=1)
        tokenizer = build_tokenizer()
        for prompt, response in zip(corpus["prompt"], corpus["response"], strict=True):
            ids = tokenizer(prompt).input_ids
            both = tokenizer(prompt + response).input_ids
            assert both == ids + tokenizer(response, add_special_tokens=False).input_ids
            assert len(both) == 1 + len((prompt + response).split())
            assert tokenizer.unk_token_id not in both
            assert tokenizer.decode(both, skip_special_tokens=True) == prompt + response

    def test_corpus_is_possible_but_not_typical_in_quality(self):
        corpus = make_corpus(2000, seed=2)
        golds = torch.tensor([gold_score(p, r) for p, r in zip(corpus["prompt"], corpus["response"], strict=True)])
        assert abs(golds.mean()) < 0.2
        assert 0.8 < golds.std() < 1.3
        assert 0.001 < (golds > 2).float().mean() < 0.05
        assert max(len(response.split()) for response in corpus["response"]) <= MAX_WORDS
        praise = [gold_parts(p, r).praise for p, r in zip(corpus["prompt"], corpus["response"], strict=True)]
        assert sum(value > PEAK for value in praise) < 0.02 * len(praise)

    def test_splits_share_no_prompt_and_every_prompt_parses(self):
        prompts = {split: make_prompts(300, seed=3, split=split) for split in SPLITS}
        assert len(set().union(*prompts.values())) == 900
        assert all(parse_prompt(prompt).prompt == prompt for rows in prompts.values() for prompt in rows)
        trained = set(make_corpus(2000, seed=3)["prompt"])
        assert trained.isdisjoint(prompts["test"]) and trained.isdisjoint(prompts["validation"])

    def test_same_seed_same_rows(self):
        assert make_corpus(20, seed=7).to_list() == make_corpus(20, seed=7).to_list()
        assert make_corpus(20, seed=7).to_list() != make_corpus(20, seed=8).to_list()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
            make_prompts(1, split="dev")
        with pytest.raises(ValueError, match=r"n must be between 1 and \d+, the prompts of split 'test'; got 9999"):
            make_prompts(9999, split="test")
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            make_corpus(0)


class TestShippedBase:
    def test_fits_in_four_megabytes_and_has_the_built_tokenizer(self, base):
        model, tokenizer = base
        built = build_tokenizer()
        assert sum(path.stat().st_size for path in BASE_DIR.iterdir()) < 4e6
        assert (tokenizer.get_vocab(), tokenizer.chat_template) == (built.get_vocab(), built.chat_template)
        assert model.config.vocab_size == len(tokenizer)
        assert 500_000 < model.num_parameters() < 900_000

    def test_samples_are_standardised_and_leave_room(self, base):
        prompts = make_prompts(60, seed=5, split="test")
        reviews = sample_reviews(*base, prompts, num_samples=16, seed=0)
        golds = torch.tensor([gold_reward([p] * 16, texts) for p, texts in zip(prompts, reviews, strict=True)])
        assert abs(golds.mean()) < 0.15
        assert 0.85 < golds.std() < 1.15
        assert golds.std(dim=1).mean() > 0.8, "reviews of one prompt have to differ"
        best = golds.max(dim=1).values.mean()
        assert 1.4 < best < 2.1
        optimum = (PEAK / 2 + 1.6 - RAW_MEAN) / RAW_STD
        assert optimum - best > 0.8


class TestPairs:
    def test_labels_follow_gold_with_the_noise_asked_for(self):
        good, bad = " the soup felt good , we came on monday .", " the soup felt dull , we came on monday ."
        prompts, reviews = [CAFE] * 2000, [[good, bad]] * 2000
        gap = gold_score(CAFE, good) - gold_score(CAFE, bad)
        for temperature in (0.5, 2.0):
            pairs = label_pairs(prompts, reviews, seed=0, label_temperature=temperature)
            agree = sum(chosen == good for chosen in pairs["chosen"]) / len(pairs)
            assert agree == pytest.approx(1 / (1 + math.exp(-gap / temperature)), abs=0.03)

    def test_all_pairs_of_different_texts(self):
        pairs = label_pairs([CAFE], [[" a", " b", " b", " c"]], seed=0)
        assert len(pairs) == 5
        assert all(row["chosen"] != row["rejected"] for row in pairs)

    def test_same_seed_same_pairs(self, base):
        first = make_pairs(6, num_samples=3, seed=1, model=base[0])
        assert first.to_list() == make_pairs(6, num_samples=3, seed=1).to_list()
        assert set(first["prompt"]) <= set(make_prompts(6, seed=1))

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="num_samples must be at least 2"):
            make_pairs(1, num_samples=1)
        with pytest.raises(ValueError, match="label_temperature must be positive; got 0"):
            label_pairs([CAFE], [["a", "b"]], seed=0, label_temperature=0)


def test_the_base_trains_the_same_twice(tmp_path: Path):
    args = TrainBaseArguments(output_dir=str(tmp_path / "a"), num_examples=64, batch_size=16)
    main(args)
    main(replace(args, output_dir=str(tmp_path / "b")))
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "a").pad_token == "<pad>"
