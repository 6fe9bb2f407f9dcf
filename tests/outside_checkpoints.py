"""Small encoders of random weights with tokenizers, as transformers saves those of other architectures."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from hub_checkpoints import LETTER_LINES, shaken
from hub_checkpoints import SIZE as DEBERTA_SIZE
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    BertConfig,
    ConvBertConfig,
    DebertaConfig,
    DebertaForMaskedLM,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
)

from mlsm.files import write_json

SIZE = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "hidden_size": 32}
BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_SPECIALS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
T5_SPECIALS = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}


def word_pieces() -> tuple[Tokenizer, dict[str, str]]:
    """Lower-case WordPiece, as BERT's; its file asks for padding, as that of MiniLM."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=[*BERT_SPECIALS.values()], show_progress=False
    )
    tokenizer.train_from_iterator(LETTER_LINES, trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_padding(length=64)
    return tokenizer, BERT_SPECIALS


def byte_pairs(specials: dict[str, str]) -> tuple[Tokenizer, dict[str, str]]:
    """Byte-level BPE, as that of RoBERTa and ModernBERT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[*specials.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LETTER_LINES, trainer)
    return tokenizer, specials


def unigram(specials: dict[str, str], *others: str) -> tuple[Tokenizer, dict[str, str]]:
    """Unigram, as that of XLM-R and T5; `others` are special tokens without a part of their own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[*specials.values(), *others], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LETTER_LINES, trainer)
    return tokenizer, specials


def ids_of(specials: dict[str, str]) -> dict[str, int]:
    """The ids of the special tokens as a configuration names them; they are the first of the vocabulary."""
    ids = {role: number for number, role in enumerate(specials)}
    bos, eos = ids.get("cls"), ids.get("sep", ids.get("eos"))
    return {"pad_token_id": ids["pad"], "bos_token_id": bos, "eos_token_id": eos}  # type: ignore[dict-item]


Tokens = tuple[Tokenizer, dict[str, str]]
ARCHITECTURES: dict[str, tuple[Callable[[], Tokens], Callable[[int, Tokens], PretrainedConfig]]] = {
    "bert": (word_pieces, lambda n, _: BertConfig(vocab_size=n, **SIZE, max_position_embeddings=90)),
    "minilm": (
        word_pieces,
        lambda n, _: BertConfig(
            vocab_size=n,
            **(SIZE | {"num_hidden_layers": 3}),
            max_position_embeddings=90,
            layer_norm_eps=1e-12,
        ),
    ),
    "roberta": (
        lambda: byte_pairs(ROBERTA_SPECIALS),
        lambda n, t: RobertaConfig(vocab_size=n, **SIZE, max_position_embeddings=92, **ids_of(t[1])),
    ),
    "electra": (
        word_pieces,
        lambda n, _: ElectraConfig(vocab_size=n, **SIZE, embedding_size=16, max_position_embeddings=90),
    ),
    "distilbert": (
        word_pieces,
        lambda n, _: DistilBertConfig(
            vocab_size=n, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=90
        ),
    ),
    "modernbert": (
        lambda: byte_pairs(BERT_SPECIALS),
        lambda n, t: ModernBertConfig(
            vocab_size=n, **SIZE, max_position_embeddings=90, local_attention=8, **ids_of(t[1])
        ),
    ),
    "xlm-roberta": (
        lambda: unigram(ROBERTA_SPECIALS),
        lambda n, t: XLMRobertaConfig(vocab_size=n, **SIZE, max_position_embeddings=92, **ids_of(t[1])),
    ),
    "t5": (
        lambda: unigram(T5_SPECIALS, "<extra_id_0>", "<extra_id_1>"),
        lambda n, t: T5Config(vocab_size=n, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=48),
    ),
    "gpt2": (
        lambda: byte_pairs(BERT_SPECIALS),
        lambda n, t: GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, n_positions=90, **ids_of(t[1])),
    ),
    "convbert": (
        word_pieces,
        lambda n, _: ConvBertConfig(vocab_size=n, **SIZE, embedding_size=32, max_position_embeddings=90),
    ),
    "vit": (
        word_pieces,
        lambda n, _: ViTConfig(**SIZE, image_size=16, patch_size=8),
    ),
}
CANNOT_TEACH = ("gpt2", "convbert", "vit")


def write_tokenizer(folder: Path, tokens: Tokens) -> None:
    """tokenizer.json, and the special tokens in tokenizer_config.json."""
    tokenizer, specials = tokens
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{role}_token": piece for role, piece in specials.items()}
    write_json(folder / "tokenizer_config.json", named | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_checkpoint(folder: Path, architecture: str, **save: object) -> PreTrainedModel:
    """A checkpoint as transformers saves it. Returns the model, of T5 its encoder."""
    make_tokens, make_config = ARCHITECTURES[architecture]
    tokens = make_tokens()
    write_tokenizer(folder, tokens)
    torch.manual_seed(1)
    model = shaken(AutoModel.from_config(make_config(tokens[0].get_vocab_size(), tokens)))
    model.save_pretrained(folder, **save)
    assert json.loads((folder / "config.json").read_text())["model_type"]
    return model.get_encoder() if model.config.is_encoder_decoder else model


OUR_SPECIALS = {"cls": "[CLS]", "sep": "[SEP]", "unk": "<unk>", "pad": "<pad>", "mask": "[MASK]"}


def write_authors_checkpoint(folder: Path, num_concepts: int = 0) -> DebertaForMaskedLM:
    """A DeBERTa v1 in the layout that the paper's authors released: a Unigram tokenizer.json with [CLS] = 0,
    and for a student an added piece [MASK-i] for each concept, whose rows follow those of the words.
    """
    tokenizer, specials = unigram(OUR_SPECIALS)
    tokenizer.add_special_tokens([f"[MASK-{i}]" for i in range(num_concepts)])
    write_tokenizer(folder, (tokenizer, specials))
    config = DebertaConfig(vocab_size=tokenizer.get_vocab_size(), **DEBERTA_SIZE, pad_token_id=3)
    torch.manual_seed(2)
    model = shaken(DebertaForMaskedLM(config))
    model.save_pretrained(folder)
    return model
