"""CodeFormer (Zhou et al. 2022, arXiv:2206.11253): codes predicted by a transformer, and features let through by w.

Keys are those of sczhou/CodeFormer basicsr/archs/codeformer_arch.py. Letters in shapes: b batch, c channels, n codes in the
codebook, t = h * w tokens of the latent map.
"""

from functools import partial
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from models.vqgan import CodebookNetwork, Positive, ResBlock, unsigned


class Restoration(NamedTuple):
    """What CodeFormer makes of an image; `restored` is None with code_only."""

    restored: Tensor | None  # (b, 3, img_size, img_size), about [0, 1], not clamped
    logits: Tensor  # (b, t, codebook_size), tokens in row order
    latent: Tensor  # (b, emb_dim, h, w) of the encoder


class CodeFormer(CodebookNetwork):
    """Restores a face by predicting the codes of its clean image; w lets features of the degraded image through.

    Gradients flow as in the reference. Those of the restored image stop at the codes and at the encoder's features, so that
    they train `fuse_convs_dict` alone (and the generator, unless it is fixed). Those of logits and latent train the rest.

    Args:    img_size, nf, ch_mult, res_blocks, attn_resolutions, codebook_size, emb_dim: as in VQAutoEncoder, whose weights
                 have the same names here. In the official network all but codebook_size are fixed numbers.
             dim_embd: width of the transformer; its MLPs are twice as wide. n_head: attention heads. n_layers: its layers.
             connect_list: sides of the maps at which w lets features through. At the last one (at
                 `fuse_convs_dict.SIDE.shift.2.weight`) the reference balances its adversarial loss against the others.
             fix_modules: names of the parts that stay frozen, such as quantize and generator.
    Raises:  ValueError for a combination that no forward could run.
    """

    takes_fidelity = True  # forward takes w and adain: restoration/run.py offers w

    def __init__(
        self,
        *,
        img_size: Positive,
        nf: Positive,
        ch_mult: Annotated[list[Positive], MinLen(1)],
        res_blocks: Positive,
        attn_resolutions: list[Positive],
        codebook_size: Positive,
        emb_dim: Positive,
        dim_embd: Positive,
        n_head: Positive,
        n_layers: Annotated[int, Ge(0)],
        connect_list: list[Positive],
        fix_modules: list[str],
    ) -> None:
        super().__init__(
            img_size=img_size,
            nf=nf,
            ch_mult=ch_mult,
            res_blocks=res_blocks,
            attn_resolutions=attn_resolutions,
            codebook_size=codebook_size,
            emb_dim=emb_dim,
        )
        if dim_embd % n_head:
            raise ValueError(f"network.n_head={n_head} does not divide network.dim_embd={dim_embd}")
        if wrong := [size for size in connect_list if size not in self.sizes]:
            raise ValueError(
                f"network.connect_list={connect_list}: no map has a side of {wrong[0]}; "
                f"with img_size={img_size} the sides are {self.sizes}"
            )
        if len(set(connect_list)) < len(connect_list):
            raise ValueError(f"network.connect_list={connect_list} names a side twice")
        self.img_size = img_size
        self.position_emb = nn.Parameter(torch.zeros(self.sizes[-1] ** 2, dim_embd))
        self.feat_emb = nn.Linear(emb_dim, dim_embd)
        self.ft_layers = nn.ModuleList(TransformerLayer(dim_embd, n_head) for _ in range(n_layers))
        self.idx_pred_layer = nn.Sequential(nn.LayerNorm(dim_embd), nn.Linear(dim_embd, codebook_size, bias=False))
        widths = self.generator.widths
        self.fuse_convs_dict = nn.ModuleDict({str(size): Fusion(widths[size]) for size in connect_list})
        parts = [name for name, _ in self.named_children()]
        for name in fix_modules:
            if name not in parts:
                raise ValueError(f"network.fix_modules={fix_modules}: there is no {name}; the parts are {', '.join(parts)}")
            self.get_submodule(name).requires_grad_(False)

    @property
    def face_px(self) -> int:
        """Side of the aligned faces that it takes, and no other image."""
        return self.img_size

    def forward(self, lq: Tensor, *, w: float, adain: bool, code_only: bool = False) -> Restoration:
        """Args:    lq: (b, 3, img_size, img_size) in [0, 1].
                 w: fidelity, from 0 (codes alone) to 1; training may go above 1.
                 adain: gives the codes the latent's mean and deviation, channel by channel. The published inference on
                     aligned faces has w=0.5 and adain=True.
                 code_only: compute only what the code losses of stage II need; w and adain then have no effect.
        Returns: the restored image (b, 3, img_size, img_size), about [0, 1] and not clamped, or None with code_only; the logits
                 (b, t, codebook_size); the latent (b, emb_dim, h, w).
        Raises:  ValueError: another size than img_size, or w below 0.
        """
        if not w >= 0:  # NaN too
            raise ValueError(f"w={w}: fidelity is 0 or more")
        size = self.img_size
        if lq.shape[-2:] != (size, size):
            raise ValueError(
                f"CodeFormer with img_size={size} takes images of {size}x{size}, not {lq.shape[-2]}x{lq.shape[-1]}: resize "
                "them (its position embedding has a place for each code of that size)"
            )
        fused = [] if code_only or w == 0 else [int(name) for name in self.fuse_convs_dict]
        latent, features = self.encoder.with_taps(self.signed(lq), fused)
        logits = self.predict(latent)
        if code_only:
            return Restoration(None, logits, latent)
        quantized = self.codes_to_latent(logits.argmax(2).unflatten(1, latent.shape[2:])).detach()
        if adain:
            quantized = adaptive_instance_normalization(quantized, latent)
        fusions = {
            size: partial(self.fuse_convs_dict[str(size)], encoded=feature.detach(), w=w) for size, feature in features.items()
        }
        return Restoration(unsigned(self.generator(quantized, fusions)), logits, latent)

    def predict(self, latent: Tensor) -> Tensor:
        """(b, emb_dim, h, w) to the logits (b, t, codebook_size) of the code at each place."""
        tokens = self.feat_emb(latent.flatten(2).transpose(1, 2))
        for layer in self.ft_layers:
            tokens = layer(tokens, self.position_emb)
        return self.idx_pred_layer(tokens)


