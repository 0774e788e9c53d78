"""Models on the Hub: publishing and loading them, their cards and their checkpoints; photos behind URLs."""

from mmfusion.hub.card import LoadedCard, load_card
from mmfusion.hub.photo_urls import PhotoFetcher

__all__ = ["LoadedCard", "PhotoFetcher", "load_card"]
