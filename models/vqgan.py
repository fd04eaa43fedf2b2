"""VQGAN of CodeFormer's stage I (Esser et al. 2021, arXiv:2012.09841; Zhou et al. 2022, arXiv:2206.11253).

Keys are those of sczhou/CodeFormer basicsr/archs/vqgan_arch.py. Letters in shapes: b batch, c channels, H/W of the image,
h/w of the latent map, n codes in the codebook.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from models.kernels import laid_out, nearest_up_convolution, norm_swish_convolution, normalised

GROUPS = 32  # of every GroupNorm

Positive = Annotated[int, Ge(1)]


class Autoencoding(NamedTuple):
    """An image through the codebook, and what the losses of the codebook need."""

    restored: Tensor  # (b, 3, H, W), about [0, 1], not clamped
    latent: Tensor  # (b, emb_dim, h, w) before quantization
    quantized: Tensor  # (b, emb_dim, h, w) the nearest codes; its gradient goes to the codebook alone
    codes: Tensor  # (b, h, w) which codes, int64


class CodebookNetwork(nn.Module):
    """Encoder, codebook and generator: what VQAutoEncoder and CodeFormer have in common.

    Args:    img_size: side of the images. It decides the sides of all maps, and so where attn_resolutions puts attention.
             nf: width at full size. ch_mult: width of each level as a multiple of nf. Each further level has half the side.
             res_blocks: residual blocks of a level. attn_resolutions: sides of the maps on which attention follows each block.
             codebook_size: number of codes. emb_dim: width of a code.
    Raises:  ValueError for a combination that no forward could run.
    """

    def __init__(
        self,
        *,
        img_size: int,
        nf: int,
        ch_mult: list[int],
        res_blocks: int,
        attn_resolutions: list[int],
        codebook_size: int,
        emb_dim: int,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(ch_mult) - 1)
        if img_size % self.factor:
            raise ValueError(
                f"network.img_size={img_size} can't be halved {len(ch_mult) - 1} times, once for each level of "
                f"network.ch_mult={ch_mult} after the first: give a multiple of {self.factor}"
            )
        if wrong := [width for width in (nf, *(nf * multiple for multiple in ch_mult)) if width % GROUPS]:
            raise ValueError(
                f"network.nf={nf} with network.ch_mult={ch_mult} has a level of {wrong[0]} channels, and each level is "
                f"normalised in {GROUPS} groups: give multiples of {GROUPS}"
            )
        self.sizes = [img_size >> level for level in range(len(ch_mult))]
        if unused := [size for size in attn_resolutions if size not in self.sizes]:
            raise ValueError(
                f"network.attn_resolutions={attn_resolutions}: no map has a side of {unused[0]}; "
                f"with img_size={img_size} the sides are {self.sizes}"
            )
        self.encoder = Encoder(
            in_channels=3,
            nf=nf,
            emb_dim=emb_dim,
            ch_mult=ch_mult,
            res_blocks=res_blocks,
            img_size=img_size,
            attn_resolutions=attn_resolutions,
        )
        self.quantize = VectorQuantizer(codebook_size=codebook_size, emb_dim=emb_dim)
        self.generator = Generator(
            nf=nf,
            emb_dim=emb_dim,
            ch_mult=ch_mult,
            res_blocks=res_blocks,
            img_size=img_size,
            attn_resolutions=attn_resolutions,
        )

    def encode(self, image: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] to the latent (b, emb_dim, H / factor, W / factor), factor = 2 ** (levels - 1).

        Raises: ValueError: a side is no multiple of the factor.
        """
        return self.encoder(self.signed(image))

    def decode(self, quantized: Tensor) -> Tensor:
        """A latent of codes, (b, emb_dim, h, w), to the image (b, 3, h * factor, w * factor), about [0, 1], not clamped."""
        return unsigned(self.generator(quantized))

    def codes_to_latent(self, codes: Tensor) -> Tensor:
        """Codes (b, h, w), integers below codebook_size, to what `decode` takes, (b, emb_dim, h, w)."""
        return self.quantize.embed(codes)

    def signed(self, image: Tensor) -> Tensor:
        """(b, 3, H, W) from [0, 1] to the encoder's [-1, 1]. Raises ValueError as `encode` does."""
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"an image of {height}x{width} can't be halved {self.factor.bit_length() - 1} times: "
                f"give sides that are multiples of {self.factor}"
            )
        return 2 * image - 1