def adaptive_instance_normalization(content: Tensor, style: Tensor) -> Tensor:
    """content with the mean and deviation over all pixels that each channel of style has (Huang and Belongie 2017, eq. 8).

    Both (b, c, h, w), same shape out; the variances are unbiased, plus 1e-5.
    """
    variance, mean = torch.var_mean(content, (2, 3), keepdim=True)
    style_variance, style_mean = torch.var_mean(style, (2, 3), keepdim=True)
    return (content - mean) * ((style_variance + 1e-5) / (variance + 1e-5)).sqrt() + style_mean


class TransformerLayer(nn.Module):
    """Self-attention with positions added to queries and keys but not to values, and an MLP; both pre-norm and residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.linear1 = nn.Linear(dim, 2 * dim)
        self.linear2 = nn.Linear(2 * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """tokens: (b, t, c), same shape out. position: (t, c), what is added to each token's query and key."""
        tokens = tokens + self.self_attn(self.norm1(tokens), position)
        return tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))


class SelfAttention(nn.Module):
    """Attention with keys and initialisation of nn.MultiheadAttention; queries and keys come from one matrix product."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """tokens: (b, t, c), same shape out. position: (t, c), added to the input of queries and keys alone."""
        both = 2 * tokens.shape[2]
        qk = F.linear(tokens + position, self.in_proj_weight[:both], self.in_proj_bias[:both])
        v = F.linear(tokens, self.in_proj_weight[both:], self.in_proj_bias[both:])
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (*qk.chunk(2, 2), v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Fusion(nn.Module):
    """Controllable feature transformation: the generator's features, scaled and shifted by the encoder's (eq. 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encode_enc = ResBlock(2 * channels, channels)
        self.scale = self._branch(channels)
        self.shift = self._branch(channels)

    @staticmethod
    def _branch(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, decoded: Tensor, encoded: Tensor, w: float) -> Tensor:
        """Both (b, c, h, w), same shape out: decoded + w * (decoded * scale + shift)."""
        joint = self.encode_enc(torch.cat([encoded, decoded], 1))
        return decoded + w * torch.addcmul(self.shift(joint), decoded, self.scale(joint))
