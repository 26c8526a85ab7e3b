"""The closed lexicon: every word that the small models know, one token each.

The lab's tasks are written in these words, so that a question is the same text for a large language model and single
tokens for a model trained from scratch: no tokenizer stands between two designs.
"""

_HEADS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u")


def _names(count: int) -> tuple[str, ...]:
    """Two-syllable names, e.g. `bade`, `kilo`; a stride that is coprime to the number of pairs spreads the letters."""
    syllables = [head + vowel for head in _HEADS for vowel in _VOWELS]
    total = len(syllables) ** 2
    picks = ((i * 1207 + 77) % total for i in range(count))
    return tuple(syllables[p // len(syllables)] + syllables[p % len(syllables)] for p in picks)


TAGS = (
    "edge", "ask", "next", "noise", "fact", "is", "are", "which", "find", "set", "get", "all", "end", "call", "def",
    "add", "swap", "push", "pop", "copy", "common", "frequent", "trace", "value", "words", "list", "note", "answer",
    ".", ",", ":", ";", "=", "->", "+", "-", "(", ")", "[", "]", "?",
)  # fmt: skip
RELATIONS = (
    "parent", "child", "owner", "maker", "teacher", "student", "friend", "rival", "leader", "helper", "doctor",
    "tailor", "baker", "singer", "painter", "pilot", "keeper", "judge", "guard", "buyer", "seller", "editor",
    "farmer", "sailor", "home", "city", "river", "color", "metal", "fruit", "animal", "season",
)  # fmt: skip
FILLER = (
    "grass", "sky", "sun", "cloud", "wind", "rain", "snow", "leaf", "tree", "stone", "sand", "wave", "shore",
    "hill", "path", "field", "garden", "bridge", "wall", "door", "window", "table", "chair", "lamp", "book",
    "letter", "paper", "glass", "bottle", "basket", "candle", "mirror", "blanket", "pillow", "carpet", "clock",
    "coin", "rope", "ladder", "hammer", "nail", "wheel", "wagon", "boat", "anchor", "sail", "flag", "drum", "bell",
    "horn", "flute", "green", "blue", "yellow", "white", "black", "quiet", "gentle", "ancient", "narrow", "distant",
    "hidden", "bright", "empty", "heavy", "simple", "early", "again", "there", "here", "slowly", "often", "never",
    "always",
)  # fmt: skip
LETTERS = ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J")
DIGITS = tuple(str(d) for d in range(10))
NAMES = _names(512)
WORDS: tuple[str, ...] = TAGS + RELATIONS + FILLER + LETTERS + DIGITS + NAMES
