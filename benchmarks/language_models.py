"""Networks for text, with random weights: encoder layers of BERT-base's shape, and a tagger of recurrent layers."""

import torch
from torch import Tensor, nn

VOCABULARY, TOKENS = 5000, 128


class SelfAttention(nn.Module):
    """BERT's: four projections and two products of activations."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token sees of the others; (batch, tokens, width)."""
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)) * self.scale, -1)
        return self.output(torch.matmul(weights, value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # a module


class EncoderLayer(nn.Module):
    """One of BERT's: attention and two linear layers, each with a residual and a norm."""

    def __init__(self, width: int = 768, hidden: int = 3072) -> None:
        super().__init__()
        self.attention, self.attention_norm = SelfAttention(width), nn.LayerNorm(width)
        self.up, self.activation, self.down = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after one layer; (batch, tokens, width)."""
        x = self.attention_norm(x + self.attention(x))
        return self.norm(x + self.down(self.activation(self.up(x))))  # type: ignore[no-any-return]  # a module


class Tagger(nn.Module):
    """Embedding, two bidirectional recurrent layers, and a linear layer."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], hidden: int = 256, tags: int = 20) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.recurrent = kind(hidden, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(2 * hidden, tags)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return a score for each tag of each token."""
        return self.tags(self.recurrent(self.embedding(tokens))[0])  # type: ignore[no-any-return]  # a module


def encoder(layers: int = 2) -> tuple[nn.Module, Tensor]:
    """Return encoder layers and the tokens of one sentence."""
    torch.manual_seed(0)
    return nn.Sequential(*(EncoderLayer() for _ in range(layers))).eval(), torch.randn(1, TOKENS, 768)


def tagger(kind: type[nn.LSTM] | type[nn.GRU]) -> tuple[nn.Module, Tensor]:
    """Return a tagger and one sentence."""
    torch.manual_seed(0)
    return Tagger(kind).eval(), torch.randint(0, VOCABULARY, (1, TOKENS))
