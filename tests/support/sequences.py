"""Small models of token sequences, made of what the dynamic and weight-only recipes are for."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS = 50, 64, 4


class Encoder(nn.Module):
    """A transformer encoder layer of linear layers, two products of activations, and a product with a stored matrix."""

    def __init__(self, is_tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch, length, width = x.shape
        heads = self.qkv(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        scores = torch.softmax(query @ key.transpose(-2, -1) / (width // HEADS) ** 0.5, -1)
        attended = (scores @ value).transpose(1, 2).reshape(batch, length, width)
        x = self.norm1(x + self.out(attended))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.head(x @ self.mix)


class Tagger(nn.Module):
    """A bidirectional LSTM of two layers, a GRU, and a linear layer that names each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH // 2)
        self.lstm = nn.LSTM(WIDTH // 2, WIDTH // 2, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(WIDTH, WIDTH // 2, batch_first=True)
        self.tags = nn.Linear(WIDTH // 2, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(tokens))
        outputs, _ = self.gru(outputs)
        return self.tags(outputs)


def encoder(is_tied: bool = False) -> nn.Module:
    """Return a seeded Encoder in eval mode."""
    torch.manual_seed(0)
    return Encoder(is_tied).eval()


def tagger() -> nn.Module:
    """Return a seeded Tagger in eval mode."""
    torch.manual_seed(0)
    return Tagger().eval()


def tokens() -> Tensor:
    """Return seeded tokens, shape (2, 12)."""
    return torch.randint(0, TOKENS, (2, 12), generator=torch.Generator().manual_seed(0))


def snr_db(reference: Tensor, output: Tensor) -> float:
    """Return 20 log10(|reference| / |reference - output|)."""
    return float(20 * torch.log10(reference.norm() / (reference - output).norm().clamp(min=1e-20)))
