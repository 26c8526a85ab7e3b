"""The budgets of the equal-budget lab: what every design gets, how much of it, and what it is asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from evalsuite.errors import UserError, unknown
from evalsuite.lab.data import Stream
from evalsuite.lab.match import matched, parameters
from evalsuite.lab.probe import Questions
from evalsuite.lab.train import Recipe
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.presets import pattern_of
from evalsuite.models.tokenizer import vocabulary

Mixture = tuple[tuple[str, float], ...]
APART = 0.05  # share by which losses of two seeds of one design differ; two rates within it are not told apart


@dataclass(frozen=True, slots=True)
class Budget:
    """One size, one stream law and one recipe for every design. Settings are those of `EvalsuiteConfig`."""

    name: str
    width: int
    head: int  # dims of a head
    context: int  # longest text that a finished model may be asked
    settings: Mapping[str, Any]  # windows, top-k
    mixture: Mixture
    lengths: tuple[tuple[int, float], ...]
    curriculum: float
    steps: int
    tokens: int  # of a step
    rates: tuple[float, ...]  # learning rates to begin the search with; one: no search
    designs: Mapping[str, int]  # design -> seeds
    probes: tuple[Questions, ...]  # asked while it trains
    questions: tuple[Questions, ...]  # asked of the finished model
    bf16: bool = True
    warmup: int = 150
    gate_hops: tuple[int, ...] = tuple(range(1, 7))  # full attention must solve them for a figure to say anything
    share: float = 1 / 3  # of the steps, for every learning rate tried
    shuffled: bool = False  # a blind test: labels that answer nothing, from which no task may be learned

    def blind(self) -> "Budget":
        """The same budget with shuffled labels; at its middle learning rate, for there is nothing to choose by."""
        return replace(self, shuffled=True, rates=(self.rates[len(self.rates) // 2],))

    def config(self, name: str) -> EvalsuiteConfig:
        """The configuration of a preset or pattern, of as many parameters as full attention has at this depth.

        `XXXF@module:Class` names the mixer of layers X.
        """
        name, _, mixer = name.partition("@")
        pattern = pattern_of(name)
        if ("X" in pattern) != bool(mixer):
            raise UserError(f"layers X and --mixer MODULE:CLASS go together: {name!r} has {mixer or 'no mixer'}")
        return matched({**self._settings(), "pattern": pattern, "mixer": mixer}, self.size(len(pattern)))

    def size(self, layers: int) -> int:
        """Parameters of full attention with that many layers and a SwiGLU of 8/3 the width."""
        full = {"pattern": "F" * layers, "intermediate_size": round(self.width * 8 / 3 / 16) * 16}
        return parameters(EvalsuiteConfig(**{**self._settings(), **full}))

    def stream(self, seed: int, *, sweep: bool = False) -> Stream:
        """The token stream of a seed, or the shorter one on which learning rates are compared."""
        steps = max(1, round(self.steps * self.share)) if sweep else self.steps
        return Stream(
            self.mixture,
            lengths=self.lengths,
            curriculum=self.curriculum,
            steps=steps,
            tokens_per_step=self.tokens,
            seed=seed,
            shuffled=self.shuffled,
        )

    def recipe(self, lr: float, seed: int) -> Recipe:
        """The recipe at a learning rate."""
        return Recipe(lr=lr, seed=seed, bf16=self.bf16, warmup=self.warmup)

    def _settings(self) -> dict[str, Any]:
        heads = self.width // self.head
        return {
            "vocab_size": len(vocabulary()),
            "hidden_size": self.width,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": self.head,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": True,
            **self.settings,
        }


_HOPS = "multihop.hops=1,2,3,4,5,6"

REFERENCE = Budget(
    name="reference",
    width=192,
    head=64,
    context=16384,
    # without keys that start as queries sliding window 3:1 knew no hop after 78M tokens; with them, one after 12M
    settings={"window": 64, "index_topk": 128, "mimetic_init": True},
    # two hops more than are asked: where documents go to six, one seed of full attention in five stops at five for good
    mixture=(
        ("multihop.graph hops=8", 0.45),
        ("multihop.graph answer=cot", 0.04),
        ("multihop.path", 0.08),
        ("multihop.chain", 0.02),
        ("multihop.binding", 0.02),
        ("multihop.callchain", 0.02),
        ("ruler.niah_single_1", 0.01),
        ("ruler.niah_multikey_1", 0.02),
        ("ruler.niah_multikey_2", 0.03),
        ("ruler.niah_multivalue", 0.03),
        ("ruler.niah_multiquery", 0.03),
        ("ruler.vt", 0.03),
        ("ruler.cwe", 0.02),
        ("ruler.fwe", 0.02),
        ("trace.assign", 0.01),
        ("trace.swap", 0.02),
        ("trace.index", 0.01),
        ("trace.deref", 0.02),
        ("trace.palindrome", 0.02),
        ("trace.stack", 0.02),
        ("knowledge.cloze load=1024", 0.02),
        ("knowledge.cloze load=16384", 0.04),
        ("knowledge.letter load=1024", 0.02),
    ),
    # with rows of 128 and 256 tokens, of few facts, full attention learned six hops from 105M tokens; without, two
    lengths=((128, 0.25), (256, 0.25), (512, 0.35), (2048, 0.15)),
    curriculum=0.35,
    steps=6400,
    tokens=16384,
    rates=(1e-3, 2e-3),
    designs={
        "full": 5,
        "full-rope": 3,
        "hybrid-kda": 5,
        "hybrid-gdn": 3,
        "hybrid-lightning": 5,
        "hybrid-swa": 5,
        "linear-kda": 3,
        "sparse-dsa": 3,
        "hybrid-kda-dsa": 5,
        "hybrid-conv": 3,
    },
    probes=(
        Questions("multihop.graph", 64, (512,), (_HOPS, "multihop.facts=16,64")),
        Questions("multihop.path", 64, (512,), ("multihop.hops=1,2,3,4", "multihop.facts=32")),
        Questions("knowledge.cloze", 128, (), ("knowledge.load=1024,16384",)),
    ),
    questions=(
        Questions("multihop.graph", 100, (512,), (_HOPS, "multihop.facts=16,64")),
        Questions("multihop.path", 100, (512,), (_HOPS, "multihop.facts=32")),
        Questions("multihop.chain,multihop.binding,multihop.callchain", 30, (512,)),
        Questions("multihop.graph", 50, (512,), ("multihop.hops=2,4,6", "multihop.facts=64", "multihop.answer=cot")),
        Questions("multihop.graph", 24, (2048, 4096, 8192, 16384), ("multihop.hops=1,2,4", "multihop.facts=64")),
        Questions("multihop.graph", 24, (1024,), ("multihop.hops=1,2,4", "multihop.facts=128")),
        Questions("multihop.graph", 24, (2048,), ("multihop.hops=1,2,4", "multihop.facts=256")),
        Questions("ruler", 25, (512, 2048)),
        Questions("trace", 25, (512,)),
        Questions("knowledge.cloze", 400, (), ("knowledge.load=1024,16384",)),
        Questions("knowledge.letter", 200, (), ("knowledge.load=1024",)),
    ),
)

TINY = Budget(
    name="tiny",
    width=64,
    head=32,
    context=96,
    settings={"window": 16, "index_topk": 16, "mimetic_init": True},
    mixture=(("multihop.graph facts=12 hops=5", 1.0),),
    lengths=((96, 1.0),),
    curriculum=0.0,
    steps=1200,
    tokens=2304,
    rates=(4e-3,),
    designs={"FFFF": 1, "SFSF": 1, "SSSF": 1},
    probes=(Questions("multihop.graph", 64, (96,), ("multihop.hops=1,2,3,4,5", "multihop.facts=12")),),
    questions=(Questions("multihop.graph", 100, (96,), ("multihop.hops=1,2,3,4,5", "multihop.facts=12")),),
    bf16=False,
    warmup=100,
    gate_hops=(1, 2, 3, 4),
)

BUDGETS = {budget.name: budget for budget in (TINY, REFERENCE)}


def named(name: str) -> Budget:
    """The budget of that name. Raises UserError with the nearest where there is none."""
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    return BUDGETS[name]


def chosen(losses: Mapping[float, float], start: Sequence[float]) -> float:
    """Of the learning rates tried the one nearest to where the search began, among those whose loss is within APART of
    the least; of two as near, the better. So noise leads no search away from where all designs begin."""
    least, middle = min(losses.values()), fmean(map(math.log, start))
    close = [lr for lr, loss in losses.items() if loss <= (1 + APART) * least]
    return min(close, key=lambda lr: (round(abs(math.log(lr) - middle), 6), losses[lr]))


def told(budget: Budget) -> dict[str, Any]:
    """What the results of a budget depend on, apart from the designs."""
    plain = asdict(budget)
    for name in ("designs", "gate_hops"):
        del plain[name]
    return plain


def check(budget: Budget, designs: Mapping[str, int]) -> None:
    """Raise UserError for a design that cannot be made at this budget, before any work."""
    for name, seeds in designs.items():
        if seeds < 1:
            raise UserError(f"{name} needs at least one seed, not {seeds}")
        budget.config(name)
