"""What Python does for the guest takes guest time, once it is much.

A guest's limit is one of guest time, and that is counted in blocks of code; but a port, CPUID or a stop of the
engine costs this computer as much as thousands of blocks. So a guest has a credit of host time. It earns some as its
own time passes and spends some by each event, at fixed prices, so that two runs are the same. Ordinary code, a boot
included, never spends what it has. A guest that has spent it waits: its time passes until there is credit again.
"""

from __future__ import annotations

__all__ = [
    "BUS",
    "CPUID",
    "EARNED_PER_TICK",
    "EXCEPTION",
    "FLUSH",
    "MOST_CREDIT",
    "PORT",
    "STOP",
    "TRANSLATION",
    "TRAP",
    "Toll",
]

# Prices, in microseconds of a slow computer
PORT, BUS, CPUID, TRAP, STOP, EXCEPTION, FLUSH, TRANSLATION = 10, 10, 20, 15, 30, 120, 4, 50
EARNED_PER_TICK = 20_000  # five times as long as a tick, which is 1/250 s
MOST_CREDIT = 5_000_000


class Toll:
    """The credit of one guest, in microseconds.

    :attr credit: for what two runs from the same state do alike.
    :attr room: for translations, of which a process that goes on from a saved state does more than one that has run
        there. It is as large, and not a part of the state.
    """

    def __init__(self) -> None:
        self.credit = self.room = MOST_CREDIT

    def pay(self, price: int) -> bool:
        """Spend some; whether the guest is in debt now."""
        self.credit -= price
        return self.debt > 0

    def pay_translations(self, count: int) -> bool:
        """Likewise for so many translated blocks."""
        self.room -= count * TRANSLATION
        return self.debt > 0

    @property
    def debt(self) -> int:
        return max(-self.credit, -self.room, 0)

    def earn(self, credit: int) -> None:
        self.credit = min(self.credit + credit, MOST_CREDIT)
        self.room = min(self.room + credit, MOST_CREDIT)
