"""Models on the Hub: publishing and loading them, their cards and their checkpoints; photos behind URLs."""

from mmfusion.data.photo_urls import PhotoFetcher
from mmfusion.hub.card import LoadedCard, load_card

__all__ = ["LoadedCard", "PhotoFetcher", "load_card"]