def unsigned(image: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (image + 1) / 2


class VQAutoEncoder(CodebookNetwork):
    """Faces to codes and back: CodeFormer's stage I, whose codebook and generator the later stages keep.

    The last layer, whose gradients balance an adversarial loss against the others, is `generator.blocks.N.weight` with the
    largest N, which is 24 in the official network.

    Args: as in CodebookNetwork.
    """

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

    def forward(self, hq: Tensor) -> Autoencoding:
        """Args:    hq: (b, 3, H, W) in [0, 1], sides multiples of 2 ** (levels - 1).
        Returns: the image from its codes, (b, 3, H, W), about [0, 1], not clamped; the latent and its nearest codes, both
                 (b, emb_dim, h, w); the codes' numbers (b, h, w). The image's gradient passes straight through the codebook.
        """
        latent = self.encode(hq)
        quantized, codes = self.quantize(latent)
        restored = self.decode(latent + (quantized - latent).detach())
        return Autoencoding(restored, latent, quantized, codes)


class Encoder(nn.Module):
    """Image to latent. The blocks are one flat list, as in the official files.

    The attribute `taps` maps the side of a map to the number of the last residual block on that level.

    Args: as in CodebookNetwork.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        nf: int,
        emb_dim: int,
        ch_mult: list[int],
        res_blocks: int,
        img_size: int,
        attn_resolutions: list[int],
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, nf, 3, padding=1)]
        self.taps: dict[int, int] = {}
        width = nf
        for level, multiple in enumerate(ch_mult):
            size = img_size >> level
            if level:
                blocks.append(Downsample(width))
            for _ in range(res_blocks):
                self.taps[size] = len(blocks)
                blocks.append(ResBlock(width, nf * multiple))
                width = nf * multiple
                if size in attn_resolutions:
                    blocks.append(Attention(width))
        blocks += [ResBlock(width, width), Attention(width), ResBlock(width, width)]
        blocks += [GroupNorm(width), nn.Conv2d(width, emb_dim, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] to (b, emb_dim, h, w)."""
        return self.with_taps(image, ())[0]

    def with_taps(self, image: Tensor, sizes: Iterable[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The latent, and for each of these sizes the features (b, c, size, size) after its level's last residual block."""
        kept = {self.taps[size]: size for size in sizes}
        features: dict[int, Tensor] = {}
        x = laid_out(image)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in kept:
                features[kept[number]] = x
        return x, features


class Generator(nn.Module):
    """Latent to image. The blocks are one flat list, as in the official files.

    The attribute `taps` maps the side of a map to the number of the block after which features are fused: the first residual
    block of a level, but the last of the coarsest level (a quirk of the official network). `widths` maps it to its channels.

    Args: as in CodebookNetwork.
    """

    def __init__(
        self,
        *,
        nf: int,
        emb_dim: int,
        ch_mult: list[int],
        res_blocks: int,
        img_size: int,
        attn_resolutions: list[int],
    ) -> None:
        super().__init__()
        width = nf * ch_mult[-1]
        blocks: list[nn.Module] = [nn.Conv2d(emb_dim, width, 3, padding=1)]
        blocks += [ResBlock(width, width), Attention(width), ResBlock(width, width)]
        self.taps: dict[int, int] = {}
        self.widths: dict[int, int] = {}
        coarsest = len(ch_mult) - 1
        for level in reversed(range(len(ch_mult))):
            size = img_size >> level
            if level < coarsest:
                blocks.append(Upsample(width))
            for block in range(res_blocks):
                if block == 0 or level == coarsest:
                    self.taps[size] = len(blocks)
                blocks.append(ResBlock(width, nf * ch_mult[level]))
                width = nf * ch_mult[level]
                if size in attn_resolutions:
                    blocks.append(Attention(width))
            self.widths[size] = width
        blocks += [GroupNorm(width), nn.Conv2d(width, 3, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, quantized: Tensor, fusions: Mapping[int, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """(b, emb_dim, h, w) to (b, 3, H, W), about [-1, 1]. fusions: side of a map -> a function of its features."""
        after = {self.taps[size]: fuse for size, fuse in (fusions or {}).items()}
        x = laid_out(quantized)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in after:
                x = after[number](x)
        return x


class VectorQuantizer(nn.Module):
    """A learned codebook, and the nearest code to each vector (van den Oord et al. 2017, eq. 1 and 2)."""

    def __init__(self, *, codebook_size: int, emb_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, emb_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(b, emb_dim, h, w) to the nearest codes, same shape, and their numbers (b, h, w).

        No gradient reaches the latent: `latent + (quantized - latent).detach()` is the straight-through estimate.
        """
        codes = self.nearest(latent)
        return self.embed(codes), codes

    def nearest(self, latent: Tensor) -> Tensor:
        """(b, emb_dim, h, w) to the numbers (b, h, w) of the nearest codes; in float32 under autocast too."""
        return self._distances(latent).argmin(1).view(latent.shape[0], *latent.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """Numbers (b, h, w) to codes (b, emb_dim, h, w)."""
        return self.embedding(codes).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _distances(self, latent: Tensor) -> Tensor:
        """(b * h * w, n): squared distance to each code, without the latent's own square, which is the same for all codes."""
        with torch.autocast(latent.device.type, enabled=False):
            vectors = latent.permute(0, 2, 3, 1).flatten(0, 2).float()
            book = self.embedding.weight.float()
            return torch.addmm(book.square().sum(1), vectors, book.t(), alpha=-2)


class ResBlock(nn.Module):
    """Two times norm, swish and 3x3 convolution, added to the input; a 1x1 convolution on the shortcut if widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_out = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w)."""
        branch = norm_swish_convolution(x, self.norm1, self.conv1)
        branch = norm_swish_convolution(branch, self.norm2, self.conv2, last_use=True)
        return branch.add_(self.conv_out(x))


class Attention(nn.Module):
    """Attention with one head over all pixels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w), same shape out."""
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1)  # (b, 1 head, h * w, c)
        q, k, v = (F.linear(tokens, conv.weight.flatten(1), conv.bias) for conv in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # scores times c ** -0.5
        mixed = F.linear(mixed, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + mixed.squeeze(1).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves the side: a 3x3 convolution of stride 2, padded with zeros at the right and lower edges alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, 2 * h, 2 * w) to (b, c, h, w)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c, 2 * h, 2 * w)."""
        return nearest_up_convolution(x, self.conv.weight, self.conv.bias)


class GroupNorm(nn.GroupNorm):
    """Group norm in 32 groups. Without a gradient it runs `normalised`, which is more exact than PyTorch's kernel on a CPU."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w), same shape out."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return super().forward(x)
        return normalised(x, self.weight, self.bias, self.num_groups, self.eps, swish=False)[0].to(x.dtype)
