"""One line for whatever goes wrong between this machine and the Hub."""

from mmfusion.model.errors import HubError, explain, explained, is_a, recognise

__all__ = ["HubError", "explain", "explained", "is_a", "recognise"]
