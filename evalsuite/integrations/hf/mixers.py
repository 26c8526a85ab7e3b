"""What the layers of published models call instead of their torch forms."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from evalsuite.errors import UserError
from evalsuite.integrations.hf.attention import plain
from evalsuite.integrations.hf.packing import packing
from evalsuite.integrations.hf.tally import Tally, tally_of
from evalsuite_kernels import delta_rule, lightning_index, lightning_slopes, linear_attention

Forward = Callable[..., Any]
EPS = 1e-6  # of the L2 norms, as transformers and flash-linear-attention have it


def delta(count: Tally) -> Forward:
    """The function that KDA and Gated DeltaNet layers call, for prompts, stretches of them and single steps alike."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        *,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """query, key [B, T, H, K], value [B, T, HV, V], g [B, T, HV] or [B, T, HV, K], beta [B, T, HV], states
        [B, HV, K, V] -> o [B, T, HV, V] in query's dtype, and the final state in fp32 or None."""
        if kwargs.get("cu_seqlens") is not None:
            raise UserError("the kernels cannot take packed sequences here; ask row by row, or leave the kernels out")
        q, k = (_unit(x) for x in (query, key)) if use_qk_l2norm_in_kernel else (query, key)
        count("delta_rule")
        o, state = delta_rule(q, k, value, beta, g, initial_state=initial_state, output_final_state=output_final_state)
        return o.to(query.dtype), state

    return run


def without_padding(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """hidden_states [B, T, D] with zeros where attention_mask [B, n], n >= T, has padding in its last T places: zeros
    write nothing into a state. Some releases of transformers leave that out at a batch of one (pull request 46773)."""
    if attention_mask is None:
        return hidden_states
    return hidden_states * attention_mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)


def _unit(x: Tensor) -> Tensor:
    """x [..., K] by its length with the models' epsilon, which counts for short keys and which the operator has not."""
    y = x.float()
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + EPS)).to(x.dtype)


def lightning(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: object = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """The forward of MiniMax's Lightning layers: hidden_states [B, T, D], attention_mask [B, n] or None -> [B, T, D]
    and the state [B, H, K, V] in fp32."""
    B, T, _D = hidden_states.shape
    qkv = module.act_fn(module.qkv_proj(hidden_states))
    q, k, v = without_padding(qkv, attention_mask).view(B, T, module.num_attention_heads, -1).chunk(3, -1)
    before = None if past_key_values is None else past_key_values.get_linear_cache(module.layer_idx)
    tally_of(module)("linear_attention")
    g = slopes(module).to(hidden_states.device)
    o, state = linear_attention(q, k, v, g, scale=1.0, initial_state=before, output_final_state=True)
    if past_key_values is not None:
        past_key_values.set_linear_cache(module.layer_idx, state)
    o = module.norm(o.reshape(B, T, -1).to(hidden_states.dtype))
    return module.out_proj(torch.sigmoid(module.output_gate(hidden_states)) * o), state


def slopes(module: Any) -> Tensor:
    """The log-decays [H] of a Lightning layer in fp32. Its own buffer is rounded with the model to 16 bits."""
    return lightning_slopes(module.num_attention_heads, module.layer_idx, module.num_hidden_layers)


def expect_slopes(module: Any) -> None:
    """Raise UserError where a checkpoint brings other decays than Lightning's."""
    held: Tensor = module.slope_rate
    if not held.is_meta and not torch.allclose(held.flatten().float().cpu(), -slopes(module), rtol=2**-7):
        raise UserError(f"layer {module.layer_idx} decays otherwise than Lightning attention; leave the kernels out")


def indexer(rotate: Callable[..., tuple[Tensor, Tensor]]) -> Forward:
    """The forward of a lightning indexer (DeepSeek-V3.2, GLM), which turns queries and keys by `rotate`."""

    @torch.no_grad()
    def forward(
        module: Any,
        hidden_states: Tensor,
        q_resid: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """hidden_states [B, T, D], q_resid [B, T, R], attention_mask [B, 1, n] -> the keys to read, int32 [B, T, topk],
        or [1, tokens, topk] of the packed sequences where there is padding; `attend` packs alike."""
        B, T, _ = hidden_states.shape
        q = module.wq_b(q_resid).view(B, T, module.n_heads, module.head_dim)
        k = module.k_norm(module.wk(hidden_states))[:, :, None]
        turned = module.qk_rope_head_dim
        q_turned, k_turned = rotate(q[..., :turned], k[..., :turned], *position_embeddings, unsqueeze_dim=2)
        q = torch.cat([q_turned, q[..., turned:]], -1)
        k = torch.cat([k_turned, k[..., turned:]], -1)[:, :, 0]
        if past_key_values is not None:
            k = past_key_values.update_indexer(k, module.layer_idx)
        weights = module.weights_proj(hidden_states.to(module.weights_proj.weight.dtype)).float()
        bounds: dict[str, Any] = {}
        packed = packing(plain(attention_mask), T, k.shape[1])
        if packed is not None:
            q, k, weights = packed.pack_queries(q), packed.pack_keys(k), packed.pack_queries(weights)
            bounds = {"cu_seqlens": packed.cu_queries, "cu_seqlens_k": packed.cu_keys}
        tally_of(module)("lightning_index")
        return lightning_index(q, k, weights, module.index_topk, **bounds)

    return forward
