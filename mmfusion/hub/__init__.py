"""Models on the Hub: publishing and loading them, their cards and their checkpoints."""

from mmfusion.hub.card import LoadedCard, load_card

__all__ = ["LoadedCard", "load_card"]
