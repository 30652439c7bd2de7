"""Run the command line in this process, in a folder of its own."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fxq.cli.main import app

Fxq = Callable[..., Result]

NETS = '''
"""What a user may have beside their data."""

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.head((self.conv2(x) + x).relu().mean((2, 3)))


def small():
    torch.manual_seed(0)
    return Small()


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(6, 4)

    def forward(self, left, right):
        return self.a(left) + self.b(right)


class SumByKeyword(Sum):
    def forward(self, left, *, right):
        return super().forward(left, right)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class ByShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.shape[2] > 3 else x


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)

    def forward(self, ids, mask=None, scale=None):
        x = self.table(ids) if mask is None else self.table(ids) * mask.unsqueeze(-1)
        return self.head(x) if scale is None else self.head(x) * scale


class OfBytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, x):
        return self.net(x.float() / 255)


class Choice(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.choice, self.head = Choice(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.choice(x))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(8, 3)

    def forward(self, x):
        return self.conv(x)


def double():
    return small().double()


def channels_last():
    return small().to(memory_format=torch.channels_last)


class Faulty(Small):
    def forward(self, x):
        return self.no_such_attribute(x)


def raises_in_the_middle():
    raise KeyError("no such key")


instance = small()
number = 3


def no_module():
    return 3


def wants_an_argument(width):
    return Small(width)
'''


@pytest.fixture
def fxq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fxq:
    """Return a function that runs ``fxq`` in a folder with the module ``nets_of_a_user``."""
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_a_user", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
