"""config.json of a DeBERTa as a typed record; transformers' own configurations are the reference."""

from typing import Any

import pytest
from transformers import DebertaConfig, DebertaV2Config

from mlsm.runs.hub_config import HubConfig, hub_config

COMPUTED = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@pytest.mark.parametrize("theirs", [DebertaConfig, DebertaV2Config])
def test_what_a_file_leaves_out_has_the_default_of_transformers(theirs: Any) -> None:
    config = hub_config({"model_type": theirs.model_type, **SIZES, **COMPUTED})
    reference = theirs(**SIZES, **COMPUTED)
    names = ["hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings"]
    for name in [*names, "max_relative_positions", "type_vocab_size", "layer_norm_eps"]:
        assert getattr(config, name) == getattr(reference, name), name
    for name in ("hidden_act", "relative_attention", "position_biased_input"):
        default = next(f.default for f in HubConfig.__dataclass_fields__.values() if f.name == name)
        assert default == getattr(theirs(), name), name


def test_the_size_and_the_layout_of_distances() -> None:
    v1 = hub_config({"model_type": "deberta", **SIZES, **COMPUTED, "max_relative_positions": 70})
    assert (v1.shape(90).max_positions, v1.shape(90).vocab_size, v1.layout) == (70, 90, None)
    v2 = hub_config({"model_type": "deberta-v2", **SIZES, **COMPUTED, "max_position_embeddings": 60})
    assert v2.layout is not None
    assert (v2.shape(90).max_positions, v2.layout.max_distance, v2.layout.num_buckets) == (60, 60, 0)
    assert not v2.layout.is_table_normed


def test_terms_of_attention_as_a_text_or_a_list() -> None:
    for terms in ("c2p|p2c", "P2C | c2p", ["c2p", "p2c"]):
        hub_config({"model_type": "deberta", **SIZES, **COMPUTED, "pos_att_type": terms})
    for terms in ("c2p", ["c2p", "p2p"], "", None):
        with pytest.raises(ValueError, match="pos_att_type is"):
            hub_config({"model_type": "deberta", **SIZES, **COMPUTED, "pos_att_type": terms})
