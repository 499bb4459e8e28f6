"""Networks without what nobody reads, and with one product where two follow one another.

The text encoder is read at its last token, the video encoder at its class token: their last layers run for that one.
The same weights give the same answers, but for rounding.

Shapes: B rows, T tokens, F video frames, P patches of a frame, H hidden.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.timesformer.modeling_timesformer import TimesformerLayer

from telme.models import TextTeacher, VideoStudent


def without_unread(network: nn.Module) -> nn.Module:
    """The same network with less to do: a copy of the modules around the same parameters; others stay as they are."""
    if not isinstance(network, TextTeacher | VideoStudent):
        return network
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed = copy.deepcopy(network, shared)
    backbone: Any = changed.text_model if isinstance(changed, TextTeacher) else changed.model
    layers = getattr(getattr(backbone, "encoder", None), "layer", [None])
    match layers[-1]:
        case BertLayer() | RobertaLayer() as last:
            layers[-1] = _LastLayer(last)
        case TimesformerLayer(attention_type="divided_space_time") as last:
            for layer in layers:
                _join_temporal_products(layer)
            layers[-1] = _LastTimesformerLayer(last)
        case _:
            return network
    return changed


class _LastLayer(nn.Module):
    """The last layer of a BERT or RoBERTa, for the one token that is read: [B, T, H] -> [B, 1, H].

    The others' states at its end are read by nobody: of six layers it saves most of one. The same weights, called as
    transformers' own cross-attention: the last token asks all.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        own = layer.attention
        self.attention = type(own)(own.self.config, is_cross_attention=True)
        for name, module in own.self.named_children():
            setattr(self.attention.self, name, module)
        self.attention.output = own.output
        self.intermediate, self.output = layer.intermediate, layer.output

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """As the layer; the mask is [B, 1, 1 or T, T]."""
        mask = None if attention_mask is None else attention_mask[:, :, -1:]
        state: Tensor = self.attention(hidden[:, -1:], encoder_hidden_states=hidden, encoder_attention_mask=mask)[0]
        answer: Tensor = self.output(self.intermediate(state), state)
        return answer


class _LastTimesformerLayer(nn.Module):
    """The last layer of a TimeSformer of divided attention, for the class token: [B, 1 + P F, H] -> [B, 1, H].

    In space it asks the patches of each frame, which have asked those of other frames before; their own answers at its
    end, and what the feed-forward makes of them, are read by nobody.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        own = layer.attention.attention
        self.frames, self.heads, self.scale = layer.config.num_frames, own.num_heads, own.scale
        self.temporal_layernorm, self.temporal_attention = layer.temporal_layernorm, layer.temporal_attention
        self.temporal_dense, self.layernorm_before = layer.temporal_dense, layer.layernorm_before
        width = own.qkv.in_features
        self.query, self.key_value = _rows(own.qkv, 0, width), _rows(own.qkv, width, 3 * width)
        self.dense, self.layernorm_after = layer.attention.output.dense, layer.layernorm_after
        self.intermediate, self.output = layer.intermediate, layer.output

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """As the layer."""
        batch, width = hidden.shape[0], hidden.shape[2]
        first, patches = hidden[:, :1], hidden[:, 1:]
        in_time = self.temporal_attention(self.temporal_layernorm(patches.reshape(-1, self.frames, width)))[0]
        patches = patches + self.temporal_dense(in_time.reshape(patches.shape))
        frames = patches.reshape(batch, -1, self.frames, width).transpose(1, 2)  # [B, F, P, H]
        seen = torch.cat((first[:, None].expand(-1, self.frames, -1, -1), frames), 2).flatten(0, 1)
        seen = self.layernorm_before(seen)  # [B F, 1 + P, H]
        query = self.query(seen[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)  # [B F, heads, 1, -]
        in_space = self.dense(attended.transpose(1, 2).flatten(2))
        state = first + in_space.reshape(batch, self.frames, width).mean(1, keepdim=True)
        return (self.output(self.intermediate(self.layernorm_after(state))) + state,)


def _rows(product: nn.Linear, first: int, end: int) -> nn.Linear:
    """Some outputs of a product, from the same weights."""
    part = nn.Linear(product.in_features, end - first, bias=product.bias is not None, device="meta")
    part.weight = nn.Parameter(product.weight.detach()[first:end])
    if product.bias is not None:
        part.bias = nn.Parameter(product.bias.detach()[first:end])
    return part


def _join_temporal_products(layer: Any) -> None:
    """Of the two products behind attention in time, with nothing between them, one: W2 (W1 x + b1) + b2."""
    inner, outer = layer.temporal_attention.output, layer.temporal_dense
    first = inner.dense
    joined = nn.Linear(first.in_features, outer.out_features, device="meta")
    with torch.no_grad():
        weight = outer.weight.double() @ first.weight.double()
        bias = outer.weight.double() @ first.bias.double() + outer.bias.double()
    joined.weight = nn.Parameter(weight.to(first.weight.dtype))
    joined.bias = nn.Parameter(bias.to(first.bias.dtype))
    inner.dense, layer.temporal_dense = joined, nn.Identity()
