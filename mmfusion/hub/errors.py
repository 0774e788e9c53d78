"""One line for whatever goes wrong with a model on the Hub, or with its card."""

from mmfusion.model.errors import HubError, MMFusionError, explain, explained, is_a, recognise

__all__ = ["CardError", "HubError", "explain", "explained", "is_a", "recognise"]


class CardError(MMFusionError):
    """A card cannot be written or read.

    Args:
        what: What is wrong, with the value.
        place: The file, and the field in it.
        remedy: What to do.
    """

    def __init__(self, what: str, place: str, remedy: str) -> None:
        super().__init__(f"{place}: {what}; {remedy}")
