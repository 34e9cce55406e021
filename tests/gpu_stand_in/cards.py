"""The cards that the stand-in stands for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU, as far as a program can ask for it."""

    capability: int
    """Compute capability, 75 for 7.5."""
    gib: float
    """Memory that CUDA reports."""
    name: str = "NVIDIA stand-in"
    multiprocessors: int = 108

    def __str__(self) -> str:
        return f"sm_{self.capability}-{self.gib:g}GiB"


T4 = Card(capability=75, gib=14.6, name="Tesla T4", multiprocessors=40)
A100 = Card(capability=80, gib=40, name="NVIDIA A100-SXM4-40GB", multiprocessors=108)
RTX_3090 = Card(capability=86, gib=24, name="NVIDIA GeForce RTX 3090", multiprocessors=82)
L4 = Card(capability=89, gib=22, name="NVIDIA L4", multiprocessors=58)
H100 = Card(capability=90, gib=79, name="NVIDIA H100 80GB HBM3", multiprocessors=132)
USUAL = (T4, A100, RTX_3090, L4, H100)
"""One card of every compute capability, with its own memory."""
ALL = (
    *USUAL,
    *(
        Card(capability=capability, gib=gib)
        for capability in (75, 80, 86, 89, 90)
        for gib in (12, 14.6, 16, 22, 40, 79)
        if (capability, gib) not in {(card.capability, card.gib) for card in USUAL}
    ),
)
"""Every compute capability with every memory, also where no such card is sold: both decide apart."""
SMALL = (
    Card(capability=86, gib=7.6, name="NVIDIA GeForce RTX 3070", multiprocessors=46),
    Card(capability=86, gib=11.6, name="NVIDIA GeForce RTX 3060", multiprocessors=28),
    T4,
)
"""Cards for adapters."""
TOO_OLD = (
    Card(capability=70, gib=15.8, name="Tesla V100-SXM2-16GB", multiprocessors=80),
    Card(capability=61, gib=10.9, name="NVIDIA GeForce GTX 1080 Ti", multiprocessors=28),
)
"""Cards that the wheel has no kernels for."""
