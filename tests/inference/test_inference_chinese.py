"""A photo and 这是一只猫。 through the initialisation from a Chinese BERT: its real loading, on miniature weights."""

from __future__ import annotations

from pathlib import Path

import torch
from inference.inference_world import SETTINGS, make_detector, photos
from transformers import BertConfig, BertForPreTraining, VisualBertModel

from vbert.inference.visualbert import VisualBert
from vbert.model.bert import BertWeights
from vbert.model.checkpoint import write_bert
from vbert.model.config import ModelSettings
from vbert.model.convert import save_pretrained
from vbert.model.start import Initialization
from vbert.model.vocabulary import SPECIAL, TextRules, write_vocabulary
from vbert.objectives.trained import Model, write_model

TEXT = "这是一只猫。"
PIECES = ("[CLS]", *TEXT, "[SEP]")


def chinese_bert(folder: Path) -> BertWeights:
    """As bert-base-chinese is published, but small: a piece a character, and Latin word pieces beside them."""
    pieces = [*SPECIAL, "，", "。", *"一只这是猫狗的在有", "cat", "##s", "Paris"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(3)
    BertForPreTraining(BertConfig(vocab_size=len(pieces), max_position_embeddings=32, **sizes)).save_pretrained(
        folder / "bert"
    )
    write_vocabulary(folder / "bert", pieces, TextRules(do_lower_case=False))
    (folder / "weights").mkdir()
    write_bert(folder / "weights", folder / "bert")
    return BertWeights.at(folder / "weights")


def test_a_photo_and_a_chinese_sentence(tmp_path: Path) -> None:
    bert, detector = chinese_bert(tmp_path), make_detector(tmp_path / "detector")
    sizes = ModelSettings(box_input="none", standardise=False)
    network = Initialization(bert.vocabulary(), sizes, bert).build(32, 0).eval()
    contract = detector.contract(SETTINGS).with_box_input("none")
    head = {"kind": "pretraining", "objective": "mlm_itm"}
    (tmp_path / "model").mkdir()
    write_model(
        tmp_path / "model",
        model=network,
        config=network.encoder.config,
        vocabulary=bert.vocabulary(),
        contract=contract,
        head=head,
        curves=(),
    )
    model = VisualBert(Model.at(tmp_path / "model"), detector, "cpu")
    (photo,) = photos(tmp_path / "photos", 1)
    found = model.encode(photo, TEXT)
    assert found.pieces == PIECES
    assert found.last_hidden_state.shape == (len(PIECES) + 4, 16)
    save_pretrained(network, tmp_path / "theirs", conventions="original")
    theirs = VisualBertModel.from_pretrained(tmp_path / "theirs").eval()
    visual = torch.as_tensor(model.regions(photo).features).float()[None]
    ids = torch.tensor([bert.vocabulary().tokenizer()(TEXT).input_ids])
    ones, zeros = torch.ones(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad():
        out = theirs(input_ids=ids, visual_embeds=visual, visual_attention_mask=ones, visual_token_type_ids=zeros)
    torch.testing.assert_close(found.last_hidden_state, out.last_hidden_state[0], atol=1e-5, rtol=1e-5)
    assert model.encode(photo, "Paris cats").pieces == ("[CLS]", "Paris", "cat", "##s", "[SEP]"), "case is kept"
