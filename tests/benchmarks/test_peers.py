"""Peers get the weights of a DeBERTa v1 in the form of a v2 that computes the same."""

import peers
import torch
from paper_recipe import deberta_config
from transformers import DebertaForMaskedLM, DebertaV2ForMaskedLM

from mlsm.config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=60, width=32, depth=2, num_heads=2, ffn_width=48, max_positions=16, init_std=0.3
)


def test_the_v2_computes_what_the_v1_computes_also_beyond_the_table() -> None:
    torch.manual_seed(0)
    v1 = DebertaForMaskedLM(deberta_config(SHAPE)).eval()
    with torch.no_grad():
        for name, weight in v1.named_parameters():
            if "bias" in name:
                weight.normal_(std=0.3)
    v2 = DebertaV2ForMaskedLM(peers.v2_config(v1.config)).eval()
    v2.load_state_dict(peers.v2_weights(v1))
    ids_BL = torch.randint(5, 60, (2, 24))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 15:] = 0
    with torch.no_grad():
        one, other = (model(input_ids=ids_BL, attention_mask=mask_BL).logits for model in (v1, v2))
    torch.testing.assert_close(other[0], one[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other[1, :15], one[1, :15], rtol=1e-4, atol=1e-4)
