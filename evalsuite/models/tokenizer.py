"""The closed-lexicon tokenizer: lexicon words are one token each; any other text falls back to characters and bytes."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evalsuite.lexicon import WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SPACE = "▁"  # marks the space before a word


def vocabulary() -> list[str]:
    """Special tokens, 256 bytes, printable ASCII, then the lexicon's words, each with the space before it."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    characters = [chr(c) for c in range(33, 127)] + [SPACE, "\n"]
    return [*SPECIAL, *bytes_, *characters, *(SPACE + word for word in WORDS)]


def build_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """A HF fast tokenizer that puts `<s>` first and loses nothing of any text."""
    vocab = {token: i for i, token in enumerate(vocabulary())}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, ignore_merges=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|<"), "isolated"),  # no text may spell a special token
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=True),
        ]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
