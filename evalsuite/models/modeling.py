"""The language model: embeddings, blocks of (short convolution, mixer, feed-forward), head; a transformers model."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from evalsuite.models.cache import HybridCache, KVLayer, Layout, StateLayer
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.mixers import Attention, ConvOnly, DecayGate, DeltaMixer, LinearMixer, Mixer, RMSNorm, own, wide
from evalsuite.models.sparse import Blocks, Branches, Compress, Indexed
from evalsuite_kernels import short_convolution

FAMILIES: dict[str, type[Mixer]] = {
    **dict.fromkeys("FRPSW", Attention),
    **dict.fromkeys("LAM", LinearMixer),
    **dict.fromkeys("NGK", DeltaMixer),
    "C": ConvOnly,
    "D": Indexed,
    "B": Blocks,
    "T": Branches,
}
CONV_SCALE = 0.5  # taps start in U(-0.5, 0.5): the previous token is readable from the first step on


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x) (Shazeer 2020)."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Fine-grained experts with one shared expert (DeepSeekMoE, arXiv 2401.06066): softmax router, top-k, renormalised.

    `balance` holds the load-balancing loss of the last forward pass (Switch Transformer, eq. 4): 1 when even.
    """

    def __init__(self, config: EvalsuiteConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            SwiGLU(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        self.shared = SwiGLU(config.hidden_size, config.moe_intermediate_size)
        self.balance = torch.zeros(())

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no part in the graph of a forward pass."""
        return self.__dict__ | {"balance": torch.zeros(())}

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        probs = wide(self.router(tokens)).softmax(-1)
        weight, chosen = probs.topk(self.top_k, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        out = self.shared(tokens)
        for index, expert in enumerate(self.experts):
            row, slot = (chosen == index).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, expert(tokens[row]) * weight[row, slot, None])
        share = F.one_hot(chosen, len(self.experts)).float().sum(1).mean(0) / self.top_k
        self.balance = len(self.experts) * (share * probs.mean(0)).sum()
        return out.view_as(x)


class Block(nn.Module):
    """x + mixer(h + conv(h)), h = norm(x); then x + ffn(norm(x))."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.mixer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.conv = nn.Parameter(torch.empty(config.hidden_size, config.conv_size))
        letter = config.pattern[layer]
        self.mixer = (own(config.mixer) if letter == "X" else FAMILIES[letter])(config, layer)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn: nn.Module = (
            Experts(config) if config.num_experts else SwiGLU(config.hidden_size, config.intermediate_size)
        )

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        h = self.mixer_norm(x)
        cache = layout.cache
        mixed, tail = short_convolution(
            h,
            self.conv.to(h.dtype),
            initial_state=cache.tails[self.layer] if cache is not None else None,
            output_final_state=cache is not None,
            cu_seqlens=layout.cu_seqlens,
        )
        if cache is not None:
            cache.tails[self.layer] = tail
        x = x + self.mixer(h + mixed, layout)
        return x + self.ffn(self.ffn_norm(x))


class EvalsuitePreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers must know of the model."""

    config_class = EvalsuiteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _is_stateful = True  # recurrent states cannot be cropped
    _no_split_modules = ["Block"]  # noqa: RUF012 - transformers declares it so

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)  # normed on the way in: the head's scale
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, DecayGate):
            module.reset_decay()
        elif isinstance(module, Compress):
            module.reset()
        elif isinstance(module, Block):
            nn.init.uniform_(module.conv, -CONV_SCALE, CONV_SCALE)
            nn.init.zeros_(module.mixer.o_proj.weight)
            if self.config.mimetic_init:  # here: transformers passes over modules without parameters of their own
                module.mixer.match()
        elif hasattr(module, "skip") and isinstance(module.skip, nn.Parameter):
            nn.init.ones_(module.skip)


class EvalsuiteModel(EvalsuitePreTrainedModel):
    """The stack without its head. Tokens `[B, T]`, or packed `[1, total]` with `cu_seqlens`."""

    def __init__(self, config: EvalsuiteConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = cast(nn.Embedding, value)

    def new_cache(self, batch: int) -> HybridCache:
        """An empty cache for `batch` sequences."""
        mixers = [layer.mixer for layer in self.layers]
        kept = [KVLayer(mixer.window) if isinstance(mixer, Attention) else StateLayer() for mixer in mixers]
        return HybridCache(kept, batch, self.device)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: HybridCache | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, `[B, T, hidden]`.

        Without a cache: `[B, T]`, or packed with `cu_seqlens [N+1]`. With a cache of N sequences: packed new tokens of
        each, or `[N, 1]`, one more token for each. The cache is updated in place.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = F.rms_norm(wide(x), (x.shape[-1],)).to(x.dtype)  # without it the small models do not learn at all
        count, past = x.shape[1], cache.lengths if cache is not None else None
        if cu_seqlens is None:
            assert cache is None or count == 1, "pack longer continuations"
            start = past[:, None] if past is not None else 0
            positions = start + torch.arange(count, device=x.device).expand(x.shape[0], count)
            new = torch.ones_like(past) if past is not None else None
        else:
            cu_seqlens = cu_seqlens.cpu()
            first = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff())
            new, offset = cu_seqlens.diff().to(x.device), (torch.arange(count) - first).to(x.device)
            before = 0 if past is None else past.repeat_interleave(new, output_size=count)
            positions = (offset + before)[None]
        layout = Layout(positions, cu_seqlens, cache)
        for layer in self.layers:
            x = layer(x, layout)
        if cache is not None and new is not None:
            cache.lengths = cache.lengths + new
        return self.norm(x)


class EvalsuiteForCausalLM(EvalsuitePreTrainedModel, GenerationMixin):
    """The language model. `generate`, `save_pretrained` and `from_pretrained` work as transformers documents them."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as above

    def __init__(self, config: EvalsuiteConfig) -> None:
        super().__init__(config)
        self.model = EvalsuiteModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes its own

    def state_bytes(self, length: int) -> list[dict[str, int]]:
        """Bytes that each layer keeps for one sequence of `length` tokens: {"kv": ..., "index": ..., "state": ...}."""
        item = self.lm_head.weight.element_size()
        tail = self.config.hidden_size * (self.config.conv_size - 1) * item
        rows = []
        for layer in self.model.layers:
            row = {"kv": 0, "index": 0, "state": 0, **layer.mixer.state_bytes(length)}
            rows.append({**row, "state": row["state"] + tail})
        return rows

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[B, T, vocab]`. Padding on either side is taken out before the first layer, so that no pad token ever
        enters a state, and the logits of pad tokens are 0. `labels` are shifted here, as everywhere in transformers."""
        embeds = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, count = embeds.shape[:2]
        mask = torch.ones(batch, count, dtype=torch.bool, device=embeds.device)
        if attention_mask is not None:
            mask = attention_mask[:, -count:].bool()
        wants_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = past_key_values if past_key_values is not None else None
        if wants_cache and cache is None:
            cache = self.model.new_cache(batch)
        hidden = self._run(embeds, mask, cache)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            loss = loss + self.own_losses()
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def balance(self) -> Tensor:
        """Sum of the experts' load-balancing losses of the last forward pass; 0 without experts."""
        losses = [m.balance for m in self.modules() if isinstance(m, Experts)]
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.lm_head.weight.device)

    def own_losses(self) -> Tensor:
        """What parts of the model learn from besides the labels, of the last forward pass, weighted as the
        configuration says: the balance of experts, and indexers' divergences from what attention reads."""
        losses = [m.loss for m in self.modules() if isinstance(m, Indexed)] if self.training else []
        total = self.config.router_aux_loss_coef * self.balance()
        return total + self.config.index_loss_coef * torch.stack(losses).sum() if losses else total

    @torch.no_grad()
    def selection_recall(self, input_ids: Tensor) -> Tensor:
        """The share of full attention's mass that each layer D's choice covers, for every query: [layers, B, T] of
        tokens [B, T]. What a layer would read is asked of the model as it is, and changes nothing."""
        mixers = [m for m in self.modules() if isinstance(m, Indexed)]
        if not mixers:
            raise ValueError(f"no layer of {self.config.pattern} has an indexer (D)")
        losses = [
            (m, name, getattr(m, name)) for m in self.modules() for name in ("loss", "balance") if hasattr(m, name)
        ]
        try:
            for mixer in mixers:
                mixer.recalled = []
            self.model(input_ids)
            return torch.stack([mixer.recalled[0] for mixer in mixers if mixer.recalled])
        finally:
            for mixer in mixers:
                mixer.recalled = None
            for module, name, value in losses:
                setattr(module, name, value)

    def _run(self, embeds: Tensor, mask: Tensor, cache: HybridCache | None) -> Tensor:
        batch, count = mask.shape
        whole = bool(mask.all())
        if whole and (cache is None or count == 1):
            return self.model(inputs_embeds=embeds, cache=cache)
        lengths = mask.sum(1)
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        packed = self.model(inputs_embeds=embeds[mask][None], cu_seqlens=cu_seqlens, cache=cache)
        hidden = packed.new_zeros(batch, count, packed.shape[-1])
        hidden[mask] = packed[0]
        return hidden


AutoConfig.register("evalsuite", EvalsuiteConfig)
AutoModelForCausalLM.register(EvalsuiteConfig, EvalsuiteForCausalLM)
