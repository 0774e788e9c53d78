"""The one refusal of everything that makes or reads a card."""

from mmfusion.model.errors import MMFusionError


class CardError(MMFusionError):
    """A card cannot be written or read.

    Args:
        what: What is wrong, with the value.
        place: The file, and the field in it.
        remedy: What to do.
    """

    def __init__(self, what: str, place: str, remedy: str) -> None:
        super().__init__(f"{place}: {what}; {remedy}")
