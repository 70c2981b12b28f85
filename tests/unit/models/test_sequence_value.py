# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Values of whole responses: pooling, gradients, ensembles, artefacts, bad input."""

import json

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertModel

from tests.layouts import LAYOUTS, PAD, VOCAB, tiny_model
from vgf_llm.models import SequenceValue
from vgf_llm.models.sequence_value import CONFIG_NAME, HEAD_NAME


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows, prompts padded left, responses padded right: ids, attention and response mask."""
    ids = torch.tensor([[PAD, 5, 9, 4, 8, PAD], [7, 6, 11, 21, 3, 12]])
    response = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]])
    return ids, (ids != PAD).long(), response


def sequence_value(layout: str = "llama", num_members: int = 3, pooling: str = "mean") -> SequenceValue:
    torch.manual_seed(1)
    return SequenceValue(tiny_model(layout), num_members, pooling).eval()


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_does_not_matter_and_gradients_reach_the_response(layout: str, pooling: str) -> None:
    value = sequence_value(layout, pooling=pooling)
    ids, attention, response = batch()
    together = value.from_ids(ids, attention, response)
    alone = value.from_ids(ids[:1, 1:5], attention[:1, 1:5], response[:1, 1:5])
    assert together.shape == (2, 3)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    rows = value.embedding[ids].detach().requires_grad_()
    from_rows = value(rows, attention, response)
    torch.testing.assert_close(from_rows, together)
    gradient = torch.autograd.grad(from_rows.sum(), rows)[0]
    assert gradient[response.bool()].norm(dim=-1).min() > 0
    assert not gradient[attention == 0].any()


def test_pooling_is_the_mean_and_the_last_of_token_scores() -> None:
    ids, attention, response = batch()
    value = sequence_value()
    scores = value.token_scores(value.embed(ids), attention)
    mean = torch.stack([scores[0, 3:5].mean(0), scores[1, 3:6].mean(0)])
    torch.testing.assert_close(value.from_ids(ids, attention, response), mean)
    value.pooling = "last"
    torch.testing.assert_close(value.from_ids(ids, attention, response), torch.stack([scores[0, 4], scores[1, 5]]))


def test_gradient_equals_a_finite_difference() -> None:
    value = sequence_value().double()
    ids, attention, response = batch()
    rows = value.embed(ids).detach().requires_grad_()
    gradient = torch.autograd.grad(value(rows, attention, response).sum(), rows)[0]
    step = torch.zeros_like(rows)
    step[1, 4, 2] = 1e-3
    with torch.no_grad():
        up, down = (value(rows + sign * step, attention, response).sum() for sign in (1, -1))
    assert (up - down) / 2e-3 == pytest.approx(float(gradient[1, 4, 2]), rel=1e-2, abs=1e-4)


def test_ensemble_reductions() -> None:
    values = torch.tensor([[1.0, 3.0], [2.0, 2.0]], requires_grad=True)
    assert SequenceValue.mean(values).tolist() == [2.0, 2.0]
    assert SequenceValue.lower_bound(values, 0.5).tolist() == [1.5, 2.0]
    assert SequenceValue.lower_bound(values[:, :1], 5.0).tolist() == [1.0, 2.0]
    gradient = torch.autograd.grad(SequenceValue.lower_bound(values).sum(), values)[0]
    assert torch.isfinite(gradient).all()  # also where members agree
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))


@pytest.mark.parametrize("layout", ["llama", "gpt_neox", "gpt2"])
def test_from_classifier_is_the_classifier(layout: str) -> None:
    torch.manual_seed(0)
    config = LAYOUTS[layout]()
    config.num_labels = 2
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    ids, attention, response = batch()
    value = SequenceValue.from_classifier(classifier)
    with torch.no_grad():
        expected = torch.cat(
            [classifier(row[mask.bool()].unsqueeze(0)).logits for row, mask in zip(ids, attention, strict=True)]
        )
        found = value.from_ids(ids, attention, response)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_prefix_is_read_once(layout: str, pooling: str) -> None:
    """Values and gradients behind a prefix that was read are those of the whole, also with a part of the response."""
    value = sequence_value(layout, pooling=pooling)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCAB, (3, 13), generator=generator)
    attention = torch.ones_like(ids)
    attention[0, :3] = attention[1, :1] = attention[2, 11:] = 0
    ids = ids * attention
    response = attention.clone()
    response[:, :6] = 0  # of the 8 tokens that are read first two are of the response
    rows = value.embed(ids).detach()[:, 8:].requires_grad_()
    whole = value(torch.cat([value.embed(ids)[:, :8], rows], dim=1), attention, response)
    read = value.read_prefix(ids[:, :8], attention[:, :8])
    assert read is not None
    for _ in range(2):  # it is read from, not written to
        after = value(rows, attention, response, read)
        torch.testing.assert_close(after, whole, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(x.square().sum(), rows, retain_graph=True)[0] for x in (after, whole)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value.from_ids(ids[:, 8:], attention, response, read), whole, rtol=1e-5, atol=1e-5)
    first = value.read_prefix(ids[:1, :8], attention[:1, :8]).repeat_interleave(3)
    same = value(rows[:1].expand(3, -1, -1), attention[:1].expand(3, -1), response[:1].expand(3, -1), first)
    torch.testing.assert_close(same, whole[:1].expand(3, -1), rtol=1e-5, atol=1e-5)


def test_prefixes_are_kept_only_where_later_tokens_do_not_change_them() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    ids = torch.tensor([[5, 9, 4]])
    assert SequenceValue(BertModel(config)).eval().read_prefix(ids, torch.ones_like(ids)) is None
    assert sequence_value().train().read_prefix(ids, torch.ones_like(ids)) is None  # dropout differs between passes


@pytest.mark.parametrize("layout", ["llama", "gemma3", "opt_projected", "gpt2"])
def test_round_trip_is_exact(layout: str, tmp_path) -> None:
    value = sequence_value(layout, pooling="last")
    value.save_pretrained(tmp_path)
    again = SequenceValue.from_pretrained(tmp_path)
    assert again.pooling == "last" and again.num_members == 3 and again.vocab_size == VOCAB
    for name, tensor in value.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert torch.equal(again.from_ids(*batch()), value.from_ids(*batch()))


def test_bad_files_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        SequenceValue.from_pretrained(tmp_path)
    sequence_value().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**settings, "vocab_size": 7}))
    with pytest.raises(ValueError, match="7"):
        SequenceValue.from_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**settings, "num_members": 2}))
    with pytest.raises(ValueError, match=HEAD_NAME):
        SequenceValue.from_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        SequenceValue.from_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"pooling": "mean"}))
    with pytest.raises(ValueError, match="expected"):
        SequenceValue.from_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(settings))
    (tmp_path / HEAD_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=HEAD_NAME):
        SequenceValue.from_pretrained(tmp_path)


def test_bad_input_is_named() -> None:
    value = sequence_value()
    ids, attention, response = batch()
    with pytest.raises(ValueError, match=r"response_mask.*rows \[1\]"):
        value.from_ids(ids, attention, response * torch.tensor([[1], [0]]))
    long = torch.ones(1, 70, dtype=torch.long)
    with pytest.raises(ValueError, match=r"70 tokens.*64"):
        value.from_ids(long, long, long)
    with pytest.raises(ValueError, match="pooling"):
        SequenceValue(tiny_model(), pooling="max")
    with pytest.raises(ValueError, match="num_members"):
        SequenceValue(tiny_model(), 0)
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(ValueError, match="linear `score`"):
        SequenceValue.from_classifier(bert)
