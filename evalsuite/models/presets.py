"""The designs by name. A name is a pattern; the width is chosen apart, the same for all."""

from dataclasses import dataclass

from evalsuite.errors import unknown


@dataclass(frozen=True, slots=True)
class Preset:
    """A design: one letter a layer (see `config.LETTERS`), and who bet on it."""

    pattern: str
    about: str


PRESETS: dict[str, Preset] = {
    "full": Preset("FFFF FFFF", "full attention, no positions"),
    "full-rope": Preset("RRRR RRRR", "full attention with RoPE (Llama)"),
    "full-partial-rope": Preset("PPPP PPPP", "full attention, RoPE on a quarter of each head"),
    "hybrid-kda": Preset("KKKF KKKF", "Kimi Delta Attention 3:1 (Kimi Linear)"),
    "hybrid-kda-7to1": Preset("KKKK KKKF", "Kimi Delta Attention 7:1"),
    "hybrid-gdn": Preset("GGGF GGGF", "Gated DeltaNet 3:1 (Qwen3-Next)"),
    "hybrid-deltanet": Preset("NNNF NNNF", "DeltaNet 3:1"),
    "hybrid-lightning": Preset("LLLL LLLF", "Lightning attention 7:1 (MiniMax-01, M1)"),
    "hybrid-gla": Preset("AAAF AAAF", "gated linear attention 3:1"),
    "hybrid-mamba2": Preset("MMMF MMMF", "Mamba-2 3:1"),
    "hybrid-swa": Preset("SSSF SSSF", "sliding window 3:1"),
    "hybrid-swa-wide": Preset("WWWF WWWF", "sliding window 3:1, 8 times as wide"),
    "hybrid-conv": Preset("CCCF CCCF", "control: short convolutions 3:1"),
    "hybrid-kda-dsa": Preset("KKKD KKKD", "Kimi Delta Attention 3:1, the full layers sparse (DSA)"),
    "hybrid-gdn-dsa": Preset("GGGD GGGD", "Gated DeltaNet 3:1, the full layers sparse (DSA)"),
    "sparse-dsa": Preset("DDDD DDDD", "an indexer chooses each query's tokens (DeepSeek-V3.2)"),
    "sparse-moba": Preset("BBBB BBBB", "each query reads the blocks of nearest mean key (MoBA)"),
    "sparse-nsa": Preset("TTTT TTTT", "compressed blocks, chosen blocks and a window (NSA)"),
    "linear-kda": Preset("KKKK KKKK", "Kimi Delta Attention alone"),
    "conv-only": Preset("CCCC CCCC", "control: short convolutions alone"),
}


def pattern_of(name: str) -> str:
    """The pattern of a preset, or the name itself where it is a pattern. Raises UserError with the nearest preset."""
    if name in PRESETS:
        return PRESETS[name].pattern.replace(" ", "")
    letters = name.replace(" ", "")
    if letters and set(letters) <= set("FRPSWKGNLAMCDBTX"):
        return letters
    raise unknown("model", name, PRESETS)
